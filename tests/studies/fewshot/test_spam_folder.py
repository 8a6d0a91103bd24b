"""benchmarks/spam_folder.py on a made package: every message once, equal ones in the same half."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "spam_folder.py"


def test_halves(tmp_path: Path) -> None:
    messages = [("good" if n % 3 else "bad", f'call, "{n % 40}"') for n in range(60)]
    lines = "".join(f"{label}\t{message}\n" for label, message in messages)
    (tmp_path / "dataSet.txt").write_text(lines, encoding="utf-8")
    main = runpy.run_path(str(SCRIPT))["main"]
    main([str(tmp_path), str(tmp_path / "out")])
    halves = []
    for name in ("train", "test"):
        with (tmp_path / "out" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            halves.append([(row["label"], row["text"]) for row in csv.DictReader(file)])
    assert sorted([*halves[0], *halves[1]]) == sorted(messages)
    texts = [{text for _, text in half} for half in halves]
    assert all(texts)
    assert not texts[0] & texts[1]
    with pytest.raises(SystemExit, match="exists; choose a folder that does not"):
        main([str(tmp_path), str(tmp_path / "out")])


def test_a_line_of_another_form_is_named(tmp_path: Path) -> None:
    (tmp_path / "dataSet.txt").write_text("good\thello\nno tab here\n", encoding="utf-8")
    main = runpy.run_path(str(SCRIPT))["main"]
    with pytest.raises(SystemExit, match="line 2 must be label, tab, message; got 'no tab here'"):
        main([str(tmp_path), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
