"""The lists and images of a task.

On disk: `ROOT/TASK/{train800,val200,train800val200,test}.txt`, each line `relative/path.jpg label`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coeff_tuning.errors import DataError
from coeff_tuning.recipes.extras import require
from coeff_tuning.studies.vtab.tasks import CLASSES

SPLITS = ("train800", "val200", "train800val200", "test")
# Mean and standard deviation of each colour. The checkpoint was pretrained with "half"; papers differ.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,) * 3, (0.5,) * 3),
    "none": ((0.0,) * 3, (1.0,) * 3),
}


def read_list(root: Path, task: str, split: str) -> Any:
    """One list of a task; no image is opened.

    Args:
        root: folder of all tasks.
        task: one of `tasks.CLASSES`.
        split: one of `SPLITS`.

    Returns:
        A `Dataset` with columns `path`, `label` and `where` (list file and line).

    Raises:
        DataError: folder or list are missing, or a line is not `path label` with a label of this task and a file.
    """
    path = root / task / f"{split}.txt"
    if not root.is_dir():
        raise DataError(f"--root must be a folder with one folder for each task; there is no {root}")
    if not path.parent.is_dir():
        raise DataError(f"--root {root} must hold a folder {task!r}; it holds {_names(root)}")
    if not path.is_file():
        raise DataError(f"{path} is missing; a task needs the lists {', '.join(f'{name}.txt' for name in SPLITS)}")
    rows: dict[str, list[Any]] = {"path": [], "label": [], "where": []}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        where = f"{path}, line {number}"
        image, label = _parse(line, where, CLASSES[task])
        if not (path.parent / image).is_file():
            raise DataError(f"{where}: there is no image {path.parent / image}")
        for key, cell in (("path", str(path.parent / image)), ("label", label), ("where", where)):
            rows[key].append(cell)
    if not rows["path"]:
        raise DataError(f"{path} is empty")
    return require("datasets").Dataset.from_dict(rows)


def check_images(rows: Any, description: str) -> None:
    """Open every image once, with a progress bar, so that a broken one is known before hours of training.

    Args:
        rows: from `read_list`.
        description: of the bar.
    """
    for row in require("rich.progress").track(rows, description=description):
        _open(row["path"], row["where"])


def with_pixels(rows: Any, size: tuple[int, int], normalisation: str) -> Any:
    """Images as model inputs, made when they are read: resized to `size` (bicubic, no crop), scaled, normalised.

    Args:
        rows: from `read_list`.
        size: height and width.
        normalisation: one of `NORMALISATIONS`.

    Returns:
        The data set with `pixel_values` `(3, height, width)` and `labels`.
    """
    return rows.with_transform(_Pixels(size, *NORMALISATIONS[normalisation]))


@dataclass
class _Pixels:
    """The transform of `with_pixels`; a class, so that it can be sent to the processes that read images."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        mean, std = (np.array(values, dtype=np.float32).reshape(3, 1, 1) for values in (self.mean, self.std))
        bicubic = require("PIL.Image").Resampling.BICUBIC
        pixels = []
        for path, where in zip(batch["path"], batch["where"], strict=True):
            image = _open(path, where).resize((self.size[1], self.size[0]), bicubic)
            values = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 255
            pixels.append((values - mean) / std)
        return {"pixel_values": pixels, "labels": batch["label"]}


def _parse(line: str, where: str, classes: int) -> tuple[str, int]:
    image, _, label = line.strip().rpartition(" ")
    if not image or not label.isdigit():
        raise DataError(f"{where}: must be 'relative/path.jpg label'; got {line[:80]!r}")
    if int(label) >= classes:
        raise DataError(f"{where}: label must lie between 0 and {classes - 1}; got {label}")
    return image.strip(), int(label)


def _open(path: str, where: str) -> Any:
    try:
        with require("PIL.Image").open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{where}: image {path} cannot be read: {error}") from None


def _names(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir())
    return f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "nothing"
