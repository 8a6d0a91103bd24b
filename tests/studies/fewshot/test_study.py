from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from coeff_tuning import cli
from coeff_tuning.studies import rows
from coeff_tuning.studies.fewshot import methods, scores, study
from coeff_tuning.studies.fewshot.settings import KNOWN, make

HEADS, LAYERS = 4, 2  # of the tiny models
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def config(folder: Path, name: str, **flags: Any) -> str:
    path = folder / f"{name}.yaml"
    shared = {"max_eval_samples": 4, "num_train_epochs": 1, "per_device_train_batch_size": 4, "use_cpu": True}
    path.write_text(yaml.safe_dump({**shared, **flags}))
    return str(path)


def argv(folder: Path, *flags: str) -> list[str]:
    return ["study", "fewshot", "--output_dir", str(folder), *flags]


def stored(folder: Path, name: str = "rows") -> list[rows.Row]:
    return rows.read(folder / f"{name}.jsonl", "fewshot")


def test_every_method_on_images_and_on_a_language_model(
    dinov2: Path, llama: Path, colours: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = config(
        tmp_path,
        "shapes",
        task="image-classification",
        model_name_or_path=str(dinov2),
        dataset="shapes",
        train_samples_per_class=2,
    )
    text = config(
        tmp_path,
        "words",
        task="causal-lm",
        model_name_or_path=str(llama),
        train_file=str(reviews),
        max_seq_length=8,
    )
    out = tmp_path / "out"
    command = argv(out, "--settings", f"{images},{text}", "--data", f"shapes={colours}", "--seeds", "0")
    assert cli.main(command) == 0
    found = {(row["setting"], row["method"]): row for row in stored(out)}
    trained = ["coeff", "lora", "coeff+lora", "dora", "coeff+dora"]
    assert list(found) == [
        (name, method) for name, first in (("shapes", "linear"), ("words", "frozen")) for method in [first, *trained]
    ]
    for name in ("shapes", "words"):
        extra = {method: row["extra_parameters"] for (setting, method), row in found.items() if setting == name}
        assert extra["coeff"] == LAYERS * HEADS * HEADS
        assert extra["coeff+lora"] == extra["lora"] + extra["coeff"]
        assert extra["dora"] > extra["lora"]
        assert extra.get("linear", 0) == extra.get("frozen", 0) == 0
    tried = stored(out, "search")
    assert len(tried) == 2 * len(trained) * 2
    assert {row["seed"] for row in tried} == {study.SEARCH_SEED}
    assert {row["heldout_split"] for row in tried} == {"training data not trained on"}
    assert "training data not trained on" not in {row["heldout_split"] for row in found.values()}
    for row in found.values():
        assert row["train_samples"] > 0
        assert str(tmp_path) not in json.dumps({**row, "command": "", "flags": {}, "weights": {}})
        if row["method"] in trained:
            (best,) = [t for t in tried if t["settings"] == row["settings"] and is_same(t, row)]
            others = [t for t in tried if is_same(t, row)]
            assert row["validation"] == best["accuracy" if row["setting"] == "shapes" else "perplexity"]
            assert all(scores.rank(best) >= scores.rank(other) for other in others)
    assert found["shapes", "coeff"]["data"]["files"] == sum(path.is_file() for path in colours.rglob("*"))
    assert found["shapes", "coeff"]["flags"]["dataset"] == "shapes"
    printed = capsys.readouterr().out
    assert "[12/12] words, coeff+dora, seed 0" in printed
    page = (out / "summary.md").read_text()
    assert page.count("| shapes |") == 2 + len(trained)
    assert (out / "fewshot.png").read_bytes()[:4] == b"\x89PNG"
    before = (out / "rows.jsonl").read_bytes()
    (out / "summary.md").unlink()
    assert cli.main(argv(out, "--report")) == 0
    assert (out / "summary.md").read_text() == page
    assert (out / "rows.jsonl").read_bytes() == before
    changed = config(tmp_path, "words", task="causal-lm", model_name_or_path=str(llama), train_file=str(reviews))
    assert cli.main(argv(out, "--settings", changed, "--seeds", "0")) == 2
    assert "was made with flags" in capsys.readouterr().err


def is_same(tried: rows.Row, row: rows.Row) -> bool:
    return all(tried[key] == row[key] for key in ("setting", "method"))


# Scores depend on the seed and settings only, so that a study that was killed must end with the same rows.
_SCRIPT = """
import os, signal, sys
from pathlib import Path
from coeff_tuning.studies import rows
from coeff_tuning.studies.fewshot import methods, settings, study

folder, log, where, last = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
count = 0

def killed(here):
    global count
    if here == where:
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

def fit(task, flags):
    killed("training")
    rate = flags.get("coeff_learning_rate", 0)
    with log.open("a") as file:
        file.write(f"{flags['method']} {flags['seed']} {rate} {flags.get('eval_split', 'test')}\\n")
    return {"accuracy": 0.5 + rate, "loss": 1.0, "extra_parameters": 32, "seed_seen": flags["seed"]}

replace = os.replace
def replace_or_die(*paths):
    killed("writing")
    replace(*paths)

study.fit, rows.os.replace = fit, replace_or_die
study.run_all(folder, [settings.make("digits", {})], ["linear", "coeff"], [0, 1])
"""


@pytest.mark.parametrize(("where", "last"), [("training", 3), ("writing", 4), ("never", 1)])
def test_killed_anywhere_it_goes_on(where: str, last: int, tmp_path: Path) -> None:
    """Jobs in order: probe, two candidates, coefficients, probe, coefficients. A row that was written is not redone."""
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def start(where: str) -> int:
        command = [sys.executable, "-c", _SCRIPT, str(tmp_path / "out"), str(log), where, str(last)]
        return subprocess.run(command, env=environment, stdout=subprocess.DEVNULL).returncode

    done = 0
    if where != "never":
        assert start(where) == -signal.SIGKILL
        done = sum(len(stored(tmp_path / "out", name)) for name in ("rows", "search"))
        assert done == last - 1
        log.unlink()
    assert start("never") == 0
    expected = ["linear 0 0 test", "coeff 100 0.01 validation", "coeff 100 0.05 validation", "coeff 0 0.05 test"]
    expected += ["linear 1 0 test", "coeff 1 0.05 test"]
    assert log.read_text().splitlines() == expected[done:]
    found = [(row["method"], row["seed"], row["validation"]) for row in stored(tmp_path / "out")]
    assert found == [("linear", 0, None), ("coeff", 0, 0.55), ("linear", 1, None), ("coeff", 1, 0.55)]
    assert len(stored(tmp_path / "out", "search")) == 2


def test_same_budget_for_every_method() -> None:
    for name, method in methods.MAIN.items():
        assert len(method.candidates) == (1 if name in ("linear", "frozen") else 2), name
        assert len(method.tried("long")) == (1 if name in ("linear", "frozen") else 4), name
        keys = {f"{part.replace('dora', 'lora')}_learning_rate" for part in name.split("+")}
        assert all(set(candidate) == keys for candidate in [*method.candidates, *method.many] if candidate), name
    assert all(len(method.candidates) == 1 for method in methods.ABLATION.values())
    assert methods.parse("main") == list(methods.MAIN)
    assert methods.served("causal-lm", ["linear", "frozen", "coeff"]) == ["frozen", "coeff"]
    assert methods.served("image-classification", ["linear", "frozen", "coeff"]) == ["linear", "coeff"]
    assert make("language-model", {}).seeds([0, 1, 2, 3, 4]) == [0, 1, 2]


def test_every_setting_and_variant_is_a_run_of_train(tmp_path: Path) -> None:
    """All flags are known and go together; nothing is loaded."""
    from coeff_tuning.recipes.configuration import parse_run

    folders = dict.fromkeys(("emoji", "clothing", "mnist", "fashion", "spam"), str(tmp_path))
    for name in KNOWN:
        setting = make(name, folders)
        for method in methods.served(setting.task, list(methods.METHODS)):
            flags = {**setting.flags, **methods.METHODS[method].flags}
            if flags.get("coeff_layers") in ("first half", "last half"):
                flags["coeff_layers"] = [0, 1]  # as `study.half` names them, which has to read the model
            given = [f"--{key} {' '.join(map(str, v)) if isinstance(v, list) else v}" for key, v in flags.items()]
            run = parse_run([setting.task, *" ".join(given).split()])
            assert run.method.method == methods.METHODS[method].flags["method"]
            assert run.training.num_train_epochs == flags.get("num_train_epochs", 30)


def test_wrong_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no-task.yaml").write_text("dataset: digits\n")
    (tmp_path / "endless.yaml").write_text("task: image-classification\ndataset: digits\nsearch: endless\n")
    for flags, message in (
        (["--settings", "cats"], "--settings must be config files (.yaml) or some of digits, emoji, clothing"),
        (["--settings", "emoji"], "setting 'emoji' needs a folder with its data: --data emoji=FOLDER"),
        (["--data", "emoji"], "--data must be NAME=FOLDER, for example emoji=data/emoji; got 'emoji'"),
        (["--data", f"emoji={tmp_path}/none"], f"there is no folder {tmp_path}/none"),
        (["--settings", str(tmp_path / "no-task.yaml")], "no-task.yaml must name its task"),
        (["--settings", str(tmp_path / "endless.yaml")], "search must be one of short, long; got 'endless'"),
        (
            ["--methods", "coeff,magic"],
            "--methods must be one of the sets main, ablation, combination, defaults, or some of linear",
        ),
        (["--seeds", "a"], "--seeds must be whole numbers separated by commas, like 0,1,2; got 'a'"),
        (["--report"], "there are no rows yet"),
    ):
        assert cli.main(argv(tmp_path / "out", *flags)) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_long_settings_are_the_short_ones_for_longer() -> None:
    for name in ("digits", "emoji", "clothing", "mnist", "bbc-news"):
        short, long = dict(KNOWN[name]), dict(KNOWN[f"{name}-long"])
        assert long.pop("search") == "long"
        changed = {key for key in short.keys() | long.keys() if short.get(key) != long.get(key)}
        assert changed <= {"num_train_epochs", "per_device_train_batch_size"}
    assert make("bbc-news-long", {}).search == "long"
    assert "search" not in make("bbc-news-long", {}).flags  # no flag of train


def test_halves_of_a_model(dinov2: Path) -> None:
    assert study.half("first half", str(dinov2)) == [0]
    assert study.half("last half", str(dinov2)) == [1]
    sets = {name for names in methods.SETS.values() for name in names}
    assert sets == set(methods.METHODS)
    assert not [name for name in sets if "," in name]  # names are separated by commas
