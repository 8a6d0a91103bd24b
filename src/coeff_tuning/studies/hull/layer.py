"""The layer of the toy study: one multi-head attention layer whose values can be drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coeff_tuning import coeff_attention


class HullLayer(nn.Module):
    """One self-attention layer on random tokens, whose H heads have values in the plane.

        q, k = tokens @ wq, tokens @ wk                # each head sees its 2 columns
        v[h] = columns 2h and 2h + 1 of the tokens     # Wv is the identity: head h averages "its" 2-D features
        coeff = I + coeff_delta                        # coeff_delta starts at zero
        out[h] = sum_g(coeff[h, g] * softmax(q[g] @ k[g].T / sqrt(2))) @ v[h]

    There is no output projection: the hull of head h's values is what head h's outputs are compared with.

    Args:
        num_heads: H.
        num_tokens: N.
        generator: draws tokens and weights.

    Attributes:
        tokens: `(N, 2H)`, fixed.
        value: `(H, N, 2)`, fixed.
        wq: `(2H, 2H)`.
        wk: `(2H, 2H)`.
        coeff_delta: `(H, H)`.
    """

    tokens: Tensor
    value: Tensor

    def __init__(self, num_heads: int, num_tokens: int, generator: torch.Generator) -> None:
        super().__init__()
        width = 2 * num_heads
        tokens = torch.randn(num_tokens, width, generator=generator, dtype=torch.float64)
        weights = torch.randn(2, width, width, generator=generator, dtype=torch.float64) / width**0.5
        self.num_heads = num_heads
        self.register_buffer("tokens", tokens)
        self.register_buffer("value", self._split(tokens))
        self.wq, self.wk = (nn.Parameter(weight) for weight in weights.clone())
        self.coeff_delta = nn.Parameter(torch.zeros(num_heads, num_heads, dtype=torch.float64))

    def forward(self) -> Tensor:
        """Outputs of all heads.

        Returns:
            `(H, N, 2)`.
        """
        return self._attend(self.value)

    def mixed_maps(self) -> Tensor:
        """The maps after mixing: attention on values that are the unit vectors.

        Returns:
            `(H, N, N)`.
        """
        num_tokens = self.value.shape[1]
        return self._attend(torch.eye(num_tokens, dtype=torch.float64).expand(self.num_heads, -1, -1))

    def _attend(self, value: Tensor) -> Tensor:
        query, key = (self._split(self.tokens @ weight) for weight in (self.wq, self.wk))
        coeff = torch.eye(self.num_heads, dtype=torch.float64) + self.coeff_delta
        return coeff_attention(query, key, value, coeff, backend="reference")

    def _split(self, features: Tensor) -> Tensor:
        """`(N, 2H)` to `(H, N, 2)`."""
        return features.reshape(-1, self.num_heads, 2).transpose(0, 1)
