"""Rows: one measured thing each, with everything that is needed to compare it, as JSON."""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from coeff_tuning.errors import BenchError
from coeff_tuning.recipes import environment

Row = dict[str, Any]


def context(device: str) -> Row:
    """Machine, versions, commit, date and command: a part of every row.

    Args:
        device: "cpu" or "cuda".

    Returns:
        The entries.
    """
    return {
        "device": device,
        "cpu": environment.cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["coeff-tuning", *sys.argv[1:]]),
    }


def goal(what: str, value: float, at_most: float | None, **spread: float) -> Row:
    """A figure, and whether it meets its goal.

    Args:
        what: what it is, with its unit or what it is a ratio to.
        value: the figure.
        at_most: the goal, or None where there is none.
        **spread: `q20` and `q80`.

    Returns:
        An entry of a row's `figures`.
    """
    return {
        "what": what,
        "value": value,
        **spread,
        "at_most": at_most,
        "met": None if at_most is None else value <= at_most,
    }


def figure(row: Row, what: str) -> Row | None:
    """The entry of a row's `figures` that says `what`, or None."""
    return next((entry for entry in row["figures"] if entry["what"] == what), None)


def check_path(output: str | None) -> Path | None:
    """Path of `--output`, refused before anything is measured if it cannot be written in the end.

    Args:
        output: a `.jsonl` file, appended to, or a `.json` file, replaced.

    Returns:
        The path, None for None.

    Raises:
        BenchError: it ends otherwise, or its folder does not exist.
    """
    if output is None:
        return None
    path = Path(output)
    if path.suffix not in (".json", ".jsonl"):
        raise BenchError(f"--output must end in .json (replaced) or .jsonl (appended to); got {output!r}")
    if not path.parent.is_dir():
        raise BenchError(f"--output must be in a folder that exists; there is no {path.parent}")
    return path


class Store:
    """Rows of one run; the file is up to date after each `add`, so that an interrupted run leaves what it measured.

    Args:
        output: from `--output`, see `check_path`.

    Attributes:
        rows: all rows so far.
    """

    def __init__(self, output: str | None) -> None:
        self.path = check_path(output)
        self.rows: list[Row] = []

    def add(self, rows: list[Row]) -> None:
        """Append rows to a `.jsonl` file, or write all so far to a `.json` file; one line each.

        Args:
            rows: new ones.
        """
        self.rows += rows
        if self.path is None:
            return
        if self.path.suffix == ".jsonl":
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{json.dumps(row)}\n" for row in rows)
        else:
            lines = ",\n".join(json.dumps(row) for row in self.rows)
            self.path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def read(path: Path) -> list[Row]:
    """Rows of a `.json` or `.jsonl` file.

    Args:
        path: written by a `Store`.

    Returns:
        The rows.

    Raises:
        BenchError: there is no such file, or it holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    except OSError as error:
        raise BenchError(f"rows cannot be read: {error}") from None
    except ValueError as error:
        raise BenchError(f"{path} must hold rows as JSON: {error}") from None
    if not isinstance(found, list) or any(not isinstance(row, dict) or "bench" not in row for row in found):
        raise BenchError(f"{path} must hold rows of 'coeff-tuning bench'; it holds something else")
    return found
