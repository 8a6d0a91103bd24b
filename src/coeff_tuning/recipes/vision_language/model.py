"""BART with projected image features in front of its text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BartForConditionalGeneration

PROJECTION = "visual_projection"


class VisionBart(BartForConditionalGeneration):  # type: ignore[misc]
    """`BartForConditionalGeneration` that reads `LayerNorm(Linear(features))` before the text.

    Args:
        config: a `BartConfig`; its `visual_width` is the number of features (2048 by default).
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = getattr(config, "visual_width", 2048)
        self.visual_projection = nn.Sequential(nn.Linear(width, config.d_model), nn.LayerNorm(config.d_model))
        self.post_init()

    def forward(self, features: Tensor | None = None, **kwargs: Any) -> Any:
        """As BART; with `features` they stand in front of `input_ids`.

        Args:
            features: `(B, N, width)`; `attention_mask` is then `(B, N + L)`.
            **kwargs: as for BART.

        Returns:
            What BART returns.
        """
        if features is not None:
            kwargs["inputs_embeds"] = self.join(features, kwargs.pop("input_ids"))
        return super().forward(**kwargs)

    def join(self, features: Tensor, input_ids: Tensor) -> Tensor:
        """Projected features, then the embedded text.

        Args:
            features: `(B, N, width)`.
            input_ids: `(B, L)`.

        Returns:
            `(B, N + L, d_model)`.
        """
        return torch.cat([self.visual_projection(features), self.model.encoder.embed_tokens(input_ids)], dim=1)
