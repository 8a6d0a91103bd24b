"""Search on validation images, final runs on test images; one row for each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.run_folder import writing
from coeff_tuning.studies import rows
from coeff_tuning.studies.grid import Grid
from coeff_tuning.studies.heads import experiment, picture, report

STUDY = "heads"
SEARCH_SEED = 100  # none of the usual seeds of final runs
RATES = (0.03, 0.1)


def parse_heads(text: str) -> list[int]:
    """Read `1,2,4`.

    Args:
        text: whole numbers that divide the width, separated by commas.

    Returns:
        The numbers.

    Raises:
        RunError: it is something else.
    """
    width = experiment.SETUP["width"]
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 and width % int(part) == 0 for part in parts):
        raise RunError(f"--heads must be whole numbers that divide the width {width}, like 1,2,4; got {text!r}")
    return [int(part) for part in parts]


def run_all(folder: Path, heads: list[int], seeds: list[int]) -> list[rows.Row]:
    """Do what has not been done yet: one seed after the other, in each one number of heads after the other.

    Args:
        folder: for `rows.jsonl` and `search.jsonl`.
        heads: numbers of heads.
        seeds: seeds.

    Returns:
        All rows of final runs in the folder.
    """
    grid = Grid(STUDY, folder)
    grid.check(lambda _: {"setup": experiment.SETUP})
    jobs = [
        {"heads": number, "method": method, "seed": seed}
        for seed in seeds
        for number in heads
        for method in experiment.METHODS
        if (number, method) != (1, "scales")  # one coefficient is a scale
    ]
    for index, job in enumerate(jobs, start=1):
        is_done = grid.find("final", job) is not None
        name = f"{job['heads']} heads, {job['method']}, seed {job['seed']}{': done' if is_done else ''}"
        print(f"[{index}/{len(jobs)}] {name}", flush=True)
        if not is_done:
            chosen = _choose(grid, job)
            grid.store("final", job, {"settings": chosen, **_measure(job, chosen, on_validation=False)})
    return grid.stored["final"]


def _choose(grid: Grid, job: dict[str, Any]) -> dict[str, Any]:
    if experiment.METHODS[job["method"]] is None:
        return {}
    search = {**job, "seed": SEARCH_SEED}
    candidates = [{"coeff_learning_rate": rate} for rate in RATES]
    best = grid.search(
        search,
        candidates,
        lambda tried: _measure(search, tried, on_validation=True),
        lambda row: row["accuracy"],
    )
    return dict(best["settings"])


def _measure(job: dict[str, Any], settings: dict[str, Any], *, on_validation: bool) -> rows.Row:
    started = time.perf_counter()
    rate = settings.get("coeff_learning_rate")
    measured = experiment.run(job["heads"], job["method"], job["seed"], rate, on_validation=on_validation)
    return {**measured, "seconds": round(time.perf_counter() - started, 2), "setup": experiment.SETUP}


def write(folder: Path) -> None:
    """Print and write table and figure from the rows that a folder holds; nothing is trained.

    Args:
        folder: with `rows.jsonl`; `summary.md` and `heads.png` are replaced.

    Raises:
        RunError: it holds no rows.
    """
    grid = Grid(STUDY, folder)
    found = grid.stored["final"]
    if not found:
        raise RunError("there are no rows yet; run the study without --report first")
    report.show(found)
    rows.write_text(folder / "summary.md", report.page(found, grid.stored["search"]))
    with writing(folder):
        picture.draw(found, folder / "heads.png")
    print(f"written to {folder}: rows.jsonl, search.jsonl, summary.md, heads.png")
