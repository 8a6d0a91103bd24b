"""One value head for all query heads (multi-query attention): torch's own kernel, then a mix of its outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from coeff_tuning.ops.registry import Backend
from coeff_tuning.ops.request import Request
from coeff_tuning.ops.sdpa import plain_attention


def supports(request: Request) -> tuple[bool, str]:
    """Refuses several value heads, and half types.

    G value heads would take G calls of torch's kernel. Each costs what plain attention costs, and the other backends
    on a CPU cost less than two of them, so the rule is G = 1.
    """
    kv_heads, dtype = request.key.shape[1], request.query.dtype
    if kv_heads != 1:
        return False, f"needs one key/value head, got {kv_heads}."
    if dtype not in (torch.float32, torch.float64):
        return False, f"mixes outputs, which must not be rounded before, got {dtype}."
    return True, ""


def mqa_attention(request: Request) -> Tensor:
    """Scaled dot-product attention whose maps are mixed across heads that share one value head.

        out[h] = sum_i coeff[h, i] * (A[i] @ value)        # = (sum_i coeff[h, i] * A[i]) @ value

    Args:
        request: a call that `supports` accepted.

    Returns:
        `(B, H, L, Ev)`, dtype of `query`.

    Cost: that of `torch.nn.functional.scaled_dot_product_attention`, and `2*B*H*H*L*Ev` FLOPs for the mix.
    """
    out = plain_attention(request)
    if request.coeff is None:
        return out
    return (request.coeff.to(out.dtype) @ out.flatten(2)).view(out.shape)


BACKEND = Backend("mqa", priority=25, supports=supports, call=mqa_attention, is_exportable=True)
