"""The table of several runs: mean and spread by method, printed, written and drawn."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from coeff_tuning.recipes import plots, run_folder
from coeff_tuning.recipes.extras import require

_ROW_KEYS = (
    "method",
    "seed",
    "accuracy",
    "perplexity",
    "loss",
    "extra_parameters",
    "head_parameters",
    "adapter_bytes",
    "train_seconds",
    "peak_memory_mib",
    "heldout_samples",
)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread by method.

    Args:
        rows: metrics of the runs.

    Returns:
        One entry per method, in the order of the rows; `std` is the sample standard deviation over seeds,
        None for a single seed. Time is the mean over runs that were not interrupted, None without any.
    """
    score = "accuracy" if "accuracy" in rows[0] else "perplexity"
    summary = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        values = np.array([row[score] for row in own])
        seconds = [row["train_seconds"] for row in own if not row.get("resumed")]  # else only what was left to do
        summary.append(
            {
                "method": method,
                "seeds": [row["seed"] for row in own],
                "score": score,
                "mean": float(values.mean()),
                "std": float(values.std(ddof=1)) if len(values) > 1 else None,
                "values": values.tolist(),
                "extra_parameters": own[0]["extra_parameters"],
                "train_seconds": float(np.mean(seconds)) if seconds else None,
                "peak_memory_mib": max(row["peak_memory_mib"] for row in own),
            }
        )
    return summary


def _cells(entry: dict[str, Any]) -> list[str]:
    spread = "" if entry["std"] is None else f" ± {entry['std']:.4f}"
    return [
        entry["method"],
        f"{entry['mean']:.4f}{spread}",
        f"{entry['extra_parameters']:,}",
        "resumed" if entry["train_seconds"] is None else f"{entry['train_seconds']:.1f}",
        f"{entry['peak_memory_mib']:,.0f}",
    ]


def _header(summary: list[dict[str, Any]]) -> list[str]:
    first = summary[0]
    return [
        "method",
        f"{first['score']} ({len(first['seeds'])} seed{'s' * (len(first['seeds']) > 1)})",
        "extra numbers",
        "train s",
        "peak MiB",
    ]


def print_table(summary: list[dict[str, Any]], root: Path) -> None:
    """Print it, and where the files are.

    Args:
        summary: from `summarise`.
        root: folder of the files.
    """
    table = require("rich.table").Table(*_header(summary))
    for entry in summary:
        table.add_row(*_cells(entry))
    console = require("rich.console").Console(soft_wrap=True)
    console.print(table)
    console.print(f"written to {root}: rows.csv, summary.json, summary.md, summary.png", markup=False)


def write_table(root: Path, rows: list[dict[str, Any]], summary: list[dict[str, Any]]) -> None:
    """Write `rows.csv`, `summary.json`, `summary.md` and `summary.png`, each as a whole.

    Args:
        root: folder.
        rows: metrics of the runs.
        summary: from `summarise`.

    Raises:
        RunError: the folder cannot be written.
    """
    keys = [key for key in _ROW_KEYS if any(key in row for row in rows)]

    def write_csv(file: TextIO) -> None:
        writer = csv.DictWriter(file, keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)

    def write_markdown(file: TextIO) -> None:
        for cells in (_header(summary), ["---"] * 5, *map(_cells, summary)):
            file.write(f"| {' | '.join(cells)} |\n")

    with run_folder.writing(root):
        _replace(root / "rows.csv", write_csv)
        _replace(root / "summary.json", lambda file: json.dump(summary, file, indent=2))
        _replace(root / "summary.md", write_markdown)
        partial = root / ".summary.png"
        _plot(summary, partial)
        os.replace(partial, root / "summary.png")


def _replace(path: Path, write: Callable[[TextIO], object]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        write(file)
    os.replace(partial, path)


def _plot(summary: list[dict[str, Any]], path: Path) -> None:
    canvas = plots.figure(1.2 * len(summary) + 2.2, 3.4)
    axes = canvas.subplots()
    for position, entry in enumerate(summary):
        axes.errorbar(position, entry["mean"], yerr=entry["std"] or 0, fmt="o", markersize=7, capsize=5, color="C0")
        axes.plot([position + 0.15] * len(entry["values"]), entry["values"], ".", color="0.6", markersize=6)
    names = [f"{entry['method']}\n+{entry['extra_parameters']:,}" for entry in summary]
    axes.set_xticks(range(len(summary)), names)
    axes.set_xlim(-0.5, len(summary) - 0.5)
    axes.set(ylabel=f"held-out {summary[0]['score']}", title="mean and spread over seeds; each seed in grey")
    axes.title.set_fontsize(9)
    axes.grid(axis="y", alpha=0.3)
    canvas.savefig(path, format="png", dpi=120)
