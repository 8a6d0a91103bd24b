"""benchmarks/mnist_folder.py on made packages."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "mnist_folder.py"


@pytest.mark.parametrize(("kind", "white", "shape"), [("digits", 1.0, (-1,)), ("clothes", 255, (170, 784))])
def test_splits_and_pixels(tmp_path: Path, kind: str, white: float, shape: tuple[int, ...]) -> None:
    """MNIST is one list of numbers up to 1, Fashion-MNIST a list of images up to 255."""
    folder = tmp_path / "package" / "src" / kind
    folder.mkdir(parents=True)
    values = np.zeros((170, 28, 28))
    values[:, 0, 1] = np.arange(170) * white / 255  # tells images apart
    for label in range(10):
        (folder / f"{label}.json").write_text(json.dumps({"data": values.reshape(shape).tolist()}))
    main = runpy.run_path(str(SCRIPT))["main"]
    main([str(tmp_path / "package"), str(tmp_path / "out")])
    for split, numbers in (("train", range(100)), ("test", range(100, 160))):
        files = sorted((tmp_path / "out" / split / "7").iterdir(), key=lambda path: int(path.stem))
        assert [np.asarray(Image.open(path))[0, 1].tolist() for path in files] == [[n] * 3 for n in numbers]
    with pytest.raises(SystemExit, match="exists; choose a folder that does not"):
        main([str(tmp_path / "package"), str(tmp_path / "out")])


def test_other_package(tmp_path: Path) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    with pytest.raises(SystemExit, match="it has neither"):
        main([str(tmp_path), str(tmp_path / "out")])


def test_too_few_images(tmp_path: Path) -> None:
    folder = tmp_path / "src" / "digits"
    folder.mkdir(parents=True)
    (folder / "0.json").write_text(json.dumps({"data": [0.0] * (150 * 784)}))
    main = runpy.run_path(str(SCRIPT))["main"]
    with pytest.raises(SystemExit, match="class 0 must have at least 160 images; it has 150"):
        main([str(tmp_path), str(tmp_path / "out")])
