"""Tables of rows."""

from __future__ import annotations

import math
import sys
from typing import Any

from coeff_tuning.bench.op import TIME_RATIO
from coeff_tuning.bench.rows import Row, figure
from coeff_tuning.recipes.extras import require

_WIDTH = 165  # of a table that goes to a file
BUSY = 0.25  # cores that other processes may take before times mean little
_OP_CAPTION = (
    "x SDPA: median over that of torch's own attention, in the same rounds; spreads are 20 to 80 %. FLOP limit: the "
    "ratio of FLOPs, 1 + H/(2E) forward and 1 + 4H/(7E) with backward; share: limit over ratio. Peak: above the "
    "inputs, with output and gradients."
)
_MODEL_CAPTION = (
    "Ratios of medians from interleaved rounds; spreads are 20 to 80 %. Peak: resident memory of two training steps "
    "above the model, in a process of its own."
)


def machine(row: Row) -> str:
    """Hardware and versions of a row, in one line.

    Args:
        row: any row.

    Returns:
        The line.
    """
    hardware = row["gpu"] or f"{row['cpu']}, {row['threads']} of {row['cores']} cores"
    return f"{hardware}, {row['dtype']}, torch {row['versions']['torch']}"


def ratio_text(entry: Row | None) -> str:
    """A figure with its spread."""
    if entry is None:
        return ""
    spread = f" [{entry['q20']:.2f}, {entry['q80']:.2f}]" if "q20" in entry else ""
    return f"{entry['value']:.2f}{spread}"


def print_op(found: list[Row]) -> None:
    """Print rows of `bench op`: what the gate stopped shows its error and no speed.

    Args:
        found: rows.
    """
    columns = ("shape", "measured", "backend", "ms", "x SDPA", "goal", "met", "FLOP limit", "share", "GFLOP/s")
    table = _table(_OP_CAPTION, [*columns, "peak MiB"])
    notes = []
    for row in found:
        cells = [row["shape"], row["measured"], row["backend"]]
        if row["reason"]:
            notes.append(f"{row['backend']} at {row['shape']}: {row['reason']}")
        if row["status"] != "ok":
            table.add_row(*cells, row["status"].upper() if row["status"] == "wrong" else "-", *[""] * 7)
            continue
        entry, peak = figure(row, TIME_RATIO), row.get("peak_above_inputs_mib")
        mixed = entry is not None
        table.add_row(
            *cells,
            _ms(row),
            ratio_text(entry),
            *_goal(entry),
            f"{row['flop_ratio_limit']:.3f}" if mixed else "",
            f"{100 * row['share_of_flop_limit']:.0f} %" if mixed else "",
            f"{row['gflops_per_s']:,.0f}" if "gflops_per_s" in row else "",
            "" if peak is None else f"{peak:,.1f}",
        )
    _print(table, found, notes)


def print_models(found: list[Row]) -> None:
    """Print rows of `bench model`, one line for each figure.

    Args:
        found: rows.
    """
    table = _table(
        _MODEL_CAPTION, ["case", "what", "variant", "trained", "ms", "peak MiB", "figure", "", "goal", "met"]
    )
    notes: list[str] = []
    shown = ""
    for row in found:
        peak = row.get("peak_above_model_mib")
        speed = f"{_ms(row)}, {row['tokens_per_s']:.1f} tok/s" if "tokens_per_s" in row else _ms(row)
        case = ["", ""] if row["case"] == shown else [row["case"], row["about"]]
        shown = row["case"]
        cells = [*case, row["variant"], f"{row['trainable']:,}"]
        cells += ["WRONG" if row["status"] == "wrong" else speed, "" if peak is None else f"{peak:,.0f}"]
        for entry in row["figures"] or [None]:
            table.add_row(*cells, "" if entry is None else entry["what"], ratio_text(entry), *_goal(entry))
            cells = [""] * 6
        if row["reason"]:
            notes.append(f"{row['case']}, {row['variant']}: {row['reason']}")
    _print(table, found, notes)


def _ms(row: Row) -> str:
    if "median_ms" not in row:
        return ""
    median, q20, q80 = (row[name] for name in ("median_ms", "q20_ms", "q80_ms"))
    digits = max(0, 2 - int(math.log10(max(median, 0.01))))  # three figures
    return f"{median:,.{digits}f} [{q20:,.{digits}f}, {q80:,.{digits}f}]"


def _goal(entry: Row | None) -> tuple[str, str]:
    if entry is None or entry["at_most"] is None:
        return "", ""
    return f"{entry['at_most']:.2f}", "yes" if entry["met"] else "no"


def _table(caption: str, columns: list[str]) -> Any:
    table = require("rich.table").Table(caption=caption, caption_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in ("shape", "case", "what") else "right")
    return table


def _print(table: Any, found: list[Row], notes: list[str]) -> None:
    width = None if sys.stdout.isatty() else _WIDTH
    console = require("rich.console").Console(width=width, markup=False, highlight=False)
    console.print(table)
    busy = max((row.get("cores_busy_elsewhere") or 0 for row in found), default=0)
    if busy > BUSY:
        notes.append(f"other processes kept up to {busy:.1f} cores busy meanwhile: do not trust these times")
    for text in dict.fromkeys([*notes, *map(machine, found)]):
        console.print(text)
