from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coeff_tuning import cli
from coeff_tuning.errors import MissingDependencyError, RunError
from coeff_tuning.recipes import sweep
from coeff_tuning.recipes.compare import Row

METHODS, SEEDS = "lora,coeff", "0,1,2"
NOT_COMPARED = ("train_seconds", "peak_memory_mib")


@pytest.fixture
def config(bert: Path, reviews: Path, tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"task: text-classification\nmodel_name_or_path: {bert}\ndataset: {reviews}\nmax_steps: 3\n"
        "disable_tqdm: true\nuse_cpu: true\nsave_strategy: steps\nsave_steps: 1\n"
    )
    return str(path)


def _train_and_die_once(config: dict[str, Any], rows: list[Any], folder: str) -> dict[str, Any]:
    """Notes which row begins; the first worker of one row kills itself after its first checkpoints."""
    from coeff_tuning.recipes.trainer import CoeffTrainer

    name = rows[config["row"]].folder.name
    with Path(folder, "begun").open("a") as file:
        file.write(f"{name}\n")
    original, dead = CoeffTrainer.training_step, Path(folder, "dead")

    def step(trainer: CoeffTrainer, *args: Any, **kwargs: Any) -> Any:
        if name == "coeff-seed1" and trainer.state.global_step == 2 and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(trainer, *args, **kwargs)

    CoeffTrainer.training_step = step
    return _original(config, rows, folder)


_original = sweep._train_row


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_worker_costs_no_row(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = pytest.importorskip("ray.tune", reason="ray is not installed: pip install 'coeff-tuning[sweep]'")
    # A worker for several rows, which sweep does not want: their memory would not be their own. It imports only once.
    settings = tune.TuneConfig(reuse_actors=True)
    monkeypatch.setattr(tune, "Tuner", functools.partial(tune.Tuner, tune_config=settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # where workers find this module
    monkeypatch.setattr(sweep, "_train_row", _train_and_die_once)
    command = ["sweep", config, "--methods", METHODS, "--seeds", SEEDS, "--output_dir", "swept"]
    assert cli.main(command) == 0, capsys.readouterr().err
    names = {f"{m}-seed{s}" for m in METHODS.split(",") for s in SEEDS.split(",")}
    begun = (tmp_path / "begun").read_text().split()
    assert sorted(begun) == sorted([*names, "coeff-seed1"])
    rows = {name: json.loads((tmp_path / "swept" / name / "metrics.json").read_text()) for name in names}
    assert [name for name, row in rows.items() if row["resumed"]] == ["coeff-seed1"]

    assert cli.main(command) == 0  # all rows are there: nothing is begun, Ray is not started
    assert (tmp_path / "begun").read_text().split() == begun
    assert "6 of 6 rows are there already" in capsys.readouterr().out

    def run_here(command: list[str], **_: object) -> SimpleNamespace:
        is_row = "coeff_tuning.cli" in command
        return SimpleNamespace(returncode=cli.main(command[3:]) if is_row else 1, stdout="")

    monkeypatch.setattr(subprocess, "run", run_here)
    assert cli.main(["compare", *command[1:-1], "compared"]) == 0
    swept, compared = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("swept", "compared"))
    assert [len(entry["values"]) for entry in swept] == [3, 3]
    for mine, theirs in zip(swept, compared, strict=True):
        assert {k: v for k, v in mine.items() if k not in NOT_COMPARED} == {
            k: v for k, v in theirs.items() if k not in NOT_COMPARED
        }
    files = [{p.name for p in (tmp_path / n).iterdir()} for n in ("swept", "compared")]
    assert files[0] == files[1]


def test_ray_is_named_where_it_is_missing(config: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"needs ray, .* pip install 'coeff-tuning\[sweep\]'"):
        sweep.sweep(config, ["coeff"], [0], str(tmp_path / "out"), [])


def test_an_error_of_a_row_is_its_result_and_is_named(config: str, tmp_path: Path) -> None:
    argv = ["text-classification", "--config", config, "--text_column", "body", "--output_dir", str(tmp_path / "out")]
    rows = [Row(tmp_path / "out", argv), Row(tmp_path / "done", [])]
    found = sweep._train_row({"row": 0}, rows, os.getcwd())
    assert found["error"].startswith("split 'train' has no column 'body'")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "metrics.json").write_text("{}")
    assert sweep._train_row({"row": 1}, rows, os.getcwd()) == {}
    with pytest.raises(RunError, match="1 of 2 rows failed; out: split 'train' has no column 'body'"):
        sweep.require_all(rows, [found["error"], None])
