from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
import yaml

from coeff_tuning import cli
from coeff_tuning.errors import AdapterFileError, CoeffTuningError, DataError, RunError
from coeff_tuning.recipes import report
from coeff_tuning.recipes.configuration import parse_run
from coeff_tuning.recipes.data import load_splits
from coeff_tuning.recipes.predict import classify, generate, load_run, read_inputs
from coeff_tuning.recipes.tasks import prepare
from coeff_tuning.recipes.train import fit, train

QUICK = ["--max_steps", "4", "--per_device_train_batch_size", "8", "--use_cpu", "true", "--disable_tqdm", "true"]
pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def _text(bert: Path, reviews: Path, folder: Path, *flags: str) -> list[str]:
    data = ["--dataset", str(reviews), "--output_dir", str(folder), "--learning_rate", "1e-2"]
    return ["text-classification", "--model_name_or_path", str(bert), *data, *QUICK, *flags]


def _lines_load(folder: Path, predictor: Any, metrics: dict[str, Any]) -> Any:
    """Run the printed Python in an empty namespace."""
    lines = report.loading_lines(predictor.run, metrics)
    namespace: dict[str, Any] = {}
    exec(lines, namespace)
    assert str(folder) in lines
    return namespace["model"].eval()


def _measured(argv: list[str]) -> dict[str, Any]:
    """Metrics of a run that saves nothing."""
    tf.set_seed(0)
    run = parse_run(argv)
    return fit(run, prepare(run))[1]


@pytest.mark.parametrize("method", ["coeff", "coeff+lora", "full"])
def test_head_starts_as_the_probe(method: str, bert: Path, reviews: Path, tmp_path: Path) -> None:
    """Before the first step, every method scores exactly what the probe does; without the flag it does not."""
    start = ["--max_steps", "-1", "--num_train_epochs", "0"]
    losses = {}
    for name, flags in (
        ("linear", ["--method", "linear"]),
        ("probe", [*start, "--method", method, "--head_start", "probe"]),
        ("random", [*start, "--method", method, "--head_start", "random"]),
        ("auto", [*start, "--method", method]),
    ):
        losses[name] = _measured(_text(bert, reviews, tmp_path / name, *flags))["loss"]
    assert losses["probe"] == pytest.approx(losses["linear"], rel=1e-6)
    assert losses["auto"] == losses["probe"]  # the head is new, of one layer, and there are few samples
    assert losses["random"] != pytest.approx(losses["linear"], rel=1e-3)


def test_head_of_a_checkpoint_or_of_many_samples_starts_as_it_is(
    bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` neither overwrites a head that was trained before, nor fits a probe to a large training set."""

    def loss(name: str, model: Path, *flags: str) -> float:
        still = ["--max_steps", "-1", "--num_train_epochs", "0"]
        return float(_measured(_text(model, reviews, tmp_path / name, *still, *flags))["loss"])

    random = loss("random", bert, "--head_start", "random")
    assert loss("few", bert) != random
    monkeypatch.setattr("coeff_tuning.recipes.train._LARGEST_PROBE", 19)
    assert loss("many", bert) == random
    monkeypatch.undo()
    run = parse_run(_text(bert, reviews, tmp_path / "full", "--method", "full", "--head_start", "random"))
    train(run)
    own = loss("own", tmp_path / "full")
    assert own == loss("own-random", tmp_path / "full", "--head_start", "random")
    assert own != loss("own-probe", tmp_path / "full", "--head_start", "probe")


def test_layers_and_start_of_coefficients(bert: Path, reviews: Path, tmp_path: Path) -> None:
    def run(name: str, *flags: str) -> dict[str, Any]:
        still = ["--max_steps", "-1", "--num_train_epochs", "0"]
        return _measured(_text(bert, reviews, tmp_path / name, *still, *flags))

    both, direct = run("both"), run("direct", "--coeff_parameterization", "direct")
    assert direct["loss"] == pytest.approx(both["loss"], rel=1e-6)  # the identity, trained as a whole
    assert run("random", "--coeff_parameterization", "direct", "--coeff_init", "random")["loss"] != both["loss"]
    assert (both["extra_parameters"], run("last", "--coeff_layers", "1")["extra_parameters"]) == (32, 16)
    with pytest.raises(RunError, match="these coefficients cannot be made: init must be one of .*; got 'ones'"):
        run("ones", "--coeff_init", "ones")


@pytest.mark.parametrize("method", ["linear", "coeff", "lora", "dora", "coeff+lora", "coeff+dora", "full"])
def test_train_save_predict(method: str, bert: Path, reviews: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    metrics = train(parse_run(_text(bert, reviews, folder, "--method", method)))
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["heldout_samples"] == 20
    assert metrics["head_parameters"] == 34
    lora = 2 * 2 * 2 * 8 * 16  # layers, query and value, A and B, rank, width
    extra = {
        "linear": 0,
        "coeff": 32,
        "lora": lora,
        "coeff+lora": lora + 32,
        "dora": lora + 64,
        "coeff+dora": lora + 96,
    }
    if method != "full":
        assert metrics["extra_parameters"] == extra[method]
    assert (folder / "coefficients.png").exists() == ("coeff" in method)
    assert (folder / "curves.png").stat().st_size > 1000
    assert metrics["adapter_bytes"] > 0
    assert metrics["peak_memory_mib"] > 100
    assert set(yaml.safe_load((folder / "config.yaml").read_text())) >= {"task", "method", "seed", "dataset"}

    predictor = load_run(folder)
    texts = [line.split(",")[0] for line in reviews.read_text().splitlines()[1:9]]
    results = classify(predictor, texts)
    assert [sum(row.values()) for row in results] == pytest.approx([1.0] * 8)
    loaded = _lines_load(folder, predictor, metrics)
    batch = predictor.loaded.processor(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        probabilities = loaded(**batch).logits.softmax(-1)
    ours = torch.tensor([[row[label] for label in ("negative", "positive")] for row in results])
    torch.testing.assert_close(probabilities, ours, atol=1e-5, rtol=0)


def test_the_score_is_that_of_the_saved_model(bert: Path, reviews: Path, tmp_path: Path) -> None:
    """Head, LoRA and coefficients are all used again after loading: the score can be had from the files."""
    run = parse_run(_text(bert, reviews, tmp_path / "run", "--method", "coeff+lora", "--max_steps", "20"))
    metrics = train(run)
    heldout = load_splits(run.data, "text", run.training.seed).heldout
    results = classify(load_run(tmp_path / "run"), list(heldout["text"]))
    names = [metrics["labels"][number] for number in heldout["label"]]
    hits = [next(iter(row)) == name for row, name in zip(results, names, strict=True)]
    losses = [-math.log(row[name]) for row, name in zip(results, names, strict=True)]
    assert sum(hits) / len(hits) == metrics["accuracy"]
    assert sum(losses) / len(losses) == pytest.approx(metrics["loss"], abs=1e-5)


@pytest.mark.parametrize("size", [None, 14])
def test_images(dinov2: Path, colours: Path, tmp_path: Path, size: int | None) -> None:
    folder = tmp_path / "run"
    argv = ["image-classification", "--model_name_or_path", str(dinov2), "--dataset", str(colours)]
    argv += ["--output_dir", str(folder), *QUICK] + (["--image_size", str(size)] if size else [])
    metrics = train(parse_run(argv))
    assert (metrics["extra_parameters"], metrics["heldout_split"], metrics["labels"]) == (32, "test", ["blue", "red"])
    predictor = load_run(folder)
    paths = read_inputs(predictor, [str(colours / "test")])
    assert len(classify(predictor, paths)) == len(paths) == 6
    (colours / "broken.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"image .*broken\.png cannot be read"):
        classify(predictor, [str(colours / "broken.png")])


def test_causal_lm(llama: Path, reviews: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    argv = ["causal-lm", "--model_name_or_path", str(llama), "--dataset", str(reviews), "--max_seq_length", "16"]
    metrics = train(parse_run([*argv, "--output_dir", str(folder), "--method", "coeff+lora", *QUICK]))
    assert metrics["perplexity"] > 1
    assert (metrics["head_parameters"], metrics["labels"]) == (0, [])
    (text,) = generate(load_run(folder), ["the film was"], max_new_tokens=3)
    assert text.startswith("the film was")


def test_existing_run_and_resume(bert: Path, reviews: Path, tmp_path: Path) -> None:
    argv = _text(bert, reviews, tmp_path / "run", "--save_strategy", "steps", "--save_steps", "3", "--max_steps", "6")
    whole = train(parse_run(argv))
    with pytest.raises(RunError, match="holds a run; --overwrite_output_dir replaces it"):
        train(parse_run(argv))
    (tmp_path / "run" / "metrics.json").unlink()
    resumed = train(parse_run([*argv, "--resume_from_checkpoint", "true"]))
    assert resumed["resumed"]
    assert resumed["loss"] == whole["loss"]


def test_corrupt_adapter(bert: Path, reviews: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(parse_run(_text(bert, reviews, folder, "--method", "lora")))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(AdapterFileError, match="cannot be read"):
        load_run(folder)


def test_full_disk_while_saving(bert: Path, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = _text(bert, reviews, tmp_path / "run")
    train(parse_run(argv))
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("coeff_tuning.recipes.train.save_trained", full)
    with pytest.raises(RunError, match="No space left on device"):
        train(parse_run([*argv, "--overwrite_output_dir", "--save_strategy", "no"]))
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_errors_are_one_line_with_exit_code_2(
    bert: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = _text(bert, reviews, tmp_path / "run", "--text_column", "body")
    assert cli.main(["train", *argv]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("coeff-tuning: split 'train' has no column 'body'; it has text, label")
    assert not (tmp_path / "run").exists()  # so that the corrected command can be typed again
    with pytest.raises(CoeffTuningError, match="cannot be loaded for text-classification"):
        train(parse_run([*_text(tmp_path / "no-model", reviews, tmp_path / "other")]))
