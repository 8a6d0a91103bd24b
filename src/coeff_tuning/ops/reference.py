"""The formula, literally: ground truth for every other backend. Holds all maps at once."""

from __future__ import annotations

import torch
from torch import Tensor

from coeff_tuning.ops.registry import Backend
from coeff_tuning.ops.request import Request, compute_dtype


def supports(request: Request) -> tuple[bool, str]:
    """Every request is supported."""
    return True, ""


def reference_attention(request: Request) -> Tensor:
    """Scaled dot-product attention whose maps are mixed across heads, as plain differentiable torch.

        scores = scale * query @ key.T + mask
        maps   = dropout(softmax(scores))              # zeros where a query has nothing to attend to
        mixed[h] = sum_g(coeff[h, g] * maps[g])
        out    = mixed @ value

    Args:
        request: the checked call.

    Returns:
        `(B, H, L, Ev)`, dtype of `query`.

    Cost: `2*B*H*L*S*(E + H + Ev)` FLOPs, and about six arrays of `B*H*L*S` numbers with gradients.
    """
    dtype = compute_dtype(request.query.dtype)
    heads = request.query.shape[1]
    group = heads // request.key.shape[1]
    query = request.query.to(dtype)  # (B, H, L, E)
    key = request.key.to(dtype).repeat_interleave(group, dim=1)  # (B, H, S, E)
    value = request.value.to(dtype).repeat_interleave(group, dim=1)  # (B, H, S, Ev)
    identity = torch.eye(heads, dtype=dtype, device=query.device)  # (H, H)
    coeff = identity if request.coeff is None else request.coeff.to(dtype)  # (H, H) or (B, H, H)

    scores = request.scale * (query @ key.mT)  # (B, H, L, S)
    if request.is_causal:
        past = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()  # (L, S)
        scores = scores.masked_fill(~past, -torch.inf)  # (B, H, L, S)
    if request.attn_mask is not None:
        mask = request.attn_mask  # broadcasts to (B, H, L, S)
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask

    dead = (scores == -torch.inf).all(dim=-1, keepdim=True)  # (B, H, L, 1)
    maps = scores.masked_fill(dead, 0.0).softmax(dim=-1).masked_fill(dead, 0.0)  # (B, H, L, S)
    maps = torch.nn.functional.dropout(maps, request.dropout_p)  # (B, H, L, S)
    equation = "hg,bgls->bhls" if coeff.dim() == 2 else "bhg,bgls->bhls"
    mixed = torch.einsum(equation, coeff, maps)  # (B, H, L, S)
    return (mixed @ value).to(request.query.dtype)  # (B, H, L, Ev)


BACKEND = Backend("reference", priority=10, supports=supports, call=reference_attention, is_exportable=True)
