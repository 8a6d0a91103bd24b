"""Table and contact sheet of the digits that each method draws."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib import pyplot as plt
from safetensors.torch import load_file
from torch import Tensor

from coeff_tuning.studies.tables import markdown

FIGURES = ("concept", "kept", "drift", "nearest", "copies")
TITLES = {"embedding": "embedding alone", "coeff": "coefficients", "lora": "LoRA r=4", "coeff+lora": "both"}


def summarize(rows: list[dict[str, Any]]) -> str:
    """A table for a page: mean and standard deviation over the seeds."""
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["prior"]), []).append(row)
    lines = []
    for (method, prior), found in groups.items():
        counts = " + ".join(f"{count:,} {kind}" for kind, count in found[0]["numbers"].items())
        cells = [TITLES.get(method, method), "yes" if prior else "no", counts or "none"]
        for figure in FIGURES:
            values = [row[figure] for row in found]
            spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{spread}")
        lines.append(cells)
    return markdown(["method", "prior images", "numbers trained", *FIGURES], lines)


def sheet(folder: Path, rows: list[dict[str, Any]], methods: Sequence[str]) -> None:
    """Write `sheet.png`: base model and methods (with prior images, seed 0), every row from the same noise.

    Args:
        folder: of the run.
        rows: its rows.
        methods: one row each, below the base model's.
    """
    figure, axes = plt.subplots(len(methods) + 2, 1, figsize=(11, 1.15 * (len(methods) + 2)))
    base = load_file(folder / "base-alone-0.safetensors")
    show(axes[0], base["shots"], "the 8 training images of the new class, 9")
    for axis, method in zip(axes[1:], ("base", *methods), strict=True):
        prior = method != "base"
        row = next(r for r in rows if (r["method"], r["prior"], r["seed"]) == (method, prior, 0))
        drawn = load_file(folder / f"{method}-{'prior' if prior else 'alone'}-0.safetensors")
        each = len(drawn["old"]) // 9
        old = drawn["old"].reshape(9, each, 1, 8, 8)[:, 0]
        trained = f"{sum(row['numbers'].values()):,} numbers" if prior else "nothing trained"
        title = f"{TITLES.get(method, 'base model')}, {trained}: {row['concept']:.0%} of new class are 9, "
        title += f"{row['kept']:.0%} of old classes right, drift {row['drift']:.3f}"
        show(axis, torch.cat([drawn["new"][:10], torch.ones(1, 1, 8, 8), old]), title, gap=len(drawn["new"][:10]))
    figure.text(
        0.01, 0.005, "Left of the gap: new class. Right: old classes 0 to 8. Same noise in each row.", fontsize=8
    )
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    figure.savefig(folder / "sheet.png", dpi=110)
    plt.close(figure)


def show(axis: Any, images: Tensor, title: str, gap: int | None = None) -> None:
    """Draw images side by side, dark on light; the one at `gap` is left white."""
    tiles = torch.ones(20, 9, 9)
    tiles[: len(images), :8, :8] = 1 - (images[:, 0] + 1) / 2
    if gap is not None:
        tiles[gap] = 1
    axis.imshow(torch.cat(list(tiles), dim=1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set_title(title, fontsize=9, loc="left", pad=3)
    axis.axis("off")
