from __future__ import annotations

from coeff_tuning.studies.fewshot import report, scores
from coeff_tuning.studies.rows import Row


def made(setting: str, score: str, scores: dict[str, list[float]], epochs: int = 6) -> list[Row]:
    numbers = {"coeff": 400, "lora": 8000}
    flags = {"num_train_epochs": epochs}
    return [
        {"setting": setting, "method": m, "seed": seed, score: value, "extra_parameters": numbers.get(m, 0)}
        | {"flags": flags}
        for m, found in scores.items()
        for seed, value in enumerate(found)
    ]


SCORES = {"linear": [0.5, 0.6], "coeff": [0.53, 0.59], "lora": [0.55, 0.65], "coeff+lora": [0.56, 0.64]}
PICTURES = made("pictures", "accuracy", SCORES)
PHOTOS = made("photos", "accuracy", {"linear": [0.4], "coeff": [0.45], "lora": [0.45]})
WORDS = made("words", "perplexity", {"frozen": [30.0, 20.0], "coeff": [28.0, 19.0], "lora": [26.0, 18.0]})


def test_answers_by_hand() -> None:
    header, lines = report.answers([*PICTURES, *PHOTOS, *WORDS])
    cells = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert cells["pictures"] == {
        "setting": "pictures",
        "coeff - start": "+1.00 ± 2.83 (1/2)",
        "lora - start": "+5.00 ± 0.00 (2/2)",
        "share": "20 %",
        "numbers": "400 / 8,000 = 5.00 %",
        "coeff+lora - lora": "+0.00 ± 1.41 (1/2)",
        "dora - start": "",
        "coeff+dora - dora": "",
    }
    assert cells["words"]["coeff - start"] == "+1.50 ± 0.71 (2/2)"  # less perplexity is a gain
    assert cells["words"]["share"] == "50 %"
    assert cells["photos"]["coeff - start"] == "+5.00 (1/1)"
    means = cells["mean, 6 epochs"]
    assert (means["coeff - start"], means["lora - start"]) == ("+3.00 (of 2)", "+5.00 (of 2)")
    assert means["share"] == "60 %"
    assert means["coeff+lora - lora"] == "+0.00 (of 1)"


def test_means_are_of_runs_of_equal_length() -> None:
    scores = {"linear": [0.4], "coeff": [0.44], "lora": [0.45]}
    longer = [row for name in ("pictures-long", "photos-long") for row in made(name, "accuracy", scores, epochs=20)]
    cells = {line[0]: line for line in report.answers([*PICTURES, *PHOTOS, *longer])[1]}
    assert cells["mean, 6 epochs"][1] == "+3.00 (of 2)"
    assert cells["mean, 20 epochs"][1:4] == ["+4.00 (of 2)", "+5.00 (of 2)", "80 %"]


def test_gains_are_of_seeds_that_both_have() -> None:
    rows = [row for row in PICTURES if (row["method"], row["seed"]) != ("linear", 0)]
    (gain,) = scores.gains(rows, "pictures", "coeff", "linear")
    assert round(gain, 6) == -1


def test_no_share_of_a_gain_that_is_none() -> None:
    rows = made("pictures", "accuracy", {"linear": [0.5], "coeff": [0.6], "lora": [0.4]})
    assert report.answers(rows)[1][0][3] == "no gain of LoRA"


def test_summary_and_tried() -> None:
    header, lines = report.summary([*PICTURES, *WORDS], ["linear", "frozen", "coeff", "dora"])
    assert header == ["setting", "score", "linear", "frozen", "coeff"]
    assert lines[0] == ["pictures", "accuracy, %", "55.00 ± 7.07 (2)", "", "56.00 ± 4.24 (2)"]
    assert lines[1] == ["words", "perplexity", "", "25.00 ± 7.07 (2)", "23.50 ± 6.36 (2)"]
    tried = [
        {"setting": "words", "method": "coeff", "settings": {"a": rate}, "perplexity": found, "loss": found}
        for rate, found in ((0.01, 8.0), (0.05, 9.0))
    ]
    assert report.tried(tried)[1] == [["words", "coeff", "**0.01: 8.00**; 0.05: 9.00"]]


def test_variants_by_hand() -> None:
    rows = made("pictures", "accuracy", {"as it is": [0.5, 0.6], "dropout 0": [0.55, 0.6]})
    header, lines = report.variants(rows, ["linear", "as it is", "dropout 0"], "as it is")
    assert header == ["setting", "variant", "score", "- as it is"]
    assert lines == [
        ["pictures", "as it is", "55.00 ± 7.07 (2)", ""],
        ["pictures", "dropout 0", "57.50 ± 3.54 (2)", "+2.50 ± 3.54 (1/2)"],
    ]
    page = report.page([{**row, **WHERE} for row in rows], [])
    assert page.count("| pictures | dropout 0 |") == 1
    assert "coefficients + LoRA" not in page


WHERE = {"date": "2026-01-01T", "cpu": "x", "threads": 1, "versions": {"torch": "2"}}
