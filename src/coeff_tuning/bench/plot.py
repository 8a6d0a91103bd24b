"""Time and memory against one size of the call, from rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coeff_tuning.bench.report import machine
from coeff_tuning.bench.rows import Row
from coeff_tuning.bench.shapes import PASSES
from coeff_tuning.errors import BenchError
from coeff_tuning.recipes.plots import figure

_SIZES = {"length": "L, tokens", "heads": "H, heads", "batch": "B, batch"}
_STYLES = {"sdpa": "0.45", "reference": "C3", "chunked": "C0", "native": "C2", "triton": "C4"}
_PANELS = (("median_ms", "time in ms"), ("peak_above_inputs_mib", "peak memory above inputs in MiB"))


def plot_op(found: list[Row], path: Path) -> None:
    """Draw time and peak memory of every backend, both axes logarithmic; a row of panels for each pass.

    Args:
        found: rows of `bench op` in which one of L, H and B takes several values.
        path: PNG to write.

    Raises:
        BenchError: there is nothing to draw a line through.
    """
    good = [row for row in found if row["bench"] == "op" and row["status"] == "ok"]
    size = next((name for name in _SIZES if len({row[name] for row in good}) > 1), None)
    panels = [(key, label) for key, label in _PANELS if any(row.get(key) for row in good)]
    passes = [name for name in PASSES if any(row["measured"] == name for row in good)]
    if size is None or not panels:
        raise BenchError(
            "a plot needs rows of 'bench op' with several lengths, heads or batches, for example of "
            f"--shapes sweep-length; got {len(good)} rows with one of each"
        )
    canvas = figure(4.8 * len(panels), 3.2 * len(passes) + 0.7)
    grid = canvas.subplots(len(passes), len(panels), squeeze=False)
    for line, measured in zip(grid, passes, strict=True):
        rows = [row for row in good if row["measured"] == measured]
        for axes, (key, label) in zip(line, panels, strict=True):
            _panel(axes, rows, size, key)
            axes.set(title=f"{measured}: {label}")
            axes.title.set_fontsize(10)
    for axes in grid[-1]:
        axes.set_xlabel(_SIZES[size])
    handles: dict[str, Any] = {}
    for axes in grid.flat:
        handles.update({text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)})
    canvas.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    canvas.supxlabel(f"{_fixed(good, size)}\n{machine(good[0])}", fontsize=8, color="0.35")
    canvas.savefig(path, format="png", dpi=120)


def _panel(axes: Any, rows: list[Row], size: str, key: str) -> None:
    values = sorted({row[size] for row in rows})
    for name in sorted({row["backend"] for row in rows}, key=[*_STYLES, *sorted({r["backend"] for r in rows})].index):
        own = {row[size]: row for row in rows if row["backend"] == name and row.get(key)}  # the last run of each size
        x = sorted(own)
        label = "sdpa (no mixing)" if name == "sdpa" else name
        axes.plot(x, [own[v][key] for v in x], "o-", color=_STYLES.get(name), label=label, markersize=4, linewidth=1.5)
    if key == "peak_above_inputs_mib":
        maps = {row[size]: row["one_array_of_maps_mib"] for row in rows}
        axes.plot(values, [maps[v] for v in values], ":", color="C3", label="one array of maps", linewidth=1.2)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _fixed(rows: list[Row], size: str) -> str:
    """The sizes that stay the same."""
    names = {"batch": "B", "heads": "H", "length": "L", "head_size": "head size"}
    parts = [f"{text} = {rows[0][name]}" for name, text in names.items() if name != size]
    return ", ".join(parts + (["causal"] if rows[0]["is_causal"] else []))
