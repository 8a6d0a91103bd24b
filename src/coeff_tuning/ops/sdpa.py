"""Plain attention by torch's own kernel, for coefficients that are known to be diagonal, as the identity is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from coeff_tuning.ops.registry import Backend
from coeff_tuning.ops.request import Request, dead_rows, in_functorch_transform


def supports(request: Request) -> tuple[bool, str]:
    """Refuses unless `coeff` is None or can be seen, at no cost, to be diagonal."""
    coeff = request.coeff
    if coeff is None:
        return True, ""
    if torch.compiler.is_compiling():
        return False, "needs coeff=None under torch.compile, where the values of coeff cannot be read."
    if coeff.requires_grad:
        return False, "needs a frozen coeff, got one that requires grad."
    if coeff.device.type != "cpu":
        return False, f"needs coeff=None or a coeff on the CPU, got one on {coeff.device.type}."
    if in_functorch_transform() or type(coeff) not in (Tensor, torch.nn.Parameter):
        return False, "needs a plain coeff, got one inside a torch.func transform or of a tensor subclass."
    has_others = int(coeff.count_nonzero()) > coeff.shape[:-1].numel()  # the common case, and quick to see
    factors = None if has_others else coeff.diagonal(dim1=-2, dim2=-1)
    if factors is None or not torch.equal(coeff, factors.diag_embed()):
        return False, "needs the identity or a diagonal, got other coefficients."
    if request.query.dtype in (torch.bfloat16, torch.float16) and not (factors == 1).all():
        return False, f"scales outputs, which must not be rounded before, got {request.query.dtype}."
    return True, ""


def sdpa_attention(request: Request) -> Tensor:
    """Scaled dot-product attention by torch, times the diagonal of `coeff`.

    Args:
        request: a call that `supports` accepted.

    Returns:
        `(B, H, L, Ev)`, dtype of `query`.

    Cost: that of `torch.nn.functional.scaled_dot_product_attention`, and a pass over its output unless `coeff` is the
    identity.
    """
    out = plain_attention(request)
    if request.coeff is None:
        return out
    factors = request.coeff.diagonal(dim1=-2, dim2=-1)
    return out if (factors == 1).all() else out * factors[..., None, None].to(out.dtype)


def plain_attention(request: Request) -> Tensor:
    """Scaled dot-product attention by torch; `coeff` is not looked at.

    Args:
        request: the checked call.

    Returns:
        `(B, H, L, Ev)`, dtype of `query`; zeros for a query with nothing to attend to.
    """
    mask, dead = request.attn_mask, None
    # torch's CPU kernels give zeros for a query with nothing to attend to; its other kernels need not.
    if mask is not None and mask.device.type != "cpu":
        mask, dead = open_dead_rows(mask)
    out = scaled_dot_product_attention(
        request.query,
        request.key,
        request.value,
        attn_mask=mask,
        dropout_p=request.dropout_p,
        is_causal=request.is_causal,
        scale=request.scale,
        enable_gqa=request.query.shape[1] != request.key.shape[1],
    )
    return out if dead is None else out.masked_fill(dead, 0.0)


def open_dead_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Let a query that may attend to nothing attend to everything.

    Args:
        mask: bool or float, `(..., L, S)`.

    Returns:
        The mask in which no row is shut, and the rows that were: bool, `(..., L, 1)`.
    """
    dead = dead_rows(mask)
    return (mask | dead if mask.dtype == torch.bool else mask.masked_fill(dead, 0.0)), dead


BACKEND = Backend("sdpa", priority=40, supports=supports, call=sdpa_attention, is_exportable=True)
