"""Load a data set and cut it into what is trained on and what is held out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from coeff_tuning.errors import DataError
from coeff_tuning.recipes import checks
from coeff_tuning.recipes.arguments import DataArguments
from coeff_tuning.recipes.extras import require
from coeff_tuning.recipes.sources import load_source

# The held-out half of a data set without splits is the same for every seed of a run.
_SPLIT_SEED = 0


@dataclass
class Splits:
    """Training data and held-out data.

    Attributes:
        train: a `Dataset` to train on.
        heldout: a `Dataset` to measure on.
        heldout_name: what it is: `test`, `validation` or `part of train`.
        labels: names of the classes in the order of their numbers; empty for causal-lm.
    """

    train: Any
    heldout: Any
    heldout_name: str
    labels: list[str]


def load_splits(arguments: DataArguments, content_column: str, seed: int, *, labelled: bool = True) -> Splits:
    """Load data, find its held-out split and draw the training samples.

    The held-out split is the data set's `test` split, else its `validation` split, else a stratified part of
    `train` that is the same for every seed. With `eval_split="validation"` that split is left alone: the score is
    measured on the data set's `validation` split, else on training samples that were not drawn.

    Args:
        arguments: where the data is and how much of it to use.
        content_column: column of texts or images.
        seed: draws the training samples.
        labelled: whether there is a label column.

    Returns:
        The splits; with labels, `label` holds class numbers.

    Raises:
        DataError: the data cannot be loaded, or a split, column, label or image of it cannot be used.
    """
    raw = load_source(arguments)
    columns = [content_column, arguments.label_column] if labelled else [content_column]
    if "train" not in raw:
        raise DataError(f"the data must have a 'train' split; it has {', '.join(raw)}")
    checks.check_columns(raw, [content_column])
    checks.check_columns({k: v for k, v in raw.items() if k == "train"}, columns)
    raw = type(raw)({k: v for k, v in raw.items() if k == "train" or _is_usable(v, columns)})
    for name, rows in raw.items():
        checks.check_not_empty(rows, name)
    labels: list[str] = []
    if labelled:
        raw, labels = _number_labels(raw, arguments.label_column)
    train, heldout, name = _cut(raw, arguments, seed, labels)
    if arguments.max_eval_samples is not None and len(heldout) > arguments.max_eval_samples:
        keep = _draw(heldout, arguments.max_eval_samples, _SPLIT_SEED, bool(labels))
        heldout = heldout.select(keep)
    splits = Splits(train, heldout, name, labels)
    for part, rows in (("train", train), (name, heldout)):
        checks.check_not_empty(rows, part)
    if _is_image(train, content_column):
        checks.check_images(train, content_column)
        checks.check_images(heldout, content_column)
    return splits


def _is_usable(rows: Any, columns: list[str]) -> bool:
    """Whether a split has all columns and, as hub test splits often do not, labels."""
    if not set(columns) <= set(rows.column_names):
        return False
    hidden = {-1, None}
    return len(columns) < 2 or len(rows) == 0 or not set(rows.unique(columns[1])) <= hidden


def _is_image(rows: Any, column: str) -> bool:
    return isinstance(rows.features[column], require("datasets").Image)


def _number_labels(raw: Any, column: str) -> tuple[Any, list[str]]:
    """Rename the label column to `label` and number its values by the names in the training split."""
    datasets = require("datasets")
    feature = raw["train"].features[column]
    has_names = isinstance(feature, datasets.ClassLabel)

    def names_in(rows: Any) -> set[str]:
        values = rows.unique(column)
        if any(v is None or v == -1 for v in values):
            raise DataError(f"column {column!r} has rows without a label; remove them")
        return {rows.features[column].int2str(v) if has_names else str(v) for v in values}

    train_names = names_in(raw["train"])
    names = list(feature.names) if has_names else sorted(train_names, key=_natural)
    for split, rows in raw.items():
        checks.check_same_labels(train_names, names_in(rows), split)
    if empty := sorted(set(names) - train_names):
        raise DataError(f"the training data has no sample of class {', '.join(empty)}")
    if len(names) < 2:
        raise DataError(f"classification needs at least 2 classes; column {column!r} has {len(names)}: {names}")
    numbered = raw
    if column != "label":
        if "label" in raw["train"].column_names:
            numbered = numbered.remove_columns("label")
        numbered = numbered.rename_column(column, "label")
    if not has_names:
        number = {n: i for i, n in enumerate(names)}
        for split, rows in numbered.items():
            values = [number[str(v)] for v in rows["label"]]
            rows = rows.remove_columns("label").add_column("label", values)
            numbered[split] = rows.cast_column("label", datasets.ClassLabel(names=names))
    return numbered, names


def _natural(name: str) -> tuple[int, float, str]:
    """Sort key: numbers by value, before words."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)


def _cut(raw: Any, arguments: DataArguments, seed: int, labels: list[str]) -> tuple[Any, Any, str]:
    """Training rows, held-out rows and the name of the latter."""
    train = raw["train"]
    if "test" in raw:
        heldout, name = raw["test"], "test"
    elif "validation" in raw and arguments.eval_split == "test":
        heldout, name = raw["validation"], "validation"
    else:
        size = round(len(train) * arguments.holdout_fraction)
        if not 0 < size < len(train):
            raise DataError(f"{len(train)} rows are too few to hold out a part of {arguments.holdout_fraction}")
        held = _draw(train, size, _SPLIT_SEED, bool(labels))
        heldout, name = train.select(held), "part of train"
        train = train.select(np.setdiff1d(np.arange(len(train)), held))
    drawn = _draw_training(train, arguments, seed, labels)
    if arguments.eval_split == "validation":
        if "validation" in raw:
            heldout, name = raw["validation"], "validation"
        else:
            if len(drawn) == len(train):
                drawn = _draw(train, round(len(train) * 0.8), seed, bool(labels))
            heldout = train.select(np.setdiff1d(np.arange(len(train)), drawn))
            name = "training data not trained on"
    return train.select(drawn), heldout, name


def _draw_training(train: Any, arguments: DataArguments, seed: int, labels: list[str]) -> np.ndarray:
    """Indices of the training samples, drawn by the seed."""
    indices = np.arange(len(train))
    per_class = arguments.train_samples_per_class
    if per_class is not None and labels:
        numbers = np.asarray(train["label"])
        for number, count in sorted(Counter(numbers.tolist()).items()):
            if count < per_class:
                raise DataError(
                    f"class {labels[number]!r} has {count} training samples; --train_samples_per_class asks for "
                    f"{per_class}"
                )
        generator = np.random.default_rng(seed)
        chosen = [generator.choice(np.flatnonzero(numbers == n), per_class, replace=False) for n in range(len(labels))]
        indices = np.sort(np.concatenate(chosen))
    if arguments.max_train_samples is not None and len(indices) > arguments.max_train_samples:
        indices = indices[_draw(train.select(indices), arguments.max_train_samples, seed, bool(labels))]
    return indices


def _draw(rows: Any, size: int, seed: int, stratify: bool) -> np.ndarray:
    """Sorted indices of `size` rows, by class where there are enough rows of each."""
    split = require("sklearn.model_selection").train_test_split
    indices = np.arange(len(rows))
    strata = np.asarray(rows["label"]) if stratify else None
    try:
        drawn, _ = split(indices, train_size=size, random_state=seed, stratify=strata)
    except ValueError as error:
        raise DataError(f"cannot draw {size} of {len(rows)} rows with every class present: {error}") from None
    return np.sort(drawn)
