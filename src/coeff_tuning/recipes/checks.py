"""What can be wrong with a data set, found before training starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coeff_tuning.errors import DataError
from coeff_tuning.recipes.extras import require

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def check_columns(splits: Any, columns: list[str]) -> None:
    """Every split must have these columns.

    Args:
        splits: a `DatasetDict`.
        columns: names of columns.

    Raises:
        DataError: one is missing; the present ones are listed.
    """
    for split, rows in splits.items():
        for column in columns:
            if column not in rows.column_names:
                raise DataError(
                    f"split {split!r} has no column {column!r}; it has {', '.join(rows.column_names)}. "
                    "Name the right one with --text_column, --image_column or --label_column"
                )


def check_not_empty(rows: Any, name: str) -> None:
    """A split must have rows.

    Args:
        rows: a `Dataset`.
        name: what it is called, for the message.

    Raises:
        DataError: there are none.
    """
    if len(rows) == 0:
        raise DataError(f"split {name!r} is empty")


def check_class_folders(folder: Path) -> None:
    """Every sub-folder of an image folder must hold something: an empty one is a class without images.

    Args:
        folder: root of an image folder.

    Raises:
        DataError: a folder is empty.
    """
    for path in sorted(p for p in folder.rglob("*") if p.is_dir()):
        if not any(path.iterdir()):
            raise DataError(f"class folder {path} is empty; put images in it or remove it")


def check_images(rows: Any, column: str) -> None:
    """Decode every image once.

    Args:
        rows: a `Dataset`.
        column: its image column.

    Raises:
        DataError: an image cannot be read; it is named by its file, else by its row.
    """
    image_module = require("PIL.Image")
    import io

    undecoded = rows.select_columns([column]).cast_column(column, require("datasets").Image(decode=False))
    for index, row in enumerate(undecoded):
        cell = row[column]
        name = cell["path"] or f"row {index}"
        try:
            source = io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"]
            with image_module.open(source) as image:
                image.load()
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"image {name} cannot be read: {error}") from None


def check_same_labels(train_labels: set[str], other_labels: set[str], split: str) -> None:
    """A label that training never sees cannot be predicted.

    Args:
        train_labels: labels of the training split.
        other_labels: labels of the held-out split.
        split: its name, for the message.

    Raises:
        DataError: the held-out split has a label of its own.
    """
    if unknown := sorted(other_labels - train_labels):
        raise DataError(
            f"split {split!r} has labels that the training data does not have: {', '.join(unknown[:10])}; "
            f"the training data has {', '.join(sorted(train_labels)[:20])}"
        )
