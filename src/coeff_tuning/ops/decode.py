"""Few queries, as in generation with a cache: their maps are small, and products over groups of heads are fastest."""

from __future__ import annotations

import torch
from torch import Tensor

from coeff_tuning.ops.registry import Backend
from coeff_tuning.ops.request import Request, compute_dtype, dead_rows

MOST_QUERIES = 4


def supports(request: Request) -> tuple[bool, str]:
    """Refuses more than a few queries, and map dropout."""
    length = request.query.shape[2]
    if length > MOST_QUERIES:
        return False, f"is for at most {MOST_QUERIES} queries, got {length}."
    if request.dropout_p > 0:
        return False, f"needs dropout_p=0, got {request.dropout_p}."
    return True, ""


def decode_attention(request: Request) -> Tensor:
    """Scaled dot-product attention whose maps are mixed across heads, for few queries.

    The query heads that share a key/value head are the rows of one product: keys and values are read once.

    Args:
        request: the checked call.

    Returns:
        `(B, H, L, Ev)`, dtype of `query`.

    Cost: `2*B*H*L*S*(E + H + Ev)` FLOPs; holds a few arrays of `B*H*L*S` numbers.
    """
    batch, heads, length, size = request.query.shape
    kv_heads, source = request.key.shape[1:3]
    dtype = compute_dtype(request.query.dtype)
    query = (request.query.to(dtype) * request.scale).reshape(batch, kv_heads, heads // kv_heads * length, size)
    scores = (query @ request.key.to(dtype).mT).view(batch, heads, length, source)
    mask = _mask(request)
    if mask is not None:
        dead = dead_rows(mask)
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        maps = torch.softmax(scores.masked_fill(dead, 0.0), -1).masked_fill(dead, 0.0)
    else:
        maps = torch.softmax(scores, -1)
    if request.coeff is not None:
        maps = (request.coeff.to(dtype) @ maps.flatten(2)).view(maps.shape)
    out = maps.reshape(batch, kv_heads, heads // kv_heads * length, source) @ request.value.to(dtype)
    return out.reshape(batch, heads, length, out.shape[-1]).to(request.query.dtype)


def _mask(request: Request) -> Tensor | None:
    if not request.is_causal:
        return request.attn_mask
    length, source = request.query.shape[2], request.key.shape[2]
    return torch.ones(1, 1, length, source, dtype=torch.bool, device=request.query.device).tril()


BACKEND = Backend("decode", priority=28, supports=supports, call=decode_attention)
