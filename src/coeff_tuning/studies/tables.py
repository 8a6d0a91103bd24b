"""One table, on the screen or in a page."""

from __future__ import annotations

import sys

from coeff_tuning.recipes.extras import require

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
