"""Tables of the few-shot study, made of rows."""

from __future__ import annotations

from statistics import mean

from coeff_tuning.errors import RunError
from coeff_tuning.studies import tables
from coeff_tuning.studies.fewshot.methods import ABLATION, BOTH, BY_DEFAULT, FROZEN, LORA_AS_IT_IS, MAIN, PROBE, WIDE
from coeff_tuning.studies.fewshot.scores import gains, is_accuracy, rank, settings_of, values
from coeff_tuning.studies.rows import Row

SCORES = (
    "Score on test data after the last epoch, mean ± standard deviation over seeds: accuracy in %, or perplexity (less "
    "is better). In brackets: seeds. 'linear': the converged probe; 'frozen': the language model as it is."
)
ANSWERS = (
    "Differences of the same seed, mean ± standard deviation, in points of accuracy or of perplexity; above zero is "
    "better in both. In brackets: seeds in which it is above zero. Start: the probe, or the frozen language model. "
    "Share: gain of the coefficients over that of LoRA, by means. Numbers: those beside the head."
)
SEARCH = "What the search tried on validation data: learning rates, and the score; the one that was taken is bold."

# Caption, names and base of each table of variants.
VARIANTS = (
    ("LoRA and the combination with six candidates each, chosen on validation data.", WIDE, "lora of 6"),
    (
        "Variants of coefficients + LoRA, without search: learning rates 1e-2 and 1e-3, dropout 0.2, all layers, but "
        "for what is named; beside LoRA alone at the same rate.",
        BOTH,
        LORA_AS_IT_IS,
    ),
    (
        "Variants of the coefficients, without search: residual, zero start, learning rate 2e-2, dropout 0.2, no "
        "weight decay, all layers, but for what is named.",
        ABLATION,
        "as it is",
    ),
    (
        "Flags of `train` at their defaults, but for weights, data, size of the images and length of the texts.",
        BY_DEFAULT,
        PROBE,
    ),
)


def summary(rows: list[Row], methods: list[str]) -> tuple[list[str], tables.Cells]:
    """A line for each setting, a column for each method.

    Args:
        rows: final rows.
        methods: in this order; those without rows are left out.

    Returns:
        Header and cells.
    """
    methods = [method for method in methods if any(row["method"] == method for row in rows)]
    names = [name for name in settings_of(rows) if any(values(rows, name, method) for method in methods)]
    lines = [
        [name, _unit(rows, name), *(_cell(list(values(rows, name, m).values())) for m in methods)] for name in names
    ]
    return ["setting", "score", *methods], lines


def answers(rows: list[Row]) -> tuple[list[str], tables.Cells]:
    """A line for each setting: gains over the start, and of a combination over its base.

    Then means over classifiers that were trained for the same number of epochs.

    Args:
        rows: final rows.

    Returns:
        Header and cells.
    """
    lines = []
    found: dict[int, list[list[list[float]]]] = {}
    for name in settings_of(rows):
        start = PROBE if is_accuracy(rows, name) else FROZEN
        pairs = [("coeff", start), ("lora", start), ("coeff+lora", "lora"), ("dora", start), ("coeff+dora", "dora")]
        own = [gains(rows, name, *pair) for pair in pairs]
        if not any(own):
            continue  # it was run for variants only
        if is_accuracy(rows, name):
            found.setdefault(_epochs(rows, name), []).append(own)
        coeff, lora, *rest = map(_difference, own)
        lines.append([name, coeff, lora, _share(own[:1], own[1:2]), _numbers(rows, name), *rest])
    lines += [_mean(epochs, own) for epochs, own in found.items() if len(own) > 1]
    header = ["setting", "coeff - start", "lora - start", "share", "numbers"]
    return [*header, "coeff+lora - lora", "dora - start", "coeff+dora - dora"], lines


def tried(search: list[Row]) -> tuple[list[str], tables.Cells]:
    """A line for each setting and method: candidates with their validation scores.

    Args:
        search: rows of searches.

    Returns:
        Header and cells.
    """
    return ["setting", "method", "candidates"], tables.candidates(search, ("setting", "method"), rank, _validated)


def variants(rows: list[Row], names: list[str], base: str) -> tuple[list[str], tables.Cells]:
    """A line for each setting and variant: its score, and its difference from a base.

    Args:
        rows: final rows.
        names: variants.
        base: the method that they are compared with.

    Returns:
        Header and cells.
    """
    lines = []
    for setting in settings_of(rows):
        for name in names:
            found = list(values(rows, setting, name).values())
            if found:
                above = "" if name == base else _difference(gains(rows, setting, name, base))
                lines.append([setting, name, _cell(found), above])
    return ["setting", "variant", "score", f"- {base}"], lines


def show(rows: list[Row]) -> None:
    """Print the tables.

    Args:
        rows: final rows.

    Raises:
        RunError: there are none.
    """
    if not rows:
        raise RunError("there are no rows yet; run the study without --report first")
    tables.show(SCORES, *summary(rows, list(MAIN)))
    tables.show(ANSWERS, *answers(rows))
    for caption, names, base in VARIANTS:
        if any(row["method"] in names for row in rows):
            tables.show(caption, *variants(rows, list(names), base))


def page(rows: list[Row], search: list[Row]) -> str:
    """All tables.

    Args:
        rows: final rows.
        search: rows of searches.

    Returns:
        Markdown.
    """
    parts = [tables.markdown(*summary(rows, list(MAIN))), SCORES, tables.markdown(*answers(rows)), ANSWERS]
    parts += [tables.markdown(*tried(search)), SEARCH] if search else []
    for caption, names, base in VARIANTS:
        if any(row["method"] in names for row in rows):
            parts += [tables.markdown(*variants(rows, list(names), base)), caption]
    return "\n\n".join([*parts, tables.where(rows)]) + "\n"


def _mean(epochs: int, found: list[list[list[float]]]) -> list[str]:
    """The line of `answers` for all classifiers that were trained for so many epochs."""
    columns = [[mean(gain) for gain in column if gain] for column in zip(*found, strict=True)]
    both = [entry for entry in found if entry[0] and entry[1]]
    share = _share([entry[0] for entry in both], [entry[1] for entry in both])
    coeff, lora, *rest = (f"{mean(column):+.2f} (of {len(column)})" if column else "" for column in columns)
    return [f"mean, {epochs} epochs", coeff, lora, share, "", *rest]


def _epochs(rows: list[Row], setting: str) -> int:
    from coeff_tuning.recipes.arguments import RecipeArguments

    flags = next(row["flags"] for row in rows if row["setting"] == setting)
    return int(flags.get("num_train_epochs", RecipeArguments.num_train_epochs))


def _unit(rows: list[Row], setting: str) -> str:
    return "accuracy, %" if is_accuracy(rows, setting) else "perplexity"


def _cell(scores: list[float]) -> str:
    return f"{tables.spread(scores, '.2f')} ({len(scores)})" if scores else ""


def _difference(found: list[float]) -> str:
    return tables.gain(found, "+.2f")


def _validated(row: Row) -> str:
    return f"{100 * row['accuracy']:.1f} %" if "accuracy" in row else f"{row['perplexity']:.2f}"


def _share(part: list[list[float]], whole: list[list[float]]) -> str:
    """Ratio of mean gains, where the second is a gain at all."""
    if not all([*part, *whole]) or not whole:
        return ""
    total = mean(map(mean, whole))
    return f"{100 * mean(map(mean, part)) / total:.0f} %" if total > 0 else "no gain of LoRA"


def _numbers(rows: list[Row], setting: str) -> str:
    own = {row["method"]: row["extra_parameters"] for row in rows if row["setting"] == setting}
    if not {"coeff", "lora"} <= own.keys():
        return ""
    return f"{own['coeff']:,} / {own['lora']:,} = {100 * own['coeff'] / own['lora']:.2f} %"
