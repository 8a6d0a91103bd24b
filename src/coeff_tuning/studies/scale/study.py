"""Table, figure and rows of what coefficients cost as models grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coeff_tuning.bench import rows as bench_rows
from coeff_tuning.recipes.plots import figure
from coeff_tuning.recipes.run_folder import writing
from coeff_tuning.studies import rows, tables
from coeff_tuning.studies.scale.cost import describe, overheads
from coeff_tuning.studies.scale.shapes import SHAPES

CAPTION = (
    "Counted from published shapes, but for the projected time, which is not a measurement: the FLOP ratio, times "
    "(measured time / FLOP ratio) of forward passes on one CPU; median, and smallest to largest of the stored rows."
)
HEADER = [
    "model",
    "parameters",
    "layers x heads x head size",
    "coefficients",
    "share",
    "adapter",
    "Adam states",
    "attention FLOPs",
    "attention time, projected",
    "source of shapes",
]


def study(measured: Path, folder: Path) -> list[rows.Row]:
    """Count, project, print, and write rows, table and figure.

    Args:
        measured: rows of `bench op`.
        folder: for `rows.jsonl`, `summary.md` and `scale.png`, which are replaced.

    Returns:
        The rows.
    """
    factors = overheads(bench_rows.read(measured))
    found: list[rows.Row] = [{"study": "scale", **describe(shape, factors)} for shape in SHAPES]
    rows.write(folder / "rows.jsonl", found)
    tables.show(CAPTION, HEADER, cells(found))
    rows.write_text(folder / "summary.md", f"{tables.markdown(HEADER, cells(found))}\n\n{CAPTION}\n")
    with writing(folder):
        draw(found, folder / "scale.png")
    print(f"written to {folder}: rows.jsonl, summary.md, scale.png")
    return found


def cells(found: list[rows.Row]) -> tables.Cells:
    """A line for each model.

    Args:
        found: rows.

    Returns:
        Cells of the columns of `HEADER`.
    """
    lines = []
    for row in found:
        time = row["projected_time_ratio"]
        lines.append(
            [
                row["model"],
                f"{row['parameters'] / 1e6:,.0f} M",
                " + ".join(" x ".join(map(str, group)) for group in row["groups"]),
                f"{row['coefficients']:,}",
                f"{100 * row['coefficients'] / row['parameters']:.5f} %",
                f"{row['adapter_bytes'] / 1024:,.1f} KiB",
                f"{row['optimiser_bytes'] / 1024:,.1f} KiB",
                f"{row['flop_ratio']:.3f}",
                f"{time['median']:.2f} ({time['low']:.2f} to {time['high']:.2f})",
                row["source"],
            ]
        )
    return lines


def draw(found: list[rows.Row], path: Path) -> None:
    """Left: coefficients against parameters. Right: the FLOP ratio of attention, and its projected time.

    Args:
        found: rows.
        path: PNG to write.
    """
    canvas = figure(11, 4.6)
    left, right = canvas.subplots(1, 2)
    sizes = [row["parameters"] for row in found]
    left.scatter(sizes, [row["coefficients"] for row in found], color="#D55E00")
    left.set(yscale="log", ylabel="coefficients (sum of H x H)")
    time = [row["projected_time_ratio"] for row in found]
    spread = [[t["median"] - t["low"] for t in time], [t["high"] - t["median"] for t in time]]
    style: dict[str, Any] = {"color": "#0072B2", "capsize": 3, "alpha": 0.7}
    right.errorbar(sizes, [t["median"] for t in time], spread, fmt="^", label="time, projected from one CPU", **style)
    right.scatter(sizes, [row["flop_ratio"] for row in found], color="#D55E00", label="FLOPs, 1 + H / (2d)", zorder=3)
    right.axhline(1, color="0.35", linewidth=0.9, linestyle="--")
    right.set_ylabel("attention with coefficients / without")
    right.legend(frameon=False, fontsize=9, loc="upper left")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="parameters of the model")
        axes.grid(alpha=0.3)
    below = ("ViT-L", "BERT-base", "Qwen2 7B", "Llama 3 70B")  # names that would lie on others
    for row in found:
        offset = (0, -13) if row["model"] in below else (0, 7)
        place = (row["parameters"], row["coefficients"])
        left.annotate(row["model"], place, offset, textcoords="offset points", fontsize=7.5, ha="center")
    left.margins(0.13, 0.1)
    canvas.savefig(path, format="png", dpi=120)
