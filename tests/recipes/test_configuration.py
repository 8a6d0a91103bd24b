from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.configuration import parse_run
from coeff_tuning.recipes.demo import DEMO

TEXT = ["text-classification", "--model_name_or_path", "m", "--dataset", "d"]


def test_precedence(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("method: full\nlearning_rate: 5e-3\nnum_train_epochs: 7\nbf16: false\n")
    run = parse_run([*TEXT, "--config", str(config), "--num_train_epochs", "2"])
    assert (run.training.learning_rate, run.training.num_train_epochs, run.training.bf16) == (5e-3, 2.0, False)
    assert parse_run([*TEXT, "--method", "full"]).training.learning_rate == 5e-5
    assert parse_run(TEXT).training.learning_rate == 1e-3


def test_resolved_config_gives_the_same_run(tmp_path: Path) -> None:
    run = parse_run([*TEXT, "--seed", "5", "--lora_target_modules", "query", "key", "--save_strategy", "no"])
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(run.resolved))
    again = parse_run(["text-classification", "--config", str(config)])
    assert again.resolved == run.resolved
    assert again.method.lora_target_modules == ["query", "key"]
    assert run.folder == Path("runs/text-classification-coeff")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("leaning_rate: 1", "unknown key 'leaning_rate'; did you mean 'learning_rate'"),
        ("method: magic", "method must be one of linear, .*; got 'magic'"),
        ("task: causal-lm", "is for another task than 'text-classification'"),
        ("- a\n- b", "must hold 'flag: value' lines; got list"),
        ("a: [", "cannot be read"),
        ("holdout_fraction: 1.5", "--holdout_fraction must lie between 0 and 1; got 1.5"),
        ("train_samples_per_class: 0", "--train_samples_per_class must be at least 1; got 0"),
        ("eval_strategy: steps\neval_steps: 0\nlogging_steps: 0", "do not go together"),
    ],
)
def test_bad_config(tmp_path: Path, content: str, message: str) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(content)
    with pytest.raises(RunError, match=message):
        parse_run([*TEXT, "--config", str(config)])


def test_what_is_missing_is_named() -> None:
    with pytest.raises(RunError, match="--model_name_or_path is needed"):
        parse_run(["text-classification", "--dataset", "d"])
    with pytest.raises(RunError, match="--dataset or --train_file is needed"):
        parse_run(["text-classification", "--model_name_or_path", "m"])
    with pytest.raises(RunError, match="causal-lm has no new head"):
        parse_run(["causal-lm", *TEXT[1:], "--method", "linear"])
    with pytest.raises(RunError, match="--head_start probe is for new heads on frozen features; causal-lm has none"):
        parse_run(["causal-lm", *TEXT[1:], "--head_start", "probe"])


def test_example_config_is_the_demo() -> None:
    path = Path(__file__).parents[2] / "examples" / "configs" / "digits-dinov2.yaml"
    assert yaml.safe_load(path.read_text()) == DEMO
