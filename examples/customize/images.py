"""Images of the subject and of its class: read from a folder, drawn where they are missing."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from coeff_tuning.errors import DataError, RunError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass
class Picture:
    """An image as a UNet is trained on it.

    Attributes:
        pixels: `(3, R, R)` in [-1, 1], the shorter side resized to R, the middle kept.
        time_ids: what SDXL is told of it: original height and width, first row and column kept, R and R.
    """

    pixels: Tensor
    time_ids: Tensor


def find(folder: str | Path) -> list[Path]:
    """Image files of a folder, by name.

    Raises:
        DataError: there is no such folder, or no image in it.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder} must be a folder of images; there is no such folder")
    found = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no image; it must hold files ending in {', '.join(sorted(SUFFIXES))}")
    return found


def open_image(path: Path) -> Image.Image:
    """An image in RGB, upright.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} cannot be read: {error}") from error


def read(path: Path, resolution: int) -> Picture:
    """Read an image for training.

    Args:
        path: its file.
        resolution: side of the square that is kept.

    Returns:
        The picture.

    Raises:
        DataError: it cannot be read.
    """
    image = open_image(path)
    width, height = image.size
    scale = resolution / min(width, height)
    width, height = round(width * scale), round(height * scale)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    box = (left, top, left + resolution, top + resolution)
    square = image.resize((width, height), Image.Resampling.LANCZOS).crop(box)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 127.5 - 1
    return Picture(pixels, torch.tensor([image.height, image.width, top, left, resolution, resolution]).float())


@torch.no_grad()
def draw(pipe: Any, prompt: str, seed: int, size: int, steps: int, guidance_scale: float) -> Image.Image:
    """Draw one image.

    Args:
        pipe: the pipeline.
        prompt: what is drawn.
        seed: the image follows from it.
        size: height and width.
        steps: of denoising.
        guidance_scale: of classifier-free guidance.

    Returns:
        The image.

    Raises:
        RunError: the pipeline's safety checker blackened it.
    """
    result = pipe(
        prompt,
        height=size,
        width=size,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=torch.Generator().manual_seed(seed),
    )
    if any(getattr(result, "nsfw_content_detected", None) or []):
        raise RunError(
            f"the safety checker blackened the image of {prompt!r} with seed {seed}; change prompt or --seed"
        )
    return result.images[0]


def complete(pipe: Any, folder: Path, prompt: str, number: int, size: int, steps: int, seed: int) -> None:
    """Draw images of the class with the base model until a folder holds `number`; a killed run goes on.

    Args:
        pipe: the pipeline, nothing attached.
        folder: made where it is missing.
        prompt: the class.
        number: images wanted.
        size: height and width.
        steps: of denoising.
        seed: of the first image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = sum(p.suffix.lower() in SUFFIXES and not p.name.startswith(".") for p in folder.iterdir())
    names = (folder / f"class-{index:04d}.png" for index in range(held + number))
    missing = [path for path in names if not path.exists()][: max(0, number - held)]
    for count, path in enumerate(missing, start=1):
        print(f"drawing class image {count} of {len(missing)}", flush=True)
        image = draw(pipe, prompt, seed + int(path.stem.rpartition("-")[2]), size, steps, 7.5)
        partial = path.with_name(f".{path.name}")
        image.save(partial)
        os.replace(partial, path)
