"""The figure and the animation of the toy study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.plots import figure
from coeff_tuning.studies.hull.geometry import Hull, Points
from coeff_tuning.studies.rows import Row

HEAD = 0  # the head that is drawn
# Okabe and Ito's colours, told apart by every kind of colour vision; shapes differ as well.
_INSIDE = {"color": "#0072B2", "marker": "o", "label": "output inside the hull"}
_OUTSIDE = {"color": "#D55E00", "marker": "^", "label": "output outside the hull"}
_HULL = {"facecolor": "0.92", "edgecolor": "0.55", "label": "hull of the values"}


def draw(rows: list[Row], path: Path) -> None:
    """One head of the first seed after training: a row of panels for each placement, a column for each method.

    Args:
        rows: rows of the study.
        path: PNG to write.
    """
    own = [row for row in rows if row["seed"] == rows[0]["seed"]]
    placements = list(dict.fromkeys(row["placement"] for row in own))
    canvas = figure(10, 3.3 * len(placements) + 0.6)
    canvas.get_layout_engine().set(hspace=0.06)
    grid = canvas.subplots(len(placements), len(own) // len(placements), squeeze=False)
    for line, placement in zip(grid, placements, strict=True):
        panels = [row for row in own if row["placement"] == placement]
        limits = _limits([np.array(row[key][HEAD]) for row in panels for key in ("values", "targets", "outputs")])
        for axes, row in zip(line, panels, strict=True):
            _panel(axes, row, np.array(row["outputs"][HEAD]), limits)
            axes.set_title(f"targets {placement}, trained: {row['method']}", fontsize=10)
            axes.set_xlabel(f"loss {row['loss_end']:.3g}   (floor of the hull {row['loss_floor']:.3g})", fontsize=9)
    _legend(canvas, grid)
    canvas.supxlabel(f"head {HEAD} of {own[0]['heads']}, seed {own[0]['seed']}; losses are of all heads", fontsize=9)
    canvas.savefig(path, dpi=120)


def animate(rows: list[Row], tracks: list[Points], steps: list[int], path: Path) -> None:
    """Outputs of one head during training, a panel for each method.

    Args:
        rows: one row for each panel.
        tracks: `(frames, H, N, 2)` for each row.
        steps: the training step of each frame.
        path: GIF to write.
    """
    canvas = figure(9, 3.7)
    grid = canvas.subplots(1, len(rows), squeeze=False)
    fixed = [np.array(row[key][HEAD]) for row in rows for key in ("values", "targets")]
    limits = _limits([*fixed, *(track[:, HEAD].reshape(-1, 2) for track in tracks)])
    writer = require("matplotlib.animation").PillowWriter(fps=8)
    with writer.saving(canvas, str(path), dpi=80):
        for index in [*range(len(steps)), *[len(steps) - 1] * 12]:  # the end stays for a while
            for axes, row, track in zip(grid[0], rows, tracks, strict=True):
                axes.clear()
                _panel(axes, row, track[index, HEAD], limits)
                axes.set_title(f"trained: {row['method']}", fontsize=10)
            grid[0, len(rows) // 2].set_xlabel(f"targets {rows[0]['placement']}, step {steps[index]:,}", fontsize=10)
            if index == 0:
                _legend(canvas, grid)
            writer.grab_frame()


def _panel(axes: Any, row: Row, outputs: Points, limits: Points) -> None:
    values, targets = (np.array(row[key][HEAD]) for key in ("values", "targets"))
    hull = Hull(values)
    axes.fill(*hull.vertices.T, zorder=0, **_HULL)
    axes.plot(*values.T, ".", color="0.45", markersize=6, label="value")
    for pair in zip(outputs, targets, strict=True):
        axes.plot(*np.array(pair).T, color="0.7", linewidth=0.8, zorder=1)
    axes.plot(*targets.T, "+", color="black", markersize=12, markeredgewidth=1.0, zorder=4, label="target")
    outside = hull.is_outside(outputs)
    for chosen, style in ((~outside, _INSIDE), (outside, _OUTSIDE)):
        axes.scatter(*outputs[chosen].T, s=56, edgecolor="white", linewidth=0.5, zorder=3, **style)
    axes.set(xlim=limits[:, 0], ylim=limits[:, 1], aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])


def _legend(canvas: Any, grid: Any) -> None:
    handles, labels = grid.flat[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9)


def _limits(points: list[Points]) -> Points:
    """`(2, 2)`: lower and upper corner of all points with a margin."""
    joined = np.concatenate(points)
    low, high = joined.min(0), joined.max(0)
    return np.stack([low - 0.08 * (high - low), high + 0.08 * (high - low)])
