"""What the rows of the few-shot study say: scores, and differences of the same seed."""

from __future__ import annotations

from coeff_tuning.studies.rows import Row


def score(row: Row) -> str:
    """Name of the score that a row holds.

    Args:
        row: a row, or metrics of a run.

    Returns:
        `accuracy` or `perplexity`.
    """
    return "accuracy" if "accuracy" in row else "perplexity"


def rank(row: Row) -> tuple[float, float]:
    """What is largest for the best row of a search.

    Args:
        row: a row.

    Returns:
        Accuracy, then loss; a language model has its loss only.
    """
    return row.get("accuracy", 0.0), -row["loss"]


def values(rows: list[Row], setting: str, method: str) -> dict[int, float]:
    """Scores by seed.

    Args:
        rows: final rows.
        setting: a setting.
        method: a method.

    Returns:
        Accuracy in %, or perplexity; empty without such rows.
    """
    own = [row for row in rows if (row["setting"], row["method"]) == (setting, method)]
    return {row["seed"]: (100 if "accuracy" in row else 1) * row[score(row)] for row in own}


def gains(rows: list[Row], setting: str, method: str, other: str) -> list[float]:
    """How much better one method is than another, seed by seed.

    Args:
        rows: final rows.
        setting: a setting.
        method: a method.
        other: what it is compared with.

    Returns:
        One difference for each seed that both have; positive is better, of perplexity as well.
    """
    first, second = values(rows, setting, method), values(rows, setting, other)
    sign = 1 if is_accuracy(rows, setting) else -1
    return [sign * (first[seed] - second[seed]) for seed in sorted(first.keys() & second.keys())]


def settings_of(rows: list[Row]) -> list[str]:
    """Names of settings in the order of their rows."""
    return list(dict.fromkeys(row["setting"] for row in rows))


def is_accuracy(rows: list[Row], setting: str) -> bool:
    """Whether a setting is scored by accuracy.

    Args:
        rows: final rows, some of them of this setting.
        setting: a setting.

    Returns:
        False where it is perplexity.
    """
    return next("accuracy" in row for row in rows if row["setting"] == setting)
