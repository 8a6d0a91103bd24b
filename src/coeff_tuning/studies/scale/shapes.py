"""Shapes of real architectures, as published."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """One architecture.

    Attributes:
        name: of the model.
        parameters: in millions, as its authors state them.
        groups: number of attention layers, heads H and head size d of each kind of layer.
        source: where the shapes are published.
    """

    name: str
    parameters: float
    groups: tuple[tuple[int, int, int], ...]
    source: str


_VIT = "Dosovitskiy et al. 2021, table 1"
_LLAMA = "Llama Team 2024, table 3"
_QWEN = "Qwen Team 2024 (Qwen2), table 1"
SHAPES = (
    Shape("ViT-B", 86, ((12, 12, 64),), _VIT),
    Shape("ViT-L", 307, ((24, 16, 64),), _VIT),
    Shape("ViT-H", 632, ((32, 16, 80),), _VIT),
    Shape("BERT-base", 110, ((12, 12, 64),), "Devlin et al. 2019, section 3"),
    Shape("BERT-large", 340, ((24, 16, 64),), "Devlin et al. 2019, section 3"),
    Shape("SmolLM2-135M", 135, ((30, 9, 64),), "configuration of the checkpoint"),
    Shape("Qwen2 7B", 7_600, ((28, 28, 128),), _QWEN),
    Shape("Llama 3 8B", 8_000, ((32, 32, 128),), _LLAMA),
    Shape("Llama 3 70B", 70_000, ((80, 64, 128),), _LLAMA),
    Shape("Qwen2 72B", 72_000, ((80, 64, 128),), _QWEN),
    # 10 transformer blocks at width 640, 60 at width 1280, each with self- and cross-attention.
    Shape("SDXL UNet", 2_600, ((20, 10, 64), (120, 20, 64)), "configuration of the checkpoint; Podell et al. 2023"),
)
