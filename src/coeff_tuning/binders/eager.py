"""Mixed attention that holds its maps: for callers who want to see them, and for scores that the op does not know."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mixed_eager(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor,
    mask: Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Eager attention, map by map, with the mix before the product with the values.

    Args:
        query: `(B, H, L, E)`.
        key: `(B, Hkv, S, E)`.
        value: `(B, Hkv, S, Ev)`.
        coeff: `(H, H)` or `(B, H, H)`.
        mask: None, or bool (True takes part) or float (added), broadcastable to `(B, H, L, S)`.
        dropout: chance to zero an entry of a map, before mixing.
        scaling: factor on the scores. None: `1 / sqrt(E)`.
        softcap: bound of the scores, as in Gemma2.
        s_aux: one sink per head, `(H,)`: a column that takes part in the softmax and is dropped after it.

    Returns:
        The output `(B, H, L, Ev)` and the mixed maps `(B, H, L, S)`, both in the dtype of `value`.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scale  # (B, H, L, S)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if s_aux is not None:
        sinks = s_aux.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
        scores = torch.cat([scores, sinks], dim=-1)  # (B, H, L, S + 1)
    dead = (scores == -torch.inf).all(-1, keepdim=True)  # masked before the softmax too, whose gradient would be NaN
    maps = scores.masked_fill(dead, 0.0).softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    maps = maps.masked_fill(dead, 0.0)
    maps = nn.functional.dropout(maps[..., : key.shape[2]], p=dropout)
    mixed = torch.einsum("hi,bils->bhls" if coeff.dim() == 2 else "bhi,bils->bhls", coeff.to(maps.dtype), maps)
    mixed = mixed.to(value.dtype)
    return mixed @ value, mixed
