"""The two pictures of a run: how it learned, and what the coefficients became."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coeff_tuning.recipes.extras import require

if TYPE_CHECKING:
    from torch import nn


def figure(width: float, height: float) -> Any:
    """A matplotlib figure that needs no display.

    Args:
        width: in inches.
        height: in inches.

    Returns:
        A `Figure`.
    """
    return require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def plot_curves(history: list[dict[str, float]], path: Path) -> None:
    """Training loss, and held-out metrics where they were measured, over epochs.

    Args:
        history: `log_history` of a `Trainer`.
        path: PNG to write.
    """
    losses = [(row["epoch"], row["loss"]) for row in history if "loss" in row]
    metric = "eval_accuracy" if any("eval_accuracy" in row for row in history) else "eval_loss"
    scores = [(row["epoch"], row[metric]) for row in history if metric in row and "epoch" in row]
    canvas = figure(8, 3)
    left, right = canvas.subplots(1, 2)
    for axes, points, title in ((left, losses, "training loss"), (right, scores, metric.replace("eval_", "held-out "))):
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(x, y, marker="o" if len(x) < 40 else None, markersize=3)
        axes.set(title=title, xlabel="epoch")
        axes.set_xlim(0, max((row.get("epoch", 0) for row in history), default=1) * 1.05)
        axes.grid(alpha=0.3)
    if len(scores) == 1:
        right.annotate(f"{scores[0][1]:.3f}", scores[0], xytext=(-34, 6), textcoords="offset points")
    canvas.savefig(path, dpi=120)


def plot_probe(scores: list[dict[str, float]], path: Path) -> None:
    """Cross-validated accuracy of the linear probe over its regularisation strength.

    Args:
        scores: from `probe.fit_probe`.
        path: PNG to write.
    """
    canvas = figure(5, 3)
    axes = canvas.subplots()
    points = [(row["C"], row["accuracy"]) for row in scores if "accuracy" in row]
    x, y = zip(*points, strict=True) if points else ((), ())
    axes.semilogx(x, y, marker="o", markersize=3)
    axes.set(title="linear probe", xlabel="inverse regularisation strength C", ylabel="cross-validated accuracy")
    axes.grid(alpha=0.3)
    canvas.savefig(path, dpi=120)


def plot_coefficients(layers: dict[str, np.ndarray], path: Path) -> None:
    """One heat map per layer of `coeff - identity`: white is the pretrained model.

    Args:
        layers: `(H, H)` matrices by layer name.
        path: PNG to write.
    """
    columns = min(6, len(layers))
    rows = math.ceil(len(layers) / columns)
    canvas = figure(1.9 * columns + 1.2, 1.9 * rows + 0.6)
    grid = canvas.subplots(rows, columns, squeeze=False)
    offsets = {name: matrix - np.eye(len(matrix)) for name, matrix in layers.items()}
    limit = max(max(float(np.abs(m).max()) for m in offsets.values()), 1e-6)
    for axes in grid.flat[len(layers) :]:
        axes.axis("off")
    for axes, (name, offset) in zip(grid.flat, offsets.items(), strict=False):
        image = axes.imshow(offset, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_title(name, fontsize=9)
        ticks = [0, len(offset) - 1]
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        axes.tick_params(labelsize=7, length=2)
    canvas.supxlabel("attention map of head", fontsize=9)
    canvas.supylabel("output head", fontsize=9)
    bar = canvas.colorbar(image, ax=grid, shrink=min(1.0, 2 / rows), aspect=25)
    bar.set_label("coeff - identity", fontsize=9)
    canvas.savefig(path, dpi=120)


def coefficients_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The matrices that a model applies.

    Args:
        model: any model.

    Returns:
        `(H, H)` by a short name: the layer's number where module names hold one, with the parent's name where a
        number occurs twice (encoder and decoder).
    """
    from coeff_tuning import CoeffLayer

    found = {name: m for name, m in model.named_modules() if isinstance(m, CoeffLayer)}
    numbers = {name: re.findall(r"\.(\d+)\.", name) for name in found}
    short = {name: f"layer {n[-1]}" if n else name.rpartition(".")[0] for name, n in numbers.items()}
    if len(set(short.values())) < len(short):
        short = {name: name.removesuffix(".coeff").replace("base_model.model.", "")[-30:] for name in found}
    return {short[name]: layer.coeff_in_eval().float().cpu().numpy() for name, layer in found.items()}
