"""benchmarks/emoji_folders.py on made packages: one half of the subjects in one style, the other half in the other."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "emoji_folders.py"
NAMES = {f"thing {number}": ("Food & Drink", "Activities")[number % 2] for number in range(40)}
NAMES |= {f"{who} running": "Activities" for who in ("WOMAN", "MAN", "PERSON")} | {"flag of norway": "Flags"}


@pytest.fixture
def styles(tmp_path: Path) -> list[str]:
    """Drawings of the first style are red, of the second blue, on nothing."""
    for style, colour in (("first", (255, 0, 0, 255)), ("second", (0, 0, 255, 255))):
        images = tmp_path / style / "img" / style / "64"
        images.mkdir(parents=True)
        entries = [{"name": n, "category": c, "image": f"{i}.png"} for i, (n, c) in enumerate(NAMES.items())]
        (tmp_path / style / "emoji.json").write_text(json.dumps(entries))
        for entry in entries[1:]:  # the first has no drawing
            drawing = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
            drawing.putpixel((1, 1), colour)
            drawing.save(images / entry["image"])
    return [str(tmp_path / "first"), str(tmp_path / "second")]


def test_halves_and_styles(styles: list[str], tmp_path: Path) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main([*styles, str(tmp_path / "out")])
    found = {split: {p.stem: p for p in (tmp_path / "out" / split).rglob("*.png")} for split in ("train", "test")}
    assert {p.name for p in (tmp_path / "out" / "train").iterdir()} == {"food-drink", "activities"}
    assert not found["train"].keys() & found["test"].keys()
    assert len(found["train"]) + len(found["test"]) == len(NAMES) - 2
    assert min(map(len, found.values())) > 10
    runners = {str(number) for number in (40, 41, 42)}
    assert any(runners <= part.keys() for part in found.values())
    for split, colour in (("train", (255, 0, 0)), ("test", (0, 0, 255))):
        image = Image.open(next(iter(found[split].values())))
        assert image.mode == "RGB"
        assert (image.getpixel((1, 1)), image.getpixel((0, 0))) == (colour, (255, 255, 255))
    with pytest.raises(SystemExit, match="out exists"):
        main([*styles, str(tmp_path / "out")])
