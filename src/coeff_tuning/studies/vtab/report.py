"""Means of VTAB-1k, made of rows."""

from __future__ import annotations

from statistics import mean

from coeff_tuning.studies import tables
from coeff_tuning.studies.rows import Row
from coeff_tuning.studies.vtab.tasks import CLASSES, GROUPS

CAPTION = (
    "Test accuracy in %, after the last epoch; each task is the mean over its seeds. 'mean': of all tasks alike; 'of "
    "groups': mean of the three group means. A part of the tasks is marked with its number. Numbers: trained beside "
    "the head."
)


def summary(rows: list[Row]) -> tuple[list[str], tables.Cells]:
    """One line for each method.

    Args:
        rows: final rows.

    Returns:
        Header and cells.
    """
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        scores = by_task(own)
        groups = [[scores[task] for task in tasks if task in scores] for tasks in GROUPS.values()]
        numbers = round(mean(row["extra_parameters"] for row in own))
        line = [method, str(len({row["seed"] for row in own})), f"{numbers:,}"]
        line += [_cell(found, len(tasks)) for found, tasks in zip(groups, GROUPS.values(), strict=True)]
        line.append(_cell(list(scores.values()), len(CLASSES)))
        line.append(f"{100 * mean(map(mean, groups)):.2f}" if len(scores) == len(CLASSES) else "")
        lines.append(line)
    return ["method", "seeds", "numbers", *GROUPS, "mean", "of groups"], lines


def by_task(rows: list[Row]) -> dict[str, float]:
    """Accuracy of each task, mean over its seeds.

    Args:
        rows: of one method.

    Returns:
        Between 0 and 1, in the order of `CLASSES`.
    """
    tasks = [task for task in CLASSES if any(row["task"] == task for row in rows)]
    return {task: mean(row["accuracy"] for row in rows if row["task"] == task) for task in tasks}


def show(rows: list[Row]) -> None:
    """Print the summary.

    Args:
        rows: final rows.
    """
    tables.show(f"{CAPTION} {_settings(rows)}", *summary(rows))


def page(rows: list[Row]) -> str:
    """The summary and every task, as Markdown.

    Args:
        rows: final rows.

    Returns:
        The page.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    scores = {method: by_task([row for row in rows if row["method"] == method]) for method in methods}
    lines = [
        [task, *(f"{100 * scores[method][task]:.2f}" if task in scores[method] else "" for method in methods)]
        for task in CLASSES
        if any(task in found for found in scores.values())
    ]
    parts = [CAPTION, tables.markdown(*summary(rows)), _settings(rows), tables.markdown(["task", *methods], lines)]
    return "\n\n".join(parts) + "\n"


def _cell(scores: list[float], tasks: int) -> str:
    if not scores:
        return ""
    return f"{100 * mean(scores):.2f}" + ("" if len(scores) == tasks else f" ({len(scores)} of {tasks})")


def _settings(rows: list[Row]) -> str:
    row = rows[0]
    weights = "pretrained" if row["pretrained"] else "random weights"
    epochs = "" if row["epochs"] is None else f", {row['epochs']} epochs instead of the recipe's"
    search = "settings chosen on val200" if row["search"] else "no search"
    return f"{row['model']} ({weights}), normalisation: {row['normalise']}, {search}{epochs}."
