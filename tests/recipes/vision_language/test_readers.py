from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from coeff_tuning.errors import DataError
from coeff_tuning.recipes.vision_language import readers
from coeff_tuning.recipes.vision_language.data import Collator, RoundRobin
from coeff_tuning.recipes.vision_language.scoring import score
from tests.recipes.vision_language.conftest import features, write


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    write(path, change(content) or content)


def test_items_of_each_format(data: Path) -> None:
    vqa, gqa, nlvr, caption = (readers.read(data, task, "train") for task in readers.TASKS)
    assert [len(items) for items in (vqa, gqa, nlvr, caption)] == [5, 5, 5, 3]  # captions: train and restval
    assert vqa[0].answers == {"red": 1.0, "a thing": 0.3}  # lower case, as what is generated
    assert [path.name for path in vqa[0].features + vqa[1].features] == ["i0.h5", "i1.npz"]
    assert [len(item.features) for item in nlvr] == [2] * 5
    assert [item.answers for item in nlvr[:2]] == [{"false": 1.0}, {"true": 1.0}]
    assert list(caption[0].answers) == ["A red thing", "a thing of red"]
    assert caption[0].text == ""
    assert readers.check_features([*vqa, *nlvr]) == 6


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("vqa/train.json", lambda rows: rows[1].pop("sent"), r"train\.json, item 1 has no 'sent'"),
        ("vqa/train.json", lambda rows: rows[2].update(label=["red"]), r"train\.json, item 2 is not an item of vqa"),
        ("vqa/train.json", lambda rows: rows[0].update(label={}), r"item 0 has no answer"),
        ("vqa/train.json", lambda rows: rows[0].update(sent=None), r"item 0: 'sent' must be text; it is None"),
        ("vqa/train.json", lambda rows: rows[0].update(label={" ": 1.0}), r"item 0 has no answer"),
        ("vqa/train.json", lambda rows: rows[0].update(label={"red": "much"}), r"item 0 is not an item of vqa"),
        ("vqa/train.json", lambda rows: rows.__setitem__(0, 7), r"item 0 is not an item of vqa"),
        ("gqa/train.json", lambda rows: rows[3].update(label={"pink": 1}), r"item 3: unknown answer 'pink'.*answers"),
        ("gqa/answers.json", lambda rows: {"a": 1}, r"answers\.json must hold a list of all answers"),
        ("nlvr/train.json", lambda rows: rows[4].update(label="maybe"), r"item 4: unknown answer 'maybe'; .* True or"),
        ("nlvr/train.json", lambda rows: {"rows": rows}, r"train\.json must hold a list of items; it holds a dict"),
        ("nlvr/train.json", lambda rows: rows.clear(), r"train\.json: split 'train' is empty"),
        ("caption/dataset_coco.json", lambda rows: {"pictures": []}, r"must hold an object with a list 'images'"),
        (
            "caption/dataset_coco.json",
            lambda rows: rows["images"][1].pop("split"),
            r"coco\.json, item 1 has no 'split'",
        ),
        ("caption/dataset_coco.json", lambda rows: rows["images"][1].pop("sentences"), r"item 1 has no 'sentences'"),
        ("caption/dataset_coco.json", lambda rows: rows["images"].__delitem__(slice(0, 3)), r"'train' is empty"),
    ],
)
def test_wrong_items_are_named(file: str, change: Callable[[Any], Any], message: str, data: Path) -> None:
    def apply(content: Any) -> Any:
        found = change(content)
        return found if isinstance(found, dict) and "label" not in found and "raw" not in found else content

    edit(data / file, apply)
    with pytest.raises(DataError, match=message):
        readers.read(data, file.partition("/")[0], "train")


def test_files_that_cannot_be_read_are_named(data: Path) -> None:
    (data / "vqa" / "train.json").write_text('[{"img_id": ')
    with pytest.raises(DataError, match=r"vqa/train\.json is not valid JSON: Expecting value: line 1 column 13"):
        readers.read(data, "vqa", "train")
    with pytest.raises(DataError, match=r"gqa/test\.json cannot be read: No such file"):
        readers.read(data, "gqa", "test")


def test_wrong_features_are_named(data: Path) -> None:
    folder = data / "vqa" / "features"

    def fails(message: str, item: int) -> None:
        with pytest.raises(DataError, match=message):
            readers.check_features(readers.read(data, "vqa", "train"))
        good = f"i{item}"
        (folder / f"{good}.h5").unlink(missing_ok=True)
        (folder / f"{good}.npz").unlink(missing_ok=True)
        features(folder, good)

    (folder / "i0.h5").unlink()
    fails(r"train\.json, item 0: feature file .*i0\.h5 is missing", 0)
    (folder / "i2.h5").write_bytes(b"nothing of the kind")
    fails(r"item 2: feature file .*i2\.h5 cannot be read", 2)
    (folder / "i1.npz").write_bytes((folder / "i1.npz").read_bytes()[:50])
    fails(r"item 1: feature file .*i1\.npz cannot be read", 1)
    features(folder, "i4", width=7)
    fails(r"item 4: all feature files must have the same number .*i0\.h5 has 6, .*i4\.h5 has 7", 4)
    with h5py.File(folder / "i2.h5", "w") as file:
        file["i3/features"] = np.zeros((5, 6), "float32")
    fails(r"item 2: feature file .* has no 'i2/features'", 2)
    with h5py.File(folder / "i2.h5", "w") as file:
        file["i2/features"] = np.zeros(6, "float32")
    fails(r"item 2: 'i2/features' in .* must be numbers of shape \(cells, features\); it is \(6,\)", 2)
    np.savez(folder / "i3.npz", other=np.zeros((5, 6)))
    fails(r"item 3: feature file .*i3\.npz has no 'features'", 3)
    assert readers.check_features(readers.read(data, "vqa", "train")) == 6


def test_tasks_take_turns(data: Path) -> None:
    items = [item for task in ("vqa", "gqa", "nlvr") for item in readers.read(data, task, "train")]
    sampler = RoundRobin(items, 2, seed=0)
    order = list(sampler)
    tasks = [items[index].task for index in order]
    assert tasks[:12] == ["gqa", "gqa", "nlvr", "nlvr", "vqa", "vqa"] * 2
    assert sorted(order) == list(range(15))
    assert order == list(sampler)
    sampler.set_epoch(1)
    assert order != list(sampler)


def test_grids_of_49_cells_are_pooled(data: Path, bart: Path) -> None:
    """Each of the 36 cells is the maximum of the cells that it covers, as torch's adaptive pooling has them."""
    from transformers import AutoTokenizer

    for number in range(5):
        for path in (data / "vqa" / "features").glob(f"i{number}.*"):
            path.unlink()
        features(data / "vqa" / "features", f"i{number}", cells=49)
    item = readers.read(data, "vqa", "train")[0]
    batch = Collator(AutoTokenizer.from_pretrained(bart), 12, is_encoder_decoder=True)([item])
    grid = torch.from_numpy(readers.load_features(item.features[0], "")).view(7, 7, 6)
    assert batch["features"].shape == (1, 36, 6)
    for row in range(6):
        for column in range(6):
            covered = grid[7 * row // 6 : -(-7 * (row + 1) // 6), 7 * column // 6 : -(-7 * (column + 1) // 6)]
            assert torch.equal(batch["features"][0, 6 * row + column], covered.amax((0, 1)))


def test_scores_by_hand(data: Path) -> None:
    vqa = readers.read(data, "vqa", "val")[:3]  # red, blue, green; "a thing" has 0.3
    assert score("vqa", vqa, ["Red", " a thing ", "blue"]) == pytest.approx(100 * 1.3 / 3)
    caption = readers.read(data, "caption", "val")
    caption[1].answers = {"two blue boats": 1.0}
    good, bad = ["a red thing", "two blue boats"], ["two blue boats", "a red thing"]
    assert score("caption", caption, good) > 300
    assert score("caption", caption, bad) == 0
