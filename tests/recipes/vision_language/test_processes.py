from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from coeff_tuning import cli
from coeff_tuning.recipes.vision_language import readers
from tests.recipes import launch
from tests.recipes.vision_language.test_run import argv

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


def _losses(folder: Path) -> list[float]:
    (state,) = folder.glob("checkpoint-*/trainer_state.json")
    return [row["loss"] for row in json.loads(state.read_text())["log_history"] if "loss" in row]


def _metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.slow
def test_two_processes_train_as_one(decoder: Path, data: Path, tmp_path: Path) -> None:
    """Batches of 2 in two processes are the batches of 4 of one: same losses, adapters and scores."""
    flags = ["--tasks", "vqa", "gqa", "nlvr", "--method", "coeff+lora", "--coeff_dropout", "0", "--max_steps", "3"]
    flags += ["--logging_strategy", "steps", "--logging_steps", "1", "--save_strategy", "steps", "--save_steps", "3"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main(["vl", *argv(data, decoder, one, *flags, "--per_device_train_batch_size", "4")]) == 0
    (tmp_path / "logs").mkdir()
    launch.run(["vl", *argv(data, decoder, two, *flags)], tmp_path / "logs")
    assert _losses(two) == pytest.approx(_losses(one), rel=1e-4)
    assert (_metrics(two)["processes"], _metrics(one)["processes"]) == (2, 1)
    assert [_metrics(two)[task] for task in readers.TASKS[:3]] == [_metrics(one)[task] for task in readers.TASKS[:3]]
    for name in ("adapter_model.safetensors", "coeff/adapter_model.safetensors"):
        ours, theirs = load_file(two / name), load_file(one / name)
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=1e-4, msg=key)
