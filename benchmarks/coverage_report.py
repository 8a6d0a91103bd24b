"""What `coverage.py` found, as docs/coverage.md and docs/coverage.json."""

from __future__ import annotations

import json
import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


def table(rows: list[Row], group: str) -> list[str]:
    lines = ["| family | attention classes | works | error |", "|---|---|---|---|"]
    for row in (row for row in rows if row["library"] == group):
        if "why" in row:
            lines.append(f"| {row['family']} | | refused: attention computed by hand | |")
        else:
            works = "yes" if row["works"] else "**no**"
            lines.append(f"| {row['family']} | {', '.join(row['classes'])} | {works} | {row['error']:.0e} |")
    return lines


def timm_table(rows: list[Row]) -> list[str]:
    walked = [row for row in rows if row["library"] == "timm"]
    kinds: dict[tuple[str, str, str], list[Row]] = {}
    for row in walked:
        kinds.setdefault((row["works"], ", ".join(row["classes"]), ", ".join(row["refused"])), []).append(row)
    count = {state: sum(row["tags"] for row in walked if row["works"] == state) for state in ("yes", "partly", "no")}
    lines = [
        f"{sum(count.values())} pretrained tags ({len(walked)} architectures) have attention of several heads: "
        f"**{count['yes']}** fully served, {count['partly']} in part (name the modules with `target_modules`), "
        f"{count['no']} refused.",
        "",
        "| served | classes | classes refused | tags | for example |",
        "|---|---|---|---|---|",
    ]
    order = sorted(
        kinds.items(), key=lambda item: (-"no partly yes".index(item[0][0]), -sum(r["tags"] for r in item[1]))
    )
    for (state, classes, refused), members in order:
        lines.append(
            f"| {state} | {classes} | {refused} | {sum(r['tags'] for r in members)} | {members[0]['family']} |"
        )
    return lines


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "timm", "diffusers", "open_clip_torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def write(rows: list[Row]) -> None:
    facts = versions()
    works = Counter(row["library"] for row in rows if row["works"] is True)
    lines = [
        "# Coverage",
        "",
        "Made by `python benchmarks/coverage.py`; each row of it is in [coverage.json](coverage.json). Error: largest "
        "difference of the output from the",
        "library's own eager attention with its softmaxed maps mixed by plain torch, as a share of the largest output; "
        "float32,",
        "CPU, random signed coefficients. " + ", ".join(f"{name} {number}" for name, number in facts.items()) + ".",
        "",
        f"## transformers: {works['transformers']} families run",
        "",
        *table(rows, "transformers"),
        "",
        f"## torch.nn.MultiheadAttention: {works['torch']} users run",
        "",
        *table(rows, "torch"),
        "",
        f"## diffusers: {works['diffusers']} models run",
        "",
        *table(rows, "diffusers"),
        "",
        "## timm",
        "",
        *timm_table(rows),
        "",
        f"Each class was run on its own ({works['timm class']} set-ups):",
        "",
        *table(rows, "timm class"),
    ]
    (ROOT / "docs" / "coverage.md").write_text("\n".join(lines) + "\n")
    (ROOT / "docs" / "coverage.json").write_text(json.dumps({"versions": facts, "rows": rows}, indent=1) + "\n")
