"""Tables of the toy study, made of rows."""

from __future__ import annotations

from coeff_tuning.studies import tables
from coeff_tuning.studies.rows import Row

CAPTION = (
    "Means over seeds. Loss: mean squared distance to the targets; floor: the least that outputs inside the hull can "
    "reach. Outside: outputs outside the hull of their head's values. Entries and row sums of the mixed maps: "
    "smallest and largest over all seeds."
)
_HEADER = [
    "targets",
    "trained",
    "numbers",
    "loss before",
    "after",
    "floor",
    "distance",
    "outside",
    "entries",
    "row sums",
]


def summary(rows: list[Row]) -> tables.Cells:
    """One line for each placement of the targets and method.

    Args:
        rows: of any number of seeds.

    Returns:
        Cells of the columns of `_HEADER`.
    """
    lines = []
    for (placement, method), own in _groups(rows).items():
        means = {
            key: sum(row[key] for row in own) / len(own)
            for key in ("loss_start", "loss_end", "loss_floor", "mean_distance", "share_outside")
        }
        lines.append(
            [
                placement,
                method,
                str(own[0]["trained_numbers"]),
                f"{means['loss_start']:.3g}",
                f"{means['loss_end']:.3g}",
                f"{means['loss_floor']:.3g}",
                f"{means['mean_distance']:.3f}",
                f"{100 * means['share_outside']:.0f} %",
                _range(own, "entry"),
                _range(own, "row_sum"),
            ]
        )
    return lines


def by_seed(rows: list[Row]) -> tuple[list[str], tables.Cells]:
    """The loss after training of every seed, and its floor.

    Args:
        rows: with the same seeds for every method.

    Returns:
        Header and cells.
    """
    seeds = sorted({row["seed"] for row in rows})
    lines = []
    for placement in dict.fromkeys(row["placement"] for row in rows):
        own = {key[1]: found for key, found in _groups(rows).items() if key[0] == placement}
        floors = {row["seed"]: row["loss_floor"] for row in next(iter(own.values()))}
        lines.append([placement, "*floor of the hull*", *(f"{floors[seed]:.3g}" for seed in seeds)])
        for method, found in own.items():
            ends = {row["seed"]: row["loss_end"] for row in found}
            lines.append([placement, method, *(f"{ends[seed]:.3g}" for seed in seeds)])
    return ["targets", "loss after training", *(f"seed {seed}" for seed in seeds)], lines


def show(rows: list[Row]) -> None:
    """Print the summary.

    Args:
        rows: all rows.
    """
    tables.show(CAPTION, _HEADER, summary(rows))


def page(rows: list[Row]) -> str:
    """Both tables for the page of this study.

    Args:
        rows: all rows.

    Returns:
        Markdown.
    """
    where = f"{rows[0]['steps']:,} steps, torch {rows[0]['versions']['torch']}, {rows[0]['date'][:10]}."
    return "\n\n".join([tables.markdown(_HEADER, summary(rows)), CAPTION, tables.markdown(*by_seed(rows)), where])


def _groups(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    keys = dict.fromkeys((row["placement"], row["method"]) for row in rows)
    return {key: [row for row in rows if (row["placement"], row["method"]) == key] for key in keys}


def _range(rows: list[Row], what: str) -> str:
    return f"{min(row[f'smallest_{what}'] for row in rows):.2f} to {max(row[f'largest_{what}'] for row in rows):.2f}"
