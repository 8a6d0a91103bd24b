"""Search on train800 and val200, final runs on train800val200 and test; one row for each, finished ones are kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from coeff_tuning.bench.rows import context
from coeff_tuning.errors import RunError
from coeff_tuning.studies import rows
from coeff_tuning.studies.vtab import data, report
from coeff_tuning.studies.vtab.recipes import RECIPES
from coeff_tuning.studies.vtab.tasks import GROUP_OF
from coeff_tuning.studies.vtab.training import Job, Options, fit

STUDY = "vtab"
# What must not differ between rows of one folder.
_SETTINGS = ("model", "pretrained", "normalise", "epochs", "search")


class Study:
    """A folder of rows that fills up.

    Args:
        root: folder of all tasks.
        folder: for `rows.jsonl` and `search.jsonl`.
        options: what is the same for all runs.
    """

    def __init__(self, root: Path, folder: Path, options: Options) -> None:
        self.root, self.options = root, options
        self.files = {"final": folder / "rows.jsonl", "search": folder / "search.jsonl"}
        self.stored = {stage: rows.read(path, STUDY) for stage, path in self.files.items()}
        self._check_settings()

    def run(self, tasks: list[str], methods: list[str], seeds: list[int]) -> list[rows.Row]:
        """Do what has not been done yet.

        Args:
            tasks: some of `tasks.CLASSES`.
            methods: some of `recipes.RECIPES`.
            seeds: seeds.

        Returns:
            All rows of the folder.
        """
        jobs = [Job(task, method, seed) for task in tasks for method in methods for seed in seeds]
        lists = {task: {split: data.read_list(self.root, task, split) for split in data.SPLITS} for task in tasks}
        for task in {job.task: None for job in jobs if self._find("final", job) is None}:
            for split in ("train800val200", "test"):
                data.check_images(lists[task][split], f"reading {task}/{split}")
        for number, job in enumerate(jobs, start=1):
            is_done = self._find("final", job) is not None
            done = ": done" if is_done else ""
            print(f"[{number}/{len(jobs)}] {job.task}, {job.method}, seed {job.seed}{done}", flush=True)
            if not is_done:
                self._final(job, lists[job.task])
        return self.stored["final"]

    def _final(self, job: Job, lists: dict[str, Any]) -> None:
        recipe = RECIPES[job.method]
        chosen: rows.Row = {"settings": recipe.settings, "val200": None}
        if self.options.search and recipe.grid:
            best = self._search(job, lists)
            chosen = {"settings": best["settings"], "val200": best["accuracy"]}
        measured = fit(job, chosen["settings"], (lists["train800val200"], lists["test"]), self.options)
        self._store("final", job, {**chosen, **measured})

    def _search(self, job: Job, lists: dict[str, Any]) -> rows.Row:
        """The candidate that is best on val200, the first of equals."""
        tried = []
        for settings in RECIPES[job.method].candidates():
            row = self._find("search", job, settings)
            if row is None:
                print(f"  search: {settings}", flush=True)
                measured = fit(job, settings, (lists["train800"], lists["val200"]), self.options)
                row = self._store("search", job, {"settings": settings, **measured})
            tried.append(row)
        return max(tried, key=lambda row: row["accuracy"])

    def _find(self, stage: str, job: Job, settings: dict[str, float] | None = None) -> rows.Row | None:
        for row in self.stored[stage]:
            is_same = settings is None or row["settings"] == settings
            if all(row[key] == value for key, value in job._asdict().items()) and is_same:
                return row
        return None

    def _store(self, stage: str, job: Job, measured: rows.Row) -> rows.Row:
        recipe = asdict(RECIPES[job.method])
        row = {
            "study": STUDY,
            "stage": stage,
            **job._asdict(),
            "group": GROUP_OF[job.task],
            **{name: getattr(self.options, name) for name in _SETTINGS},
            "recipe": {key: value for key, value in recipe.items() if key not in ("settings", "grid")},
            **measured,
            **context("cuda" if torch.cuda.is_available() else "cpu"),
        }
        self.stored[stage].append(row)
        rows.write(self.files[stage], self.stored[stage])
        return row

    def _check_settings(self) -> None:
        for stage, path in self.files.items():
            for row in self.stored[stage]:
                changed = [name for name in _SETTINGS if row[name] != getattr(self.options, name)]
                if changed:
                    name = changed[0]
                    raise RunError(
                        f"{path} was made with {name} {row[name]!r}, now it is {getattr(self.options, name)!r}; choose "
                        "another --output_dir, or the former settings"
                    )


def study(
    root: Path, folder: Path, tasks: list[str], methods: list[str], seeds: list[int], options: Options
) -> list[rows.Row]:
    """Run what is missing, then print and write the table.

    Args:
        root: folder of all tasks.
        folder: for rows and `summary.md`.
        tasks: some of `tasks.CLASSES`.
        methods: some of `recipes.RECIPES`.
        seeds: seeds.
        options: what is the same for all runs.

    Returns:
        All rows of the folder.
    """
    found = Study(root, folder, options).run(tasks, methods, seeds)
    report.show(found)
    rows.write_text(folder / "summary.md", report.page(found))
    print(f"written to {folder}: rows.jsonl, search.jsonl, summary.md")
    return found
