"""VPT-shallow: learned tokens beside the patches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from coeff_tuning.errors import UnsupportedModelError
from coeff_tuning.studies.methods.vit import blocks_of

DROPOUT = 0.1


class Prompts(nn.Module):
    """Tokens that every image gets behind its first token, before the first block.

        out = [features[:, :1], dropout(prompts), features[:, 1:]]

    Unlike the other methods it does not start as the model it is attached to: every token attends to the new ones.

    Args:
        count: number of tokens.
        width: number of channels.
        patch: numbers in one patch of the image; sets the spread of the start.

    Source: Jia et al., "Visual Prompt Tuning", ECCV 2022, https://arxiv.org/abs/2203.12119.
    """

    def __init__(self, count: int, width: int, patch: int) -> None:
        super().__init__()
        limit = math.sqrt(6 / (patch + width))
        self.prompts = nn.Parameter(torch.empty(count, width).uniform_(-limit, limit))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, features: Tensor) -> Tensor:
        """Insert the tokens.

        Args:
            features: `(B, L, width)`.

        Returns:
            `(B, L + count, width)`.
        """
        own = self.dropout(self.prompts).expand(len(features), -1, -1)
        return torch.cat([features[:, :1], own, features[:, 1:]], dim=1)


def attach(model: nn.Module, count: int = 50) -> list[nn.Parameter]:
    """Give a vision transformer prompts.

    Args:
        model: a vision transformer of timm that reads the class token; changed in place.
        count: number of prompts.

    Returns:
        What is to be trained.

    Raises:
        UnsupportedModelError: it is another model, or it averages over tokens, of which prompts are none.
    """
    width = blocks_of(model)[0].attn.qkv.in_features
    vit: Any = model
    if vit.global_pool != "token":
        raise UnsupportedModelError(f"prompts need a model with global_pool='token'; got {vit.global_pool!r}")
    patch = vit.patch_embed.proj.weight[0].numel()
    added = Prompts(count, width, patch)
    vit.norm_pre = nn.Sequential(vit.norm_pre, added)
    return [added.prompts]
