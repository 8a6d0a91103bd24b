"""The figures of the study of scenes."""

from __future__ import annotations

import random
from pathlib import Path
from statistics import mean

import numpy as np

from coeff_tuning.recipes.plots import figure
from coeff_tuning.studies.rows import Row
from coeff_tuning.studies.scenes import report, scenes

# Okabe and Ito's colours: the start, coefficients, LoRA, both.
_COLOURS = {"linear": "0.35", "coeff": "#D55E00", "lora": "#0072B2", "coeff+lora": "#009E73"}
_TITLES = {"vqa": "colours and counts", "gqa": "places and yes/no", "nlvr": "pairs, true/false"}


def draw(rows: list[Row], path: Path) -> None:
    """A panel for each task and one for the mean: every seed of every method as a dot, the means as bars.

    Args:
        rows: final rows.
        path: PNG to write.
    """
    canvas = figure(13, 3.4)
    methods = [method for method in _COLOURS if report.values(rows, method, "mean")]
    for axes, column in zip(canvas.subplots(1, len(report.COLUMNS)), report.COLUMNS, strict=True):
        for position, method in enumerate(methods):
            found = list(report.values(rows, method, column).values())
            shifts = [position + 0.1 * (index - (len(found) - 1) / 2) for index in range(len(found))]
            axes.plot(shifts, found, "o", color=_COLOURS[method], markersize=5, alpha=0.6, markeredgewidth=0)
            axes.plot([position - 0.32, position + 0.32], [mean(found)] * 2, color=_COLOURS[method], linewidth=2.2)
        axes.set_xticks(range(len(methods)), [method.replace("+", "+\n") for method in methods])
        axes.tick_params(labelsize=8)
        axes.set_title(f"{column}: {_TITLES[column]}" if column in _TITLES else column, fontsize=9)
        axes.set_ylabel("100 CIDEr" if column == "caption" else "score, %", fontsize=8)
        axes.grid(axis="y", alpha=0.3)
    canvas.supxlabel("dot: one seed, bar: mean", fontsize=9)
    canvas.savefig(path, format="png", dpi=120)


def draw_examples(path: Path) -> None:
    """Scenes with a question of each kind; drawn from a seed, no rows are needed.

    Args:
        path: PNG to write.
    """
    source, canvas = random.Random(5), figure(11, 4.6)
    for column, kind in enumerate(("questions", "questions", "captions", "pair", "pair")):
        pair = [scenes.make(source, 2 if kind == "captions" else 4) for _ in range(2)]
        axes = [canvas.add_subplot(2, 5, 1 + column + 5 * line) for line in range(2)]
        for place, scene in zip(axes, pair, strict=True):
            place.imshow(np.asarray(scene.draw()))
            place.axis("off")
            if kind == "questions":
                asked = (" ".join(ask(scene, source)) for ask in (scenes.ask_vqa, scenes.ask_gqa))
                place.set_title("\n".join(asked), fontsize=8)
            elif kind == "captions":
                place.set_title("\nor ".join(scenes.describe(scene)), fontsize=8)
        if kind == "pair":
            statement, holds = scenes.ask_nlvr(pair[0], pair[1], source)
            axes[0].set_title(f"{statement}:\n{str(holds).lower()}", fontsize=8)
    canvas.savefig(path, format="png", dpi=120)
