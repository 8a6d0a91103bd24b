from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from transformers.training_args import ParallelMode

from coeff_tuning import cli
from coeff_tuning.errors import RunError
from coeff_tuning.recipes.distributed import check_sharding, require_one_process
from coeff_tuning.recipes.predict import classify, load_run
from tests.recipes import launch

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
# A head that starts converged has gradients near zero, and Adam makes full steps of their rounding.
QUICK = ["--max_steps", "4", "--use_cpu", "true", "--disable_tqdm", "true", "--coeff_dropout", "0"]
QUICK += ["--head_start", "random"]
STEPS = ["--save_strategy", "steps", "--save_steps", "2", "--logging_strategy", "steps", "--logging_steps", "1"]
# 24 documents make whole batches of 8; the 13 held-out ones do not.
SPLIT = ["--holdout_fraction", "0.325", "--train_samples_per_class", "12"]


@pytest.fixture(scope="module")
def steady(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder without dropout, so that what processes draw does not matter."""
    folder = tmp_path_factory.mktemp("steady") / "bert"
    shutil.copytree(bert, folder)
    config = json.loads((folder / "config.json").read_text())
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps({**config, **none}))
    return folder


def _text(model: Path, data: Path, folder: Path, batch: int, *flags: str) -> list[str]:
    argv = ["train", "text-classification", "--model_name_or_path", str(model), "--dataset", str(data), *SPLIT, *QUICK]
    argv += ["--per_device_train_batch_size", str(batch), "--learning_rate", "1e-2", "--output_dir", str(folder)]
    return [*argv, *flags]


def _metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def _losses(folder: Path) -> list[float]:
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    return [row["loss"] for row in state["log_history"] if "loss" in row]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    files = [p for p in folder.rglob("*.safetensors") if "checkpoint" not in str(p)]
    return {f"{p.relative_to(folder)} {k}": v for p in sorted(files) for k, v in load_file(p).items()}


def _assert_same_run(folder: Path, one: Path) -> None:
    got, expected = _metrics(folder), _metrics(one)
    assert (got["processes"], expected["processes"]) == (2, 1)
    for name in ("heldout_samples", "train_samples", "trainable_parameters", "head_parameters", "adapter_bytes"):
        assert got[name] == expected[name], name
    for name in {"accuracy", "loss", "perplexity"} & set(expected):
        assert got[name] == pytest.approx(expected[name], rel=1e-5), name
    weights, whole = _weights(folder), _weights(one)
    assert weights.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(weights[key], value, atol=1e-5, rtol=1e-4, msg=key)


@pytest.fixture(scope="module")
def one_process(steady: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never interrupted."""
    folder = tmp_path_factory.mktemp("one") / "run"
    assert cli.main(_text(steady, reviews, folder, 8, "--method", "coeff+lora", *STEPS)) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_killed_on_one_rank_and_resumed_is_the_run_of_one_process(
    sharded: bool,
    steady: Path,
    reviews: Path,
    one_process: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder, logs = tmp_path / "run", tmp_path_factory.mktemp("logs")
    argv = _text(steady, reviews, folder, 4, "--method", "coeff+lora", *STEPS)
    if sharded:  # with the kind of checkpoint that would lose an adapter
        (logs / "fsdp.json").write_text(json.dumps({"state_dict_type": "SHARDED_STATE_DICT"}))
        argv += ["--fsdp", "--fsdp_config", str(logs / "fsdp.json")]
    with pytest.raises(ChildFailedError, match=r"rank +: 1 \(local_rank: 1\)[^=]*Signal 9 \(SIGKILL\)"):
        launch.run(argv, logs, sharded=sharded, killed_after=3)
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (folder / "metrics.json").exists()

    launch.run([*argv, "--resume_from_checkpoint", "true"], logs, sharded=sharded)
    assert _metrics(folder)["resumed"]
    assert _losses(folder) == pytest.approx(_losses(one_process), rel=1e-5)
    _assert_same_run(folder, one_process)
    printed = "".join(log.read_text() for log in logs.rglob("stdout.log"))
    assert printed.count("load it in Python") == 1  # by the first process alone
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (folder / "coefficients.png").stat().st_size == (one_process / "coefficients.png").stat().st_size
    rows = [classify(load_run(f), ["the film was great", "awful food"]) for f in (folder, one_process)]
    for got, expected in zip(*rows, strict=True):
        assert got == pytest.approx(expected, abs=1e-5)


def test_accumulated_steps_are_the_run_of_whole_batches(
    steady: Path, reviews: Path, one_process: Path, tmp_path: Path
) -> None:
    flags = ["--method", "coeff+lora", "--gradient_accumulation_steps", "2", *STEPS]
    assert cli.main(_text(steady, reviews, tmp_path / "run", 4, *flags)) == 0
    assert _losses(tmp_path / "run") == pytest.approx(_losses(one_process), rel=1e-5)


@pytest.mark.slow
def test_linear_is_fitted_once_and_causal_lm_is_scored_by_sample(
    steady: Path, llama: Path, reviews: Path, tmp_path: Path
) -> None:
    text = [_text(steady, reviews, tmp_path / n, 8, "--method", "linear") for n in ("linear", "linear-one")]
    blocks = ["train", "causal-lm", "--model_name_or_path", str(llama), "--dataset", str(reviews), *QUICK]
    blocks += ["--max_seq_length", "5", "--learning_rate", "1e-2", "--max_train_samples", "32"]
    sizes = [("4", "lm"), ("8", "lm-one")]
    flags = [["--per_device_train_batch_size", size, "--output_dir", str(tmp_path / name)] for size, name in sizes]
    for argv, alone in (text, [[*blocks, *own] for own in flags]):
        launch.run(argv, tmp_path)
        assert cli.main(alone) == 0
    _assert_same_run(tmp_path / "linear", tmp_path / "linear-one")
    _assert_same_run(tmp_path / "lm", tmp_path / "lm-one")


@pytest.mark.slow
def test_accelerate_launch(steady: Path, reviews: Path, one_process: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    argv = _text(steady, reviews, tmp_path / "run", 4, "--method", "coeff+lora", "--save_strategy", "no")
    # On a machine without GPUs the flag means several processes; each then runs on the CPU, as --use_cpu asks.
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "coeff_tuning.cli"]
    done = subprocess.run([*program, *options, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _assert_same_run(tmp_path / "run", one_process)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["processes"] == 2


def test_other_commands_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert cli.main(["compare", "config.yaml"]) == 2
    assert "coeff-tuning compare must be started as one process; it was started as 3" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    require_one_process("compare")


def _started(mode: ParallelMode, device: str, **config: Any) -> Any:
    return SimpleNamespace(fsdp=True, fsdp_config=config, parallel_mode=mode, device=torch.device(device), world_size=2)


def test_sharding_that_would_not_happen_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sharding(_started(ParallelMode.DISTRIBUTED, "cuda"), "coeff")
    with pytest.raises(RunError, match="fitted by one process on a whole model"):
        check_sharding(_started(ParallelMode.DISTRIBUTED, "cuda"), "linear")
    with pytest.raises(RunError, match="must be version 2, .* got version 1"):
        check_sharding(_started(ParallelMode.DISTRIBUTED, "cuda", version=1), "coeff")
    with pytest.raises(RunError, match="this run has 2 on cpu, and accelerate would not shard it"):
        check_sharding(_started(ParallelMode.DISTRIBUTED, "cpu"), "coeff")
    with pytest.raises(RunError, match="FSDP needs processes with a GPU each"):
        check_sharding(_started(ParallelMode.NOT_PARALLEL, "cuda"), "coeff")
    plain = SimpleNamespace(fsdp=None)
    check_sharding(plain, "linear")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RunError, match="got version 1"):
        check_sharding(plain, "coeff")
