"""Search on train800 and val200, final runs on train800val200 and test; one row for each, finished ones are kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from coeff_tuning.studies import rows
from coeff_tuning.studies.grid import Grid
from coeff_tuning.studies.vtab import data, report
from coeff_tuning.studies.vtab.recipes import RECIPES
from coeff_tuning.studies.vtab.tasks import GROUP_OF
from coeff_tuning.studies.vtab.training import Job, Options, fit

STUDY = "vtab"
# What must not differ between rows of one folder.
_SETTINGS = ("model", "pretrained", "normalise", "epochs", "search")


class Study:
    """Search and final runs of VTAB-1k, into a folder of rows.

    Args:
        root: folder of all tasks.
        folder: for `rows.jsonl` and `search.jsonl`.
        options: what is the same for all runs.
    """

    def __init__(self, root: Path, folder: Path, options: Options) -> None:
        self.root, self.options = root, options
        self.grid = Grid(STUDY, folder)
        self.grid.check(lambda _: self._fixed())

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
        for task in {job.task: None for job in jobs if self.grid.find("final", job._asdict()) is None}:
            for split in ("train800val200", "test"):
                data.check_images(lists[task][split], f"reading {task}/{split}")
        for number, job in enumerate(jobs, start=1):
            is_done = self.grid.find("final", job._asdict()) is not None
            done = ": done" if is_done else ""
            print(f"[{number}/{len(jobs)}] {job.task}, {job.method}, seed {job.seed}{done}", flush=True)
            if not is_done:
                self._final(job, lists[job.task])
        return self.grid.stored["final"]

    def _final(self, job: Job, lists: dict[str, Any]) -> None:
        recipe = RECIPES[job.method]
        chosen: rows.Row = {"settings": recipe.settings, "val200": None}
        if self.options.search and recipe.grid:

            def measure(settings: dict[str, float]) -> rows.Row:
                found = fit(job, settings, (lists["train800"], lists["val200"]), self.options)
                return {**self._about(job), **found}

            best = self.grid.search(job._asdict(), recipe.candidates(), measure, lambda row: row["accuracy"])
            chosen = {"settings": best["settings"], "val200": best["accuracy"]}
        measured = fit(job, chosen["settings"], (lists["train800val200"], lists["test"]), self.options)
        self.grid.store("final", job._asdict(), {**self._about(job), **chosen, **measured})

    def _about(self, job: Job) -> rows.Row:
        recipe = {key: value for key, value in asdict(RECIPES[job.method]).items() if key not in ("settings", "grid")}
        return {"group": GROUP_OF[job.task], **self._fixed(), "recipe": recipe}

    def _fixed(self) -> dict[str, Any]:
        return {name: getattr(self.options, name) for name in _SETTINGS}


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
