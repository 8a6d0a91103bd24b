"""Several methods and seeds of one config, side by side in one table."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from coeff_tuning.errors import RunError
from coeff_tuning.recipes import plots, run_folder
from coeff_tuning.recipes.arguments import METHODS
from coeff_tuning.recipes.configuration import parse_run, read_config
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


@dataclass(frozen=True)
class Row:
    """One run of a table.

    Attributes:
        folder: its run folder.
        argv: command line of `train` that runs it, or goes on with it.
    """

    folder: Path
    argv: list[str]

    @property
    def is_done(self) -> bool:
        """Whether it has its result."""
        return (self.folder / run_folder.METRICS_FILE).exists()


def run_in_turn(rows: list[Row]) -> None:
    """Run rows one after the other, each in a process of its own, so that its time and memory are its own.

    Args:
        rows: those without a result.

    Raises:
        RunError: one failed.
    """
    for number, row in enumerate(rows, start=1):
        print(f"[{number}/{len(rows)}] {row.folder.name}", flush=True)
        if subprocess.run([sys.executable, "-m", "coeff_tuning.cli", "train", *row.argv]).returncode != 0:
            raise RunError(f"run {row.folder.name} failed (see above); start the same command again to go on")


def compare(
    config: str,
    methods: list[str],
    seeds: list[int],
    output_dir: str,
    flags: list[str],
    run_rows: Callable[[list[Row]], None] = run_in_turn,
) -> list[dict[str, Any]]:
    """Run what has not been run yet, then print and write the table and the plot.

    A row that is complete is reused; one that was interrupted goes on at its last checkpoint.

    Args:
        config: YAML file with `task` and the flags of `train`.
        methods: some of `arguments.METHODS`.
        seeds: seeds.
        output_dir: one run folder per row, and `rows.csv`, `summary.json`, `summary.md`, `summary.png`.
        flags: further flags for every run.
        run_rows: runs the rows that have no result yet.

    Returns:
        One summary per method.

    Raises:
        RunError: a method or the task is unknown, a row was run with other settings, or a run failed.
    """
    root = Path(output_dir)
    rows = _plan(config, methods, seeds, root, flags)
    missing = [row for row in rows if not row.is_done]
    if len(missing) < len(rows):
        print(f"{len(rows) - len(missing)} of {len(rows)} rows are there already", flush=True)
    if missing:
        run_rows(missing)
    results = [run_folder.read_metrics(row.folder) for row in rows]
    summary = summarise(results)
    _write_all(root, results, summary)
    _print_table(summary, root)
    return summary


def _plan(config: str, methods: list[str], seeds: list[int], root: Path, flags: list[str]) -> list[Row]:
    """The rows, with every error in the flags, or in what is there already, found before any run."""
    if unknown := [m for m in methods if m not in METHODS]:
        raise RunError(f"unknown methods {', '.join(unknown)}; known: {', '.join(METHODS)}")
    task = read_config(config).get("task")
    if task is None:
        raise RunError(f"config file {config} must name its task, for example 'task: text-classification'")
    rows = []
    for seed in dict.fromkeys(seeds):
        for method in dict.fromkeys(methods):
            folder = root / f"{method}-seed{seed}"
            argv = [task, "--config", config, *flags, "--method", method, "--seed", str(seed)]
            argv += ["--output_dir", str(folder), "--resume_from_checkpoint", "true"]
            row, run = Row(folder, argv), parse_run(argv)
            if row.is_done:
                run_folder.check_settings(folder, run.resolved)
            rows.append(row)
    return rows


def parse_seeds(text: str) -> list[int]:
    """Read `0,1,2`.

    Args:
        text: whole numbers separated by commas.

    Returns:
        The numbers.

    Raises:
        RunError: it is something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise RunError(f"--seeds must be whole numbers separated by commas, like 0,1,2; got {text!r}") from None


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


def _print_table(summary: list[dict[str, Any]], root: Path) -> None:
    table = require("rich.table").Table(*_header(summary))
    for entry in summary:
        table.add_row(*_cells(entry))
    console = require("rich.console").Console(soft_wrap=True)
    console.print(table)
    console.print(f"written to {root}: rows.csv, summary.json, summary.md, summary.png", markup=False)


def _write_all(root: Path, rows: list[dict[str, Any]], summary: list[dict[str, Any]]) -> None:
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
