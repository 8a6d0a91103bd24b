"""Rows of a study: one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.run_folder import writing

Row = dict[str, Any]


def read(path: Path, study: str) -> list[Row]:
    """Rows of a file.

    Args:
        path: written by `write`.
        study: the study that they must be of.

    Returns:
        The rows; none if there is no file.

    Raises:
        RunError: a line holds something else; it is named.
    """
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or row.get("study") != study:
            raise RunError(f"{path}, line {number}: must be a row of 'coeff-tuning study {study}'; got {line[:60]!r}")
        found.append(row)
    return found


def write(path: Path, rows: list[Row]) -> None:
    """Replace a file of rows.

    Args:
        path: the file; its folder is created.
        rows: what it will hold.
    """
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: whoever is killed meanwhile leaves the former one.

    Args:
        path: the file; its folder is created.
        text: what it will hold.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
