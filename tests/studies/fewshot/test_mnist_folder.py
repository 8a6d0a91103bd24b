"""benchmarks/mnist_folder.py on a made package."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "mnist_folder.py"


def test_splits_and_pixels(tmp_path: Path) -> None:
    digits = tmp_path / "package" / "src" / "digits"
    digits.mkdir(parents=True)
    values = np.zeros((170, 28, 28))
    values[:, 0, 1] = np.arange(170) / 255  # tells images apart
    for digit in range(10):
        (digits / f"{digit}.json").write_text(json.dumps({"data": values.ravel().tolist()}))
    main = runpy.run_path(str(SCRIPT))["main"]
    main([str(tmp_path / "package"), str(tmp_path / "out")])
    for split, numbers in (("train", range(100)), ("test", range(100, 160))):
        files = sorted((tmp_path / "out" / split / "7").iterdir(), key=lambda path: int(path.stem))
        assert [np.asarray(Image.open(path))[0, 1].tolist() for path in files] == [[n] * 3 for n in numbers]
    with pytest.raises(SystemExit, match="exists; choose a folder that does not"):
        main([str(tmp_path / "package"), str(tmp_path / "out")])
