"""Image folders of emoji that train on one drawing style and test on another.

    python benchmarks/emoji_folders.py STYLE_A STYLE_B OUT

STYLE_A and STYLE_B are unpacked npm packages `emoji-datasource-<style>` (the folder with `emoji.json`). OUT gets
`train/<category>/` with one half of the emoji, in style A, and `test/<category>/` with the other half, in style B, so
that neither a drawing nor its subject is in both. Drawings are put on white.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

from PIL import Image

LEFT_OUT = ("Component", "Flags")  # modifiers, not pictures; flags are the same in every style


def main(argv: list[str]) -> None:
    if len(argv) != 3:
        sys.exit(__doc__)
    styles, out = [Path(argument) for argument in argv[:2]], Path(argv[2])
    if out.exists():
        sys.exit(f"{out} exists; choose a folder that does not")
    counts: dict[str, int] = {}
    for entry in json.loads((styles[0] / "emoji.json").read_text(encoding="utf-8")):
        if entry["category"] in LEFT_OUT:
            continue
        # By name, so that all skin tones, genders and directions of one emoji fall into the same half.
        stem = re.sub(r"\b(woman|man|person|women|men|people|female|male)\b", "", entry["name"].lower())
        half = hashlib.sha256(stem.strip().encode()).digest()[0] % 2
        drawings = sorted((styles[half] / "img").glob(f"*/64/{entry['image']}"))
        if not drawings:
            continue
        category = re.sub(r"[^a-z]+", "-", entry["category"].lower())
        target = out / ("train", "test")[half] / category / entry["image"]
        target.parent.mkdir(parents=True, exist_ok=True)
        drawing = Image.open(drawings[0]).convert("RGBA")
        white = Image.new("RGBA", drawing.size, "white")
        Image.alpha_composite(white, drawing).convert("RGB").save(target)
        counts[f"{target.parent.parent.name}/{category}"] = counts.get(f"{target.parent.parent.name}/{category}", 0) + 1
    for name, count in sorted(counts.items()):
        print(f"{count:5d}  {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
