"""The toy study from seeds to files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from coeff_tuning.bench.rows import context
from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.run_folder import writing
from coeff_tuning.studies import rows
from coeff_tuning.studies.hull import experiment, pictures, report

_FRAMES = 48


def study(seeds: list[int], steps: int, folder: Path) -> list[rows.Row]:
    """Train every layer, print the table, and write rows, figure and animation.

    Args:
        seeds: seeds; the first is drawn.
        steps: training steps.
        folder: for `hull.jsonl`, `hull.png` and `hull.gif`, which are replaced.

    Returns:
        The rows.
    """
    require("scipy")
    track = require("rich.progress").track
    frames = sorted({int(step) for step in np.geomspace(1, steps, _FRAMES)} - {steps} | {0})  # early steps change most
    total = len(seeds) * len(experiment.METHODS) * len(experiment.PLACEMENTS)
    outcomes = list(track(experiment.run_all(seeds, steps, frames), description="training", total=total))
    found = [{**outcome.row, **context("cpu")} for outcome in outcomes]
    rows.write(folder / "hull.jsonl", found)
    last = list(experiment.PLACEMENTS)[-1]
    shown = [o for o in outcomes if o.row["seed"] == seeds[0] and o.row["placement"] == last]
    with writing(folder):
        pictures.draw(found, folder / "hull.png")
        tracks = [np.concatenate([o.track, [o.row["outputs"]]]) for o in shown]
        pictures.animate([o.row for o in shown], tracks, [*frames, steps], folder / "hull.gif")
    report.show(found)
    print(f"written to {folder}: hull.jsonl, hull.png, hull.gif")
    return found
