"""A folder of rows that fills up: searches and final runs, one row for each; what is finished is never run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from coeff_tuning.bench.rows import context
from coeff_tuning.errors import RunError
from coeff_tuning.studies import rows

STAGES = {"final": "rows.jsonl", "search": "search.jsonl"}


class Grid:
    """Rows of a study, in `rows.jsonl` (final runs) and `search.jsonl`.

    A row holds the entries of its job, `settings` (those of the candidate), what was measured, and where. Both files
    are up to date after each run, so that a study that is killed goes on with the same command.

    Args:
        study: name of the study.
        folder: for the two files.

    Attributes:
        stored: rows by stage.
    """

    def __init__(self, study: str, folder: Path) -> None:
        self.study = study
        self.files = {stage: folder / name for stage, name in STAGES.items()}
        self.stored = {stage: rows.read(path, study) for stage, path in self.files.items()}

    def check(self, expected: Callable[[rows.Row], dict[str, Any]]) -> None:
        """Rows that were stored must have been made with the settings of now.

        Args:
            expected: entries that a row must have.

        Raises:
            RunError: a row has others; file, entry and both values are named.
        """
        for stage, path in self.files.items():
            for row in self.stored[stage]:
                for name, value in expected(row).items():
                    if row[name] != value:
                        raise RunError(
                            f"{path} was made with {name} {row[name]!r}, now it is {value!r}; choose another "
                            "--output_dir, or the former settings"
                        )

    def find(self, stage: str, job: dict[str, Any], settings: dict[str, Any] | None = None) -> rows.Row | None:
        """The row of a job.

        Args:
            stage: one of `STAGES`.
            job: entries that tell it from other jobs.
            settings: those of a candidate; None for any.

        Returns:
            The row, None if there is none yet.
        """
        for row in self.stored[stage]:
            is_same = settings is None or row["settings"] == settings
            if is_same and all(row[key] == value for key, value in job.items()):
                return row
        return None

    def store(self, stage: str, job: dict[str, Any], measured: rows.Row) -> rows.Row:
        """Add a row and replace the file at once.

        Args:
            stage: one of `STAGES`.
            job: entries that tell it from other jobs.
            measured: further entries, `settings` among them.

        Returns:
            The row, with machine, versions, commit and date.
        """
        where = context("cuda" if torch.cuda.is_available() else "cpu")
        row = {"study": self.study, "stage": stage, **job, **measured, **where}
        self.stored[stage].append(row)
        rows.write(self.files[stage], self.stored[stage])
        return row

    def search(
        self,
        job: dict[str, Any],
        candidates: Iterable[dict[str, Any]],
        measure: Callable[[dict[str, Any]], rows.Row],
        score: Callable[[rows.Row], Any],
    ) -> rows.Row:
        """Try candidates that were not tried yet.

        Args:
            job: entries that tell it from other jobs.
            candidates: settings to try.
            measure: one run with such settings.
            score: what is largest for the best row.

        Returns:
            The row of the best candidate, the first of equals.
        """
        tried = []
        for settings in candidates:
            row = self.find("search", job, settings)
            if row is None:
                print(f"  search: {settings}", flush=True)
                row = self.store("search", job, {"settings": settings, **measure(settings)})
            tried.append(row)
        return max(tried, key=score)
