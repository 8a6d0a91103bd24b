"""The four data formats and the feature files; whatever is wrong is named by file and item."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coeff_tuning.errors import DataError
from coeff_tuning.recipes.extras import require

TASKS = ("vqa", "gqa", "nlvr", "caption")
_TRAIN_SPLITS = ("train", "restval")


@dataclass
class Item:
    """One question, statement or image to describe.

    Attributes:
        task: one of `TASKS`.
        name: file and item, for messages.
        features: feature files, one per image.
        text: what is asked.
        answers: accepted answers with their scores; for captions the references.
    """

    task: str
    name: str
    features: list[Path]
    text: str
    answers: dict[str, float]


def read(root: Path, task: str, split: str) -> list[Item]:
    """Read one split of one task; feature files are not opened, see `load_features`.

    Args:
        root: folder with one sub-folder per task.
        task: one of `TASKS`.
        split: name of a split, as "train", "val" or "test"; captions of "restval" belong to "train".

    Returns:
        Its items.

    Raises:
        DataError: a file or an item cannot be used.
    """
    folder = root / task
    path = folder / ("dataset_coco.json" if task == "caption" else f"{split}.json")
    content = _load(path)
    if task == "caption":
        content = _captions(path, content, split)
    if not isinstance(content, list):
        raise DataError(f"{path} must hold a list of items; it holds a {type(content).__name__}")
    if not content:
        raise DataError(f"{path}: split {split!r} is empty")
    known = _answers(folder) if task in ("vqa", "gqa") else None
    rows = content if task == "caption" else enumerate(content)
    return [_item(folder, task, f"{path}, item {index}", row, known) for index, row in rows]


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from None


def _captions(path: Path, content: Any, split: str) -> list[tuple[int, Any]]:
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise DataError(f"{path} must hold an object with a list 'images'")
    wanted = _TRAIN_SPLITS if split == "train" else (split,)
    for index, row in enumerate(images):
        if not isinstance(row, dict) or "split" not in row:
            raise DataError(f"{path}, item {index} has no 'split'")
    return [(index, row) for index, row in enumerate(images) if row["split"] in wanted]


def _answers(folder: Path) -> set[str]:
    path = folder / "answers.json"
    known = _load(path)
    if not isinstance(known, list) or not all(isinstance(answer, str) for answer in known):
        raise DataError(f"{path} must hold a list of all answers")
    return {answer.strip().lower() for answer in known}


def _item(folder: Path, task: str, name: str, row: Any, known: set[str] | None) -> Item:
    try:
        if task == "caption":
            images, text = [Path(row["filename"]).stem], ""
            answers = {str(sentence["raw"]).strip(): 1.0 for sentence in row["sentences"]}
        elif task == "nlvr":
            images, text = [row["img0"], row["img1"]], row["sent"]
            answers = {_truth(name, row["label"]): 1.0}
        else:
            images, text = [row["img_id"]], row["sent"]
            answers = {answer.strip().lower(): float(score) for answer, score in row["label"].items()}
    except KeyError as error:
        raise DataError(f"{name} has no {error}") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{name} is not an item of {task}: {error}") from None
    if not isinstance(text, str):
        raise DataError(f"{name}: 'sent' must be text; it is {text!r}")
    if not any(answer and score > 0 for answer, score in answers.items()):
        raise DataError(f"{name} has no answer")
    if known is not None and (unknown := sorted(answers.keys() - known)):
        raise DataError(f"{name}: unknown answer {unknown[0]!r}; {folder / 'answers.json'} does not hold it")
    return Item(task, name, [_feature_file(folder, image) for image in images], text, answers)


def _truth(name: str, label: Any) -> str:
    truth = {"true": "true", "1": "true", "false": "false", "0": "false"}.get(str(label).lower())
    if truth is None:
        raise DataError(f"{name}: unknown answer {label!r}; it must be True or False")
    return truth


def check_features(items: list[Item]) -> int:
    """Look at every feature file once, before anything is trained.

    Args:
        items: whose files are looked at.

    Returns:
        Number of features of an image token, the same in all files.

    Raises:
        DataError: a file is missing, holds something else, or has another number of features than the first.
    """
    widths: dict[Path, int] = {}
    for item in items:
        for path in item.features:
            if path not in widths:
                widths[path] = load_features(path, item.name, only_check=True).shape[1]
                first = next(iter(widths))
                if widths[path] != widths[first]:
                    raise DataError(
                        f"{item.name}: all feature files must have the same number of features; {first} has "
                        f"{widths[first]}, {path} has {widths[path]}"
                    )
    return next(iter(widths.values()))


def load_features(path: Path, name: str, *, only_check: bool = False) -> Any:
    """Read the features of one image.

    Args:
        path: an `.h5` file that holds `<id>/features`, or an `.npz` file that holds `features`.
        name: the item it belongs to, for messages.
        only_check: look at the shape, and load nothing of an `.h5` file.

    Returns:
        Array `(cells, features)` in float32; zeros if only checked.

    Raises:
        DataError: the file is missing or holds something else.
    """
    if not path.is_file():
        raise DataError(f"{name}: feature file {path} is missing")
    key = "features" if path.suffix == ".npz" else f"{path.stem}/features"
    try:
        with _open(path) as file:
            if key not in file:
                raise DataError(f"{name}: feature file {path} has no {key!r}")
            data = file[key]
            shape = getattr(data, "shape", ())
            if len(shape) != 2 or 0 in shape or data.dtype.kind != "f":
                raise DataError(f"{name}: {key!r} in {path} must be numbers of shape (cells, features); it is {shape}")
            return np.broadcast_to(np.float32(0), shape) if only_check else data[:].astype("float32")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{name}: feature file {path} cannot be read: {error}") from None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    if path.suffix != ".npz":
        with require("h5py").File(path, "r") as file:
            yield file
        return
    with path.open("rb") as binary, np.load(binary) as file:  # by its name, numpy leaves a damaged file open
        yield file


def _feature_file(folder: Path, image: str) -> Path:
    """The image's file; `.h5` in messages where there is neither."""
    npz = folder / "features" / f"{image}.npz"
    return npz if npz.is_file() else npz.with_suffix(".h5")
