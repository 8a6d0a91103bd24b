from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import SafetensorError

from coeff_tuning.errors import RunError
from coeff_tuning.recipes import run_folder

SETTINGS = {"task": "causal-lm", "seed": 3}


def _begun(folder: Path) -> None:
    assert run_folder.start(folder, SETTINGS, None, overwrite=False) is None
    run_folder.claim(folder, SETTINGS, None)


def _finished(folder: Path) -> None:
    _begun(folder)
    (folder / "metrics.json").write_text(json.dumps({"accuracy": 0.5}))


def test_finished_run_is_not_overwritten(tmp_path: Path) -> None:
    _finished(tmp_path / "run")
    with pytest.raises(RunError, match="holds a run; --overwrite_output_dir replaces it"):
        run_folder.start(tmp_path / "run", SETTINGS, None, overwrite=False)
    run_folder.start(tmp_path / "run", SETTINGS, None, overwrite=True)
    assert run_folder.read_metrics(tmp_path / "run") == {"accuracy": 0.5}  # until the new one is complete


def test_foreign_files_are_never_claimed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunError, match="files that are not a run's"):
        run_folder.start(tmp_path, SETTINGS, None, overwrite=True)


def test_interrupted_run_resumes_only_with_its_settings(tmp_path: Path) -> None:
    _begun(tmp_path)
    run_folder.start(tmp_path, {**SETTINGS, "seed": 4}, None, overwrite=False)  # no checkpoint yet: nothing to lose
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(RunError, match="an interrupted run; --resume_from_checkpoint true goes on"):
        run_folder.start(tmp_path, SETTINGS, None, overwrite=False)
    with pytest.raises(RunError, match="seed was 3 and is now 4"):
        run_folder.start(tmp_path, {**SETTINGS, "seed": 4}, "true", overwrite=False)
    with pytest.raises(RunError, match="processes was 1 and is now 2"):
        run_folder.start(tmp_path, {**SETTINGS, "processes": 2}, "true", overwrite=False)
    assert run_folder.start(tmp_path, SETTINGS, "true", overwrite=False) is None
    run_folder.claim(tmp_path, SETTINGS, None)
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    _begun(tmp_path)
    for step, state in ((9, "{}"), (10, '{"epo')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-11").mkdir()
    assert run_folder.start(tmp_path, SETTINGS, "true", overwrite=False) == str(tmp_path / "checkpoint-9")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("IoError: No space left")])
def test_full_disk_leaves_the_former_run_intact(tmp_path: Path, error: Exception) -> None:
    folder = tmp_path / "run"
    _finished(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def save_until_full() -> None:
        with run_folder.replacing(folder) as staging:
            (staging / "metrics.json").write_text("{")
            raise error

    with pytest.raises(RunError, match="cannot be written: .*No space left"):
        save_until_full()
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_replacing_keeps_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _finished(folder)
    (folder / "old.safetensors").touch()
    (folder / "checkpoint-5").mkdir()
    with run_folder.replacing(folder) as staging:
        (staging / "metrics.json").write_text("{}")
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-5", "metrics.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_other_errors_pass_through_unchanged(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape mismatch") as caught, run_folder.writing(tmp_path):
        raise RuntimeError("shape mismatch")
    assert not isinstance(caught.value, RunError)


def test_unfinished_or_broken_metrics(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no finished run"):
        run_folder.read_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(RunError, match="is not valid JSON"):
        run_folder.read_metrics(tmp_path)
