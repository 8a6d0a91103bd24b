"""Scenes in the four formats of `coeff-tuning vl`, with DINOv2 features of their images."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from coeff_tuning.recipes.assets import resolve_model
from coeff_tuning.recipes.extras import require
from coeff_tuning.studies.scenes import scenes

VISION = "dinov2-small"
SPLITS = ("train", "val", "test")
_CAPTIONED = 2  # objects of a scene that is described
_BATCH = 64


def write(root: Path, sizes: dict[str, int], seed: int) -> None:
    """Draw scenes and write all four tasks.

    Args:
        root: folder to write; what is there already is taken for complete if it holds the last file.
        sizes: items of each task, by split.
        seed: draws everything. Splits do not share a scene within a task.
    """
    last = root / "complete.json"
    if last.is_file():
        return
    draw = random.Random(seed)
    made = {task: items(task, sizes, draw) for task in ("vqa", "gqa", "nlvr", "caption")}
    for task, (images, files) in made.items():
        folder = root / task
        write_features(folder / "features", images)
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content) + "\n", encoding="utf-8")
    last.write_text(json.dumps({"sizes": sizes, "seed": seed}) + "\n", encoding="utf-8")


def items(task: str, sizes: dict[str, int], draw: random.Random) -> tuple[dict[str, Image.Image], dict[str, Any]]:
    """Items of one task.

    Args:
        task: `vqa`, `gqa`, `nlvr` or `caption`.
        sizes: items by split.
        draw: source of chance.

    Returns:
        Images by name, and the content of each JSON file by name.
    """
    images: dict[str, Image.Image] = {}
    rows: dict[str, list[Any]] = {split: [] for split in sizes}
    split_of: dict[str, str] = {}  # scenes by what they show: one is in one split only
    for split, size in sizes.items():
        while len(rows[split]) < size:
            pair = [scenes.make(draw, _CAPTIONED if task == "caption" else 4) for _ in range(1 + (task == "nlvr"))]
            key = repr([sorted(scene.objects.items()) for scene in pair])
            if split_of.setdefault(key, split) != split:
                continue
            names = [f"{split}-{len(rows[split]):05d}-{side}" for side in range(len(pair))]
            images |= {name: scene.draw() for name, scene in zip(names, pair, strict=True)}
            rows[split].append(_row(task, split, names, pair, draw))
    if task == "caption":
        return images, {"dataset_coco.json": {"images": [row for split in rows.values() for row in split]}}
    files: dict[str, Any] = {f"{split}.json": found for split, found in rows.items()}
    if task != "nlvr":
        files["answers.json"] = sorted({answer for found in rows.values() for row in found for answer in row["label"]})
    return images, files


def _row(task: str, split: str, names: list[str], pair: list[scenes.Scene], draw: random.Random) -> dict[str, Any]:
    if task == "caption":
        sentences = [{"raw": text} for text in scenes.describe(pair[0])]
        return {"filename": f"{names[0]}.png", "split": split, "sentences": sentences}
    if task == "nlvr":
        statement, holds = scenes.ask_nlvr(pair[0], pair[1], draw)
        return {"img0": names[0], "img1": names[1], "sent": statement, "label": holds}
    question, answer = (scenes.ask_vqa if task == "vqa" else scenes.ask_gqa)(pair[0], draw)
    return {"img_id": names[0], "sent": question, "question_id": names[0], "label": {answer: 1.0}}


def write_features(folder: Path, images: dict[str, Image.Image]) -> None:
    """Patch tokens of the last layer, `(16, 384)` for each image.

    Args:
        folder: for `<name>.npz`.
        images: images by name.
    """
    import torch
    from transformers import AutoImageProcessor, AutoModel

    track = require("rich.progress").track
    source = resolve_model(VISION)
    model = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(source)
    folder.mkdir(parents=True, exist_ok=True)
    names = list(images)
    for start in track(range(0, len(names), _BATCH), f"features of {folder.parent.name}"):
        some = names[start : start + _BATCH]
        pixels = processor([images[name] for name in some], do_resize=False, do_center_crop=False, return_tensors="pt")
        with torch.no_grad():
            tokens = model(**pixels).last_hidden_state[:, 1:].numpy()
        for name, values in zip(some, tokens, strict=True):
            np.savez(folder / f"{name}.npz", features=values)
