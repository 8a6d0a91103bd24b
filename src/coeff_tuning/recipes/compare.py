"""Several methods and seeds of one config, side by side in one table."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coeff_tuning.errors import RunError
from coeff_tuning.recipes import run_folder
from coeff_tuning.recipes.arguments import METHODS
from coeff_tuning.recipes.configuration import parse_run, read_config
from coeff_tuning.recipes.table import print_table, summarise, write_table


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
    write_table(root, results, summary)
    print_table(summary, root)
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
