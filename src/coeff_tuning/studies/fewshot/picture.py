"""The figure of the few-shot study, made of rows."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from coeff_tuning.recipes.plots import figure
from coeff_tuning.studies.fewshot import scores
from coeff_tuning.studies.fewshot.methods import FROZEN, MAIN, PROBE
from coeff_tuning.studies.rows import Row

# Okabe and Ito's colours: the start, coefficients, other methods, combinations.
_COLOURS = {PROBE: "0.35", FROZEN: "0.35", "coeff": "#D55E00", "lora": "#0072B2", "dora": "#0072B2"}
_COMBINED = "#009E73"


def draw(rows: list[Row], path: Path) -> None:
    """A panel for each setting that was compared: every seed of every method as a dot, the means as bars.

    Args:
        rows: final rows.
        path: PNG to write.
    """
    main = [row for row in rows if row["method"] in MAIN]
    names = scores.settings_of([row for row in main if row["method"] not in (PROBE, FROZEN)])
    columns = len(names) if len(names) < 4 else 2 if len(names) == 4 else 3
    lines = -(-len(names) // columns)
    canvas = figure(3.7 * columns, 3.3 * lines + 0.5)
    grid = canvas.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    for axes, name in zip(grid.flat, names, strict=False):
        _panel(axes, main, name)
    canvas.supxlabel("method, and numbers trained beside the head; dot: one seed, bar: mean, dashes: start", fontsize=9)
    canvas.savefig(path, format="png", dpi=120)


def _panel(axes: Any, rows: list[Row], setting: str) -> None:
    methods = [method for method in MAIN if scores.values(rows, setting, method)]
    numbers = {row["method"]: row["extra_parameters"] for row in rows if row["setting"] == setting}
    for position, method in enumerate(methods):
        found = list(scores.values(rows, setting, method).values())
        colour = _COLOURS.get(method, _COMBINED)
        shifts = [position + 0.09 * (index - (len(found) - 1) / 2) for index in range(len(found))]
        axes.plot(shifts, found, "o", color=colour, markersize=4, alpha=0.6, markeredgewidth=0)
        axes.plot([position - 0.32, position + 0.32], [mean(found)] * 2, color=colour, linewidth=2.2)
        if method in (PROBE, FROZEN):
            axes.axhline(mean(found), color=colour, linewidth=0.8, linestyle="--", zorder=0)
    axes.set_xticks(range(len(methods)), [f"{m.replace('+', '+' + chr(10))}\n{_short(numbers[m])}" for m in methods])
    axes.tick_params(labelsize=8)
    is_accuracy = any("accuracy" in row for row in rows if row["setting"] == setting)
    axes.set_title(setting, fontsize=10)
    axes.set_ylabel("test accuracy, %" if is_accuracy else "test perplexity (lower is better)", fontsize=8)
    axes.grid(axis="y", alpha=0.3)


def _short(number: int) -> str:
    return f"{number:,}" if number < 10_000 else f"{number / 1000:,.0f}k"
