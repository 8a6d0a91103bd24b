"""`coeff_attention`, the op: its meaning, and the dispatch of a checked call to a backend."""

from __future__ import annotations

from torch import Tensor

from coeff_tuning.ops import select_backend
from coeff_tuning.ops.canonical import make_request
from coeff_tuning.ops.request import without_autocast


def coeff_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor | None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    backend: str | None = None,
) -> Tensor:
    """Scaled dot-product attention whose attention maps are mixed across heads.

    Same call as `torch.nn.functional.scaled_dot_product_attention` plus `coeff`:

        A[g]   = dropout(softmax(scale * query[g] @ key[g].T + mask))   # map of head g, (L, S)
        out[h] = sum_g(coeff[h, g] * A[g]) @ value[h]                   # (L, Ev)

    The identity gives plain attention. Entries may be negative and rows need not sum to 1. All of query, key,
    value, coeff and a float mask receive gradients.

    Args:
        query: `(..., H, L, E)`, heads before positions. Leading dimensions, usually one, the batch `B`,
            may be missing; those of query, key and value broadcast against each other.
        key: `(..., Hkv, S, E)`; `Hkv` is `H` or 1 unless `enable_gqa`.
        value: `(..., Hkv, S, Ev)`.
        coeff: `(H, H)` over query heads, or `(..., H, H)`, one matrix per sample; row `h` is the mixture used
            by output head `h`. Any float dtype; float32 beside half inputs is usual. None: the identity.
        attn_mask: broadcastable to `(..., H, L, S)`. Bool: True takes part. Float: added to the scores.
            A query with nothing to attend to (all False, or all -inf) gives zeros, not NaN.
        dropout_p: chance to zero an entry of a map before mixing. Applied whenever > 0; pass 0.0 to evaluate.
        is_causal: query `i` sees keys `0..i` (top-left aligned, also when `L != S`). Not with `attn_mask`.
        scale: factor on the scores. Default: `1 / sqrt(E)`.
        enable_gqa: share each key/value head among `H // Hkv` query heads.
        backend: name of the backend to use, see `coeff_tuning.ops.list_backends()`; if it cannot serve the
            call, `coeff_tuning.errors.UnsupportedError` says why. None: the first that can.

    Returns:
        `(..., H, L, Ev)`, dtype of `query`. For half types scores, softmax and mixture are in float32. Under
        autocast query, key, value and a float mask are cast first, as SDPA does; coeff is not.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: shapes, dtypes or devices disagree, `dropout_p` is outside `[0, 1)`, `attn_mask` comes
            with `is_causal=True`, or there is no backend of this name.

    Cost: `2*B*H*L*S*(E + H + Ev)` FLOPs forward. Memory beside inputs and outputs does not grow with `L*S`,
    except in the reference backend, which holds O(B*H*L*S) numbers.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 2, 4, 5, 8).unbind(0)   # B=2, H=4, L=S=5, E=Ev=8
        >>> out = coeff_attention(q, k, v, torch.eye(4))
        >>> torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, k, v))

    Source: Miao, Chen, Qiu, "Coeff-Tuning", CVPR 2025, https://arxiv.org/abs/2503.18337.
    """
    for name, argument in (("query", query), ("key", key), ("value", value)):
        if not isinstance(argument, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(argument).__name__}.")
    for name, optional in (("coeff", coeff), ("attn_mask", attn_mask)):
        if not (optional is None or isinstance(optional, Tensor)):
            raise TypeError(f"{name} must be a torch.Tensor or None; got {type(optional).__name__}.")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p must be in [0, 1); got {dropout_p}.")
    if is_causal and attn_mask is not None:
        raise ValueError(
            f"attn_mask must be None when is_causal=True; got one of shape {tuple(attn_mask.shape)}. "
            "Pass one mask that says both."
        )
    request, batch = make_request(query, key, value, coeff, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    chosen = select_backend(request, backend)
    with without_autocast(query.device.type):
        out = chosen.call(request)
    return out if len(batch) == 1 else out.reshape(*batch, *out.shape[1:])
