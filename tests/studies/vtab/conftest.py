"""A made VTAB-1k: the real layout, a few images for each task."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coeff_tuning.studies.vtab.tasks import CLASSES
from tests.binders.libraries import library


def make_task(root: Path, task: str) -> None:
    """8 + 4 images to train and choose on, 6 to test; the class is told by the colour."""
    generator = np.random.default_rng(len(task))
    numbers = {"train800": range(8), "val200": range(8, 12), "train800val200": range(12), "test": range(12, 18)}
    (root / task / "images").mkdir(parents=True)
    for number in range(18):
        pixels = generator.integers(0, 60, (20 + number, 30, 3), dtype=np.uint8)
        pixels[..., number % 2] += 150
        Image.fromarray(pixels).save(root / task / "images" / f"{number}.png")
    for split, chosen in numbers.items():
        lines = [f"images/{number}.png {number % 2}" for number in chosen]
        (root / task / f"{split}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="session")
def vtab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 19 tasks; not to be written to."""
    root = tmp_path_factory.mktemp("vtab-1k")
    for task in CLASSES:
        make_task(root, task)
    return root


@pytest.fixture
def kitti(tmp_path: Path) -> Path:
    """A root with one task, which a test may break."""
    make_task(tmp_path / "root", "kitti")
    return tmp_path / "root"


@pytest.fixture(scope="session", autouse=True)
def _timm() -> None:
    library("timm")
