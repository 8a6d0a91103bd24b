"""SSF: scale and shift the features after every operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from coeff_tuning.studies.methods.vit import LINEAR_LAYERS, blocks_of


class ScaleShift(nn.Module):
    """One factor and one offset for each channel.

        out = scale * features + shift

    It starts as the identity; the authors' code starts with noise of 0.02 on both, which changes the model a little.

    Args:
        width: number of channels.

    Source: Lian, Zhou, Feng, Wang, "Scaling & Shifting Your Features", NeurIPS 2022, https://arxiv.org/abs/2210.08823.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        """Apply it.

        Args:
            features: `(..., width)`.

        Returns:
            The same shape.
        """
        return self.scale * features + self.shift


def attach(model: nn.Module) -> list[nn.Parameter]:
    """Scale and shift after the patch embedding, every norm and every linear layer.

    Args:
        model: a vision transformer of timm; changed in place.

    Returns:
        What is to be trained.
    """
    blocks = blocks_of(model)
    width = blocks[0].attn.qkv.in_features
    places: list[tuple[Any, str, int]] = [(model, "patch_embed.norm", width)]
    for block in blocks:
        places += [(block, name, block.get_submodule(name).out_features) for name in LINEAR_LAYERS]
        places += [(block, name, width) for name in ("norm1", "norm2")]
    places.append((model, "norm", width))
    trained: list[nn.Parameter] = []
    for parent, name, size in places:
        added = ScaleShift(size)
        parent.set_submodule(name, nn.Sequential(parent.get_submodule(name), added))
        trained += added.parameters()
    return trained
