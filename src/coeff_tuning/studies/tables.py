"""What the reports of studies share: a table on the screen or in a page, and how its cells are written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

from coeff_tuning.recipes.extras import require
from coeff_tuning.studies.rows import Row

Cells = list[list[str]]
_WIDTH = 140  # of a table that goes to a file


def markdown(header: list[str], lines: Cells) -> str:
    """A table for a page.

    Args:
        header: names of columns.
        lines: cells.

    Returns:
        Its lines, joined.
    """
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *lines])


def show(caption: str, header: list[str], lines: Cells) -> None:
    """Print a table.

    Args:
        caption: what its columns mean.
        header: names of columns.
        lines: cells.
    """
    table = require("rich.table").Table(caption=caption, caption_justify="left")
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index > 1 else "left")
    for cells in lines:
        table.add_row(*cells)
    width = None if sys.stdout.isatty() else _WIDTH
    require("rich.console").Console(width=width, markup=False, highlight=False).print(table)


def spread(found: Sequence[float], form: str = ".1f") -> str:
    """Mean ± standard deviation.

    Args:
        found: one number for each seed.
        form: format of both, a sign is of the mean alone.

    Returns:
        The mean alone of one number, nothing of none.
    """
    if not found:
        return ""
    return f"{mean(found):{form}}" + (f" ± {stdev(found):{form.lstrip('+')}}" if len(found) > 1 else "")


def gain(found: Sequence[float], form: str = "+.1f") -> str:
    """Mean ± standard deviation of differences, and how many of them are above zero.

    Args:
        found: one difference for each seed.
        form: format of mean and deviation.

    Returns:
        Nothing of none.
    """
    return f"{spread(found, form)} ({sum(value > 0 for value in found)}/{len(found)})" if found else ""


def candidates(
    search: list[Row], keys: Sequence[str], rank: Callable[[Row], Any], score: Callable[[Row], str]
) -> Cells:
    """A line for each group of a search: what was tried with its scores, in one cell; the one that was taken is bold.

    Args:
        search: rows of searches.
        keys: entries that tell the groups apart.
        rank: what is largest for the row that was taken.
        score: text of a row's score.

    Returns:
        Cells: those of the keys, then the candidates.
    """
    lines = []
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in search):
        own = [row for row in search if tuple(row[key] for key in keys) == group]
        best = max(own, key=rank)
        cells = []
        for row in own:
            text = f"{', '.join(f'{value:g}' for value in row['settings'].values())}: {score(row)}"
            cells.append(f"**{text}**" if row is best else text)
        lines.append([*map(str, group), "; ".join(cells)])
    return lines


def where(rows: list[Row]) -> str:
    """Machine, versions and last day of some rows.

    Args:
        rows: at least one.

    Returns:
        A sentence without its first word.
    """
    first = rows[0]
    machine = f"{first['cpu']}, {first['threads']} thread(s), torch {first['versions']['torch']}"
    return f"{machine}, {max(row['date'] for row in rows)[:10]}."
