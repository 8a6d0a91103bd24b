from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coeff_tuning.errors import DataError, RunError
from coeff_tuning.studies.vtab import data, tasks


def test_tasks() -> None:
    assert len(tasks.CLASSES) == 19
    assert [len(found) for found in tasks.GROUPS.values()] == [7, 4, 8]
    assert sum(tasks.CLASSES.values()) == 940
    assert tasks.GROUP_OF["dmlab"] == "structured"
    assert tasks.parse("all", list(tasks.CLASSES), "--tasks") == list(tasks.CLASSES)
    with pytest.raises(RunError, match="--tasks must be 'all' or some of cifar, .*; got mnist"):
        tasks.parse("cifar,mnist", list(tasks.CLASSES), "--tasks")


def test_lists(vtab: Path) -> None:
    rows = data.read_list(vtab, "sun397", "val200")
    assert rows["label"] == [0, 1, 0, 1]
    assert rows[2]["path"] == str(vtab / "sun397" / "images" / "10.png")
    assert rows[2]["where"] == f"{vtab / 'sun397' / 'val200.txt'}, line 3"


@pytest.mark.parametrize("name", data.NORMALISATIONS)
def test_pixels(name: str, vtab: Path) -> None:
    rows = data.read_list(vtab, "kitti", "test")
    got = data.with_pixels(rows, (9, 7), name)[1:3]
    image = Image.open(rows[2]["path"]).resize((7, 9), Image.Resampling.BICUBIC)
    expected = np.asarray(image).astype(np.float64).transpose(2, 0, 1) / 255
    mean, std = {
        "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        "half": ([0.5] * 3, [0.5] * 3),
        "none": ([0] * 3, [1] * 3),
    }[name]
    expected = (expected - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(got["pixel_values"][1], expected, atol=1e-5)
    assert got["labels"] == [1, 0]
    sent = pickle.loads(pickle.dumps(data.with_pixels(rows, (9, 7), name)))  # as to the processes that read images
    np.testing.assert_array_equal(sent[2]["pixel_values"], got["pixel_values"][1])


def test_grey_and_transparent_images_become_colour(kitti: Path) -> None:
    for mode, name in (("L", "12.png"), ("RGBA", "13.png")):
        Image.new(mode, (5, 5)).save(kitti / "kitti" / "images" / name)
    pixels = data.with_pixels(data.read_list(kitti, "kitti", "test"), (4, 4), "none")[:2]["pixel_values"]
    assert [values.shape for values in pixels] == [(3, 4, 4), (3, 4, 4)]


def test_wrong_folders(kitti: Path) -> None:
    with pytest.raises(DataError, match="one folder for each task; there is no .*nowhere"):
        data.read_list(kitti / "nowhere", "kitti", "test")
    with pytest.raises(DataError, match="must hold a folder 'dtd'; it holds kitti"):
        data.read_list(kitti, "dtd", "test")
    (kitti / "kitti" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"kitti/test.txt is missing; a task needs the lists train800.txt, val200.txt"):
        data.read_list(kitti, "kitti", "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/1.png 4", "label must lie between 0 and 3; got 4"),
        ("images/1.png -1", "must be 'relative/path.jpg label'; got 'images/1.png -1'"),
        ("images/1.png", "must be 'relative/path.jpg label'; got 'images/1.png'"),
        ("images/99.png 1", "there is no image .*kitti/images/99.png"),
        ("", "must be 'relative/path.jpg label'; got ''"),
    ],
)
def test_wrong_lines_are_named(line: str, message: str, kitti: Path) -> None:
    path = kitti / "kitti" / "val200.txt"
    path.write_text(f"images/0.png 0\n{line}\nimages/1.png 1\n")
    with pytest.raises(DataError, match=f"kitti/val200.txt, line 2: {message}"):
        data.read_list(kitti, "kitti", "val200")


def test_empty_list(kitti: Path) -> None:
    (kitti / "kitti" / "val200.txt").write_text("")
    with pytest.raises(DataError, match=r"val200.txt is empty"):
        data.read_list(kitti, "kitti", "val200")


def test_unreadable_image_is_named(kitti: Path) -> None:
    image = kitti / "kitti" / "images" / "14.png"
    image.write_bytes(image.read_bytes()[:-30])
    rows = data.read_list(kitti, "kitti", "test")
    for use in (lambda: data.check_images(rows, "reading"), lambda: data.with_pixels(rows, (4, 4), "half")[:]):
        with pytest.raises(DataError, match=r"kitti/test.txt, line 3: image .*14.png cannot be read: "):
            use()
