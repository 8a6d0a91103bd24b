"""One attention call, checked and brought to a canonical form: what every backend receives."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Request(NamedTuple):
    """A call of `coeff_attention` after its checks; `H` is a multiple of `Hkv`.

    Attributes:
        query: `(B, H, L, E)`.
        key: `(B, Hkv, S, E)`, dtype and device of `query`.
        value: `(B, Hkv, S, Ev)`, dtype and device of `query`.
        coeff: `(H, H)` or `(B, H, H)` in any float dtype; None stands for the identity.
        attn_mask: 4 dimensions, each 1 or that of `(B, H, L, S)`; bool (True takes part) or float (added).
        dropout_p: chance to zero an entry of a map, in `[0, 1)`.
        is_causal: query `i` sees keys `0..i`. Never together with `attn_mask`.
        scale: factor on the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    coeff: Tensor | None
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of scores, maps and sums for inputs of `dtype`: float64 stays, all else is float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dead_rows(mask: Tensor) -> Tensor:
    """Queries that a mask `(..., L, S)` leaves nothing to attend to: bool, `(..., L, 1)`."""
    if mask.dtype == torch.bool:
        return ~mask.any(-1, keepdim=True)
    return mask.amax(-1, keepdim=True) == -torch.inf


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Context in which autocast, where it is on, changes no dtype."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def is_exporting() -> bool:
    """Whether `torch.export` or `torch.onnx.export` traces this call; torch can tell since 2.7."""
    tell = getattr(torch.compiler, "is_exporting", None)
    return tell is not None and bool(tell())


def is_plain_inference(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a call is of interest to its caller alone: no autograd, tracer, mode or tensor subclass looks at it.

    Args:
        tensors: the inputs; None for one that is not there.

    Returns:
        Whether numbers may be computed at once, past torch's dispatcher.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or in_functorch_transform():
        return False
    if in_forward_mode():
        return False
    records = torch.is_grad_enabled()
    given = [x for x in tensors if x is not None]
    return all(type(x) in (Tensor, Parameter) and not (records and x.requires_grad) for x in given)


def in_functorch_transform() -> bool:
    """Whether a `torch.func` transform (vmap, grad, ...) is at work, so that values cannot be read."""
    return bool(torch._C._are_functorch_transforms_active())


def in_forward_mode() -> bool:
    """Whether forward-mode differentiation is on, whose tangents an op of ours would drop without a word."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0
