"""Tables of the study of heads, made of rows."""

from __future__ import annotations

from coeff_tuning.studies import tables
from coeff_tuning.studies.heads.experiment import METHODS
from coeff_tuning.studies.rows import Row

CAPTION = (
    "Test accuracy after the last step in %, and what a method adds to the probe of the same seed, in points: mean ± "
    "standard deviation over seeds, and in how many of them it is above zero. Source: accuracy on held-out images of "
    "the first task. Scales: one factor for each head, the diagonal of the coefficients; with one head they are all "
    "there is."
)


def numbers_of_heads(rows: list[Row]) -> list[int]:
    """Numbers of heads, sorted.

    Args:
        rows: final rows.

    Returns:
        Each once.
    """
    return sorted({row["heads"] for row in rows})


def accuracies(rows: list[Row], heads: int, method: str) -> dict[int, float]:
    """Test accuracy in % by seed.

    Args:
        rows: final rows.
        heads: H.
        method: one of `experiment.METHODS`.

    Returns:
        Empty where there are no such rows.
    """
    return {row["seed"]: 100 * row["accuracy"] for row in rows if (row["heads"], row["method"]) == (heads, method)}


def gains(rows: list[Row], heads: int, method: str) -> list[float]:
    """Points of accuracy above the probe of the same seed.

    Args:
        rows: final rows.
        heads: H.
        method: one of `experiment.METHODS`.

    Returns:
        One for each seed that has both.
    """
    probe, found = accuracies(rows, heads, "probe"), accuracies(rows, heads, method)
    return [found[seed] - probe[seed] for seed in sorted(found.keys() & probe.keys())]


def summary(rows: list[Row]) -> tuple[list[str], tables.Cells]:
    """A line for each number of heads.

    Args:
        rows: final rows.

    Returns:
        Header and cells.
    """
    header = ["heads", "coefficients", "source", *METHODS, "scales - probe", "coefficients - probe"]
    lines = []
    for heads in numbers_of_heads(rows):
        own = [row for row in rows if row["heads"] == heads]
        source = {row["seed"]: 100 * row["source_accuracy"] for row in own}
        found = [tables.spread(list(accuracies(own, heads, method).values())) for method in METHODS]
        added = [tables.gain(gains(own, heads, method)) for method in ("scales", "coefficients")]
        count = max(row["coefficients"] for row in own)
        lines.append([str(heads), str(count), tables.spread(list(source.values())), *found, *added])
    return header, lines


def tried(search: list[Row]) -> tuple[list[str], tables.Cells]:
    """A line for each number of heads and method: learning rates with their validation accuracies.

    Args:
        search: rows of searches.

    Returns:
        Header and cells.
    """
    lines = tables.candidates(
        search, ("heads", "method"), lambda row: row["accuracy"], lambda row: f"{100 * row['accuracy']:.1f} %"
    )
    return ["heads", "method", "learning rate of the coefficients: validation accuracy, seed of the search"], lines


def show(rows: list[Row]) -> None:
    """Print the summary.

    Args:
        rows: final rows.
    """
    tables.show(CAPTION, *summary(rows))


def page(rows: list[Row], search: list[Row]) -> str:
    """Both tables.

    Args:
        rows: final rows.
        search: rows of searches.

    Returns:
        Markdown.
    """
    parts = [tables.markdown(*summary(rows)), CAPTION]
    parts += [tables.markdown(*tried(search))] if search else []
    seeds = sorted({row["seed"] for row in rows})
    minutes = sum(row["seconds"] for row in [*rows, *search]) / 60
    where = f"Seeds {', '.join(map(str, seeds))}; {minutes:.0f} minutes on {tables.where(rows)}"
    return "\n\n".join([*parts, where]) + "\n"
