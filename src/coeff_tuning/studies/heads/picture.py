"""The figure of the study of heads, made of rows."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev
from typing import Any

from coeff_tuning.recipes.plots import figure
from coeff_tuning.studies.heads import report
from coeff_tuning.studies.rows import Row

# Okabe and Ito's colours; markers differ as well.
_STYLES: dict[str, dict[str, Any]] = {
    "probe": {"color": "0.35", "marker": "s"},
    "scales": {"color": "#0072B2", "marker": "^"},
    "coefficients": {"color": "#D55E00", "marker": "o"},
}
_ADDED = ("scales", "coefficients")


def draw(rows: list[Row], path: Path) -> None:
    """Left: what is added to the probe, against H. Right: the accuracies that this is the difference of.

    Args:
        rows: final rows.
        path: PNG to write.
    """
    canvas = figure(9.5, 4.2)
    left, right = canvas.subplots(1, 2)
    for method in _ADDED:
        _line(left, {heads: report.gains(rows, heads, method) for heads in report.numbers_of_heads(rows)}, method)
    left.axhline(0, color=_STYLES["probe"]["color"], linewidth=0.9, linestyle="--")
    left.set_ylabel("test accuracy above the probe, points")
    for method in _STYLES:
        found = {h: list(report.accuracies(rows, h, method).values()) for h in report.numbers_of_heads(rows)}
        _line(right, found, method)
    right.set_ylabel("test accuracy, %")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(report.numbers_of_heads(rows), [f"{heads}" for heads in report.numbers_of_heads(rows)])
        axes.set_xlabel("heads H of a model of the same width")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=9)
    seeds = len({row["seed"] for row in rows})
    canvas.supxlabel(f"line: mean of {seeds} seeds, bar: standard deviation, dot: one seed; last step", fontsize=8)
    canvas.savefig(path, format="png", dpi=120)


def _line(axes: Any, found: dict[int, list[float]], method: str) -> None:
    kept = {heads: values for heads, values in found.items() if values}
    style = _STYLES[method]
    shift = 1 + 0.05 * (list(_STYLES).index(method) - 1)  # bars side by side
    places = [heads * shift for heads in kept]
    spread = [stdev(values) if len(values) > 1 else 0.0 for values in kept.values()]
    means = [mean(values) for values in kept.values()]
    axes.errorbar(places, means, spread, label=method, capsize=3, linewidth=1.6, markersize=6, **style)
    for place, values in zip(places, kept.values(), strict=True):
        axes.plot([place] * len(values), values, ".", color=style["color"], markersize=5, alpha=0.5)
