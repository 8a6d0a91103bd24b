"""The folder a run leaves behind: nothing in it is replaced before its successor is complete."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.extras import require

METRICS_FILE = "metrics.json"
CONFIG_FILE = "config.yaml"
_CHECKPOINTS = "checkpoint-*"


def start(folder: Path, settings: dict[str, Any], resume: str | None, *, overwrite: bool) -> str | None:
    """Decide, before any work is done, whether a run may use a folder; nothing is written.

    Args:
        folder: the run folder.
        settings: what `config.yaml` will hold.
        resume: `--resume_from_checkpoint`: a checkpoint folder, `true` for the newest complete one, or None.
        overwrite: whether a run may be replaced.

    Returns:
        The checkpoint to resume from, or None to start at the beginning.

    Raises:
        RunError: the folder holds a run or other files, or was made with other settings.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None if resume is None or resume.lower() == "true" else resume
    is_done = (folder / METRICS_FILE).exists()
    if not is_done and not (folder / CONFIG_FILE).exists():
        raise RunError(f"{folder} holds files that are not a run's; choose another --output_dir")
    if not (overwrite or resume) and (is_done or any(folder.glob(_CHECKPOINTS))):
        hint = "" if is_done else "--resume_from_checkpoint true goes on with it, "
        raise RunError(
            f"{folder} holds {'a run' if is_done else 'an interrupted run'}; {hint}--overwrite_output_dir replaces "
            "it, another --output_dir leaves it alone"
        )
    if resume:
        check_settings(folder, settings)
    return _newest_checkpoint(folder) if resume and resume.lower() == "true" else resume


def claim(folder: Path, settings: dict[str, Any], checkpoint: str | None) -> None:
    """Mark a folder as a run's, once nothing can be wrong with model and data any more.

    Args:
        folder: the run folder; created where it does not exist.
        settings: what `config.yaml` will hold.
        checkpoint: from `start`; without one, checkpoints of an earlier run are removed.

    Raises:
        RunError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if checkpoint is None:
            for stale in folder.glob(_CHECKPOINTS):
                shutil.rmtree(stale)
        if not (folder / METRICS_FILE).exists():
            _write_text(folder / CONFIG_FILE, require("yaml").safe_dump(settings, sort_keys=False))


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """A run that is continued or reused must have been started with these settings.

    Args:
        folder: a run folder with a `config.yaml`.
        settings: what it is compared with.

    Raises:
        RunError: they differ; the keys are named.
    """
    before = {"processes": 1, **require("yaml").safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))}
    settings = {"processes": 1, **settings}
    changed = [k for k in sorted(before.keys() | settings.keys()) if before.get(k) != settings.get(k)]
    if changed:
        raise RunError(
            f"{folder} was run with other settings: "
            + ", ".join(f"{k} was {before.get(k)!r} and is now {settings.get(k)!r}" for k in changed)
            + ". Choose another --output_dir, or the former settings"
        )


def read_metrics(folder: Path) -> dict[str, Any]:
    """What a finished run measured.

    Args:
        folder: a run folder.

    Returns:
        The content of `metrics.json`.

    Raises:
        RunError: the folder holds no finished run.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        raise RunError(f"{folder} holds no finished run ({METRICS_FILE} is missing)")
    try:
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}") from None


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Collect the files of a finished run beside its folder, then put them in place at once.

    Args:
        folder: the run folder; its checkpoints are kept.

    Yields:
        An empty folder on the same disk. If the block raises, it is removed and the run folder is as before.
    """
    with writing(folder):
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.partial-"))
        try:
            staging.chmod(0o755)
            yield staging
            former = staging.with_name(f"{staging.name}-former")
            os.rename(folder, former)
            try:
                os.rename(staging, folder)
            except OSError:
                os.rename(former, folder)
                raise
            for checkpoint in former.glob(_CHECKPOINTS):
                os.rename(checkpoint, folder / checkpoint.name)
            shutil.rmtree(former)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the ways in which libraries report a failed write into one error.

    Args:
        folder: what is written to, for the message.

    Yields:
        Nothing.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise RunError(f"{folder} cannot be written: {error}; files that were there before are intact") from error


def _newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint whose last file is there and whole; a killed run may leave a half-written one."""
    found = sorted(folder.glob(_CHECKPOINTS), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(checkpoint)
    return None


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
