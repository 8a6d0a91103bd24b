"""Tables of the study of scenes, made of rows."""

from __future__ import annotations

from statistics import mean

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.vision_language.readers import TASKS
from coeff_tuning.studies import tables
from coeff_tuning.studies.rows import Row

COLUMNS = (*TASKS, "mean")
SCORES = (
    "Scores on test scenes after the last step, mean ± standard deviation over seeds: answers that are right in %, for "
    "captions 100 CIDEr (at most 1000); 'mean': of the four, with CIDEr divided by 10. 'linear': the frozen language "
    "model, whose projection alone is trained; the others train it as well. Numbers: those beside it."
)
GAINS = "Differences of the same seed, mean ± standard deviation. In brackets: seeds in which they are above zero."
SEARCH = (
    "What the search tried on validation scenes: learning rates, and the mean score; the one that was taken is bold."
)
PAIRS = (("coeff", "linear"), ("lora", "linear"), ("coeff+lora", "lora"), ("coeff+lora", "linear"))


def score(row: Row, column: str = "mean") -> float:
    """A score as the tables have it; in the mean, CIDEr has the range of the others.

    Args:
        row: a row.
        column: one of `COLUMNS`.

    Returns:
        The score in %.
    """
    if column != "mean":
        return float(row[column])
    return float(mean([row["vqa"], row["gqa"], row["nlvr"], row["caption"] / 10]))


def values(rows: list[Row], method: str, column: str) -> dict[int, float]:
    """Scores by seed.

    Args:
        rows: final rows.
        method: a method.
        column: one of `COLUMNS`.

    Returns:
        Scores in %; empty without such rows.
    """
    return {row["seed"]: score(row, column) for row in rows if row["method"] == method}


def gains(rows: list[Row], method: str, other: str, column: str) -> list[float]:
    """How much better one method is than another, seed by seed.

    Args:
        rows: final rows.
        method: a method.
        other: what it is compared with.
        column: one of `COLUMNS`.

    Returns:
        One difference for each seed that both have.
    """
    first, second = values(rows, method, column), values(rows, other, column)
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def summary(rows: list[Row]) -> tuple[list[str], tables.Cells]:
    """A line for each method.

    Args:
        rows: final rows.

    Returns:
        Header and cells.
    """
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        size = next(row["extra_parameters"] for row in rows if row["method"] == method)
        lines.append([method, f"{size:,}", *(tables.spread(list(values(rows, method, c).values())) for c in COLUMNS)])
    return ["method", "numbers", *COLUMNS], lines


def differences(rows: list[Row]) -> tuple[list[str], tables.Cells]:
    """A line for each pair of methods.

    Args:
        rows: final rows.

    Returns:
        Header and cells.
    """
    lines = []
    for pair in PAIRS:
        found = [gains(rows, *pair, column) for column in COLUMNS]
        if all(found):
            lines.append([" - ".join(pair), *map(tables.gain, found)])
    return ["difference", *COLUMNS], lines


def tried(search: list[Row]) -> tuple[list[str], tables.Cells]:
    """A line for each method: candidates with their validation scores.

    Args:
        search: rows of searches.

    Returns:
        Header and cells.
    """
    lines = tables.candidates(search, ("method",), score, lambda row: f"{score(row):.1f}")
    return ["method", "candidates"], lines


def show(rows: list[Row]) -> None:
    """Print the tables.

    Args:
        rows: final rows.

    Raises:
        RunError: there are none.
    """
    if not rows:
        raise RunError("there are no rows yet; run the study without --report first")
    tables.show(SCORES, *summary(rows))
    tables.show(GAINS, *differences(rows))


def page(rows: list[Row], search: list[Row]) -> str:
    """All tables.

    Args:
        rows: final rows.
        search: rows of searches.

    Returns:
        Markdown.
    """
    parts = [tables.markdown(*summary(rows)), SCORES, tables.markdown(*differences(rows)), GAINS]
    parts += [tables.markdown(*tried(search)), SEARCH] if search else []
    return "\n\n".join([*parts, tables.where(rows)]) + "\n"
