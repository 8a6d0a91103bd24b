"""The figure of what was learnt, made of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from coeff_tuning.recipes.plots import figure
from coeff_tuning.studies.learnt import report
from coeff_tuning.studies.rows import Row


def draw(rows: list[Row], path: Path) -> None:
    """A line of panels for each setting: the mean delta of three layers, then the singular values of all layers.

    Args:
        rows: rows.
        path: PNG to write.
    """
    names = report.settings_of(rows)
    canvas = figure(12.5, 3.3 * len(names))
    grid = canvas.subplots(len(names), 4, squeeze=False)
    for line, name in zip(grid, names, strict=True):
        found = report.deltas(rows, name)  # (seeds, layers, H, H)
        centre = found.mean(0)
        limit = float(np.abs(centre).max())
        chosen = sorted({0, len(centre) // 2, len(centre) - 1})
        for axes in line[len(chosen) : 3]:
            axes.axis("off")
        for axes, layer in zip(line, chosen, strict=False):
            image = axes.imshow(centre[layer], cmap="RdBu_r", vmin=-limit, vmax=limit)
            axes.set_title(f"{name}, layer {layer}: mean of {len(found)} seeds", fontsize=9)
            axes.set(xlabel="attention map of head", ylabel="output head")
            axes.set_xticks(range(0, centre.shape[-1], 2))
            axes.set_yticks(range(0, centre.shape[-1], 2))
        canvas.colorbar(image, ax=line[:3].tolist(), shrink=0.8).set_label("coeff - identity")
        _spectra(line[3], found)
    canvas.savefig(path, format="png", dpi=120)


def _spectra(axes: Any, found: np.ndarray) -> None:
    values = np.linalg.svd(found, compute_uv=False).mean(0)  # (layers, H)
    values = values / values.sum(-1, keepdims=True)
    generator = np.random.default_rng(0)
    noise = np.linalg.svd(generator.standard_normal((200, *found.shape[-2:])), compute_uv=False)
    noise = (noise / noise.sum(-1, keepdims=True)).mean(0)
    places = range(1, found.shape[-1] + 1)
    for layer, line in enumerate(values):
        label = {0: "a layer each, mean of seeds"}.get(layer)
        axes.plot(places, line, color="#D55E00", alpha=0.45, linewidth=1.2, label=label)
    axes.plot(places, noise, "--", color="0.2", label="random matrices")
    axes.set(xlabel="singular value of delta", ylabel="share of their sum", ylim=(0, None))
    axes.set_xticks(range(1, found.shape[-1] + 1, 1 + found.shape[-1] // 8))
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
