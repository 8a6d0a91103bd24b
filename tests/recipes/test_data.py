from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coeff_tuning.errors import DataError
from coeff_tuning.recipes.arguments import DataArguments
from coeff_tuning.recipes.data import Splits, load_splits


def _csv(path: Path, rows: list[str], header: str = "text,label") -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def _load(column: str = "text", seed: int = 0, **arguments: Any) -> Splits:
    return load_splits(DataArguments(**arguments), column, seed)


def test_heldout_part_is_the_same_for_every_seed_and_disjoint(reviews: Path) -> None:
    first = _load(dataset=str(reviews), train_samples_per_class=4, seed=0)
    second = _load(dataset=str(reviews), train_samples_per_class=4, seed=1)
    assert first.labels == ["negative", "positive"]
    assert first.heldout_name == "part of train"
    assert first.heldout["text"] == second.heldout["text"]
    assert first.train["text"] != second.train["text"]
    assert np.bincount(first.train["label"]).tolist() == [4, 4]
    assert len(first.heldout) == 20


def test_validation_never_touches_the_heldout_part(tmp_path: Path) -> None:
    data = _csv(tmp_path / "a.csv", [f"text {i},{'ab'[i % 2]}" for i in range(40)])
    test = set(_load(dataset=data, train_samples_per_class=4).heldout["text"])
    splits = _load(dataset=data, train_samples_per_class=4, eval_split="validation")
    train, validation = set(splits.train["text"]), set(splits.heldout["text"])
    assert (len(train), len(validation), len(test)) == (8, 12, 20)
    assert len(train | validation | test) == 40


def test_test_split_comes_before_validation(tmp_path: Path) -> None:
    files = {
        f"{split}_file": _csv(tmp_path / f"{split}.csv", [f"{split} {i},{i % 2}" for i in range(6)])
        for split in ("train", "validation", "test")
    }
    assert _load(**files).heldout_name == "test"
    assert _load(**files, eval_split="validation").heldout_name == "validation"
    del files["test_file"]
    assert _load(**files).heldout_name == "validation"


def test_numeric_labels_are_sorted_by_value(tmp_path: Path) -> None:
    data = _csv(tmp_path / "a.csv", [f"t{i},{(2, 10, 9)[i % 3]}" for i in range(12)])
    assert _load(dataset=data).labels == ["2", "9", "10"]


def test_image_folder(colours: Path) -> None:
    splits = _load("image", dataset=str(colours))
    assert (splits.labels, splits.heldout_name, len(splits.train)) == (["blue", "red"], "test", 20)


def test_digits_need_no_file() -> None:
    splits = _load("image", dataset="digits", train_samples_per_class=16)
    assert (len(splits.train), len(splits.heldout), len(splits.labels)) == (160, 898, 10)


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (["a,x", "b,y"], {"text_column": "body"}, "split 'train' has no column 'body'; it has text, label"),
        (["a,x"] * 9, {}, r"at least 2 classes; column 'label' has 1: \['x'\]"),
        (["a,x", "b,y"] * 5, {"train_samples_per_class": 6}, "class 'x' has 3 training samples; .* asks for 6"),
        (["a,x", "b,y", "c,"] * 3, {}, "column 'label' has rows without a label"),
        ([], {}, "split 'train' is empty|cannot be read"),
        (["a,x", "b,y", "c,y", "d,y"], {}, "cannot draw 2 of 4 rows with every class present"),
    ],
    ids=["column", "one-class", "few", "no-label", "empty", "stratify"],
)
def test_bad_tables(tmp_path: Path, rows: list[str], arguments: dict[str, Any], message: str) -> None:
    data = _csv(tmp_path / "a.csv", rows)
    with pytest.raises(DataError, match=message):
        _load(arguments.get("text_column", "text"), dataset=data, **arguments)


def test_labels_unknown_to_training(tmp_path: Path) -> None:
    train = _csv(tmp_path / "train.csv", ["a,x", "b,y"])
    test = _csv(tmp_path / "test.csv", ["a,x", "b,z"])
    with pytest.raises(DataError, match="split 'test' has labels that the training data does not have: z; .* has x, y"):
        _load(train_file=train, test_file=test)


def test_hidden_test_labels_are_not_used(tmp_path: Path) -> None:
    train = _csv(tmp_path / "train.csv", [f"t{i},{i % 2}" for i in range(8)])
    test = _csv(tmp_path / "test.csv", ["a,-1", "b,-1"])
    assert _load(train_file=train, test_file=test).heldout_name == "part of train"


def test_unreadable_image_is_named(colours: Path) -> None:
    (colours / "train" / "red" / "3.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"image .*train.red.3\.png cannot be read"):
        _load("image", dataset=str(colours))


def test_truncated_image_is_named(colours: Path) -> None:
    path = colours / "test" / "blue" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"test.blue.1\.png cannot be read"):
        _load("image", dataset=str(colours))


def test_empty_class_folder_is_named(colours: Path) -> None:
    (colours / "train" / "green").mkdir()
    with pytest.raises(DataError, match=r"class folder .*train.green is empty"):
        _load("image", dataset=str(colours))


@pytest.mark.parametrize(
    ("name", "message"),
    [("/nowhere/data", "does not exist"), ("no/such-set", "data set 'no/such-set' cannot be loaded")],
)
def test_missing_data(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _load(dataset=name)


def test_missing_and_odd_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data file nothing\.csv does not exist"):
        _load(train_file="nothing.csv")
    (tmp_path / "a.xyz").write_text("a")
    with pytest.raises(DataError, match=r"must share one of the suffixes .*; got \['\.xyz'\]"):
        _load(dataset=str(tmp_path / "a.xyz"))
