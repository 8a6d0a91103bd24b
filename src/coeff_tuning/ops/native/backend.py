"""The op on the CPU by a compiled kernel: its registration with torch. The arithmetic is in `csrc`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.ops.native.launch import Call, Needs, backward, empty_gradients, empty_results, forward
from coeff_tuning.ops.native.library import why_missing
from coeff_tuning.ops.registry import Backend
from coeff_tuning.ops.request import (
    Request,
    in_forward_mode,
    in_functorch_transform,
    is_plain_inference,
    without_autocast,
)


def supports(request: Request) -> tuple[bool, str]:
    """Refuses what the kernel does not compute, and machines without it."""
    query, mask = request.query, request.attn_mask
    if query.device.type != "cpu":
        return False, f"needs tensors on the CPU, got device {query.device.type}."
    if query.dtype == torch.float64:
        return False, "computes in float32, got float64."
    if request.dropout_p > 0:
        return False, f"needs dropout_p=0, got {request.dropout_p}."
    if mask is not None and mask.requires_grad:
        return False, "gives no gradient to a float mask, got one that requires grad."
    if 0 in (*query.shape, *request.key.shape, *request.value.shape):
        return False, f"needs sizes above 0, got query {tuple(query.shape)} and value {tuple(request.value.shape)}."
    if in_forward_mode():
        return False, "has no forward-mode derivatives."
    if in_functorch_transform():
        return False, "needs plain tensors, got ones inside a torch.func transform."
    reason = why_missing()
    return not reason, reason


def native_attention(request: Request) -> Tensor:
    """Scaled dot-product attention whose maps are mixed across heads, by the compiled kernel.

    Args:
        request: the checked call.

    Returns:
        `(B, H, L, Ev)`, dtype of `query`.

    Cost: `2*B*H*L*S*(E + H + Ev)` FLOPs forward and about 2.6 times that backward. Beside inputs and outputs each
    thread holds `4*H*S` bytes for each of at most 48 queries, backward twice that for each of at most 96.
    """
    coeff = request.coeff
    if coeff is None:
        coeff = torch.eye(request.query.shape[1])
    call = Call(request.query, request.key, request.value, coeff, request.attn_mask, request.is_causal, request.scale)
    if is_plain_inference(call[:5]):  # the way through torch's dispatcher takes longer than a short decoding step
        return forward(call)[0]
    return _attention(*call)[0]  # type: ignore[no-any-return]


@torch.library.custom_op("coeff_tuning::native_attention", mutates_args=())
def _attention(
    query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    with without_autocast("cpu"):
        return forward(Call(query, key, value, coeff, mask, is_causal, scale))


@torch.library.custom_op("coeff_tuning::native_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor,
    mask: Tensor | None,
    stats: Tensor,
    is_causal: bool,
    scale: float,
    needs: list[bool],
) -> list[Tensor]:
    with without_autocast("cpu"):
        return backward(grad, Call(query, key, value, coeff, mask, is_causal, scale), stats, Needs(*needs))


@_attention.register_fake
def _attention_fake(*args: Any) -> tuple[Tensor, Tensor]:
    return empty_results(Call(*args))


@_attention_backward.register_fake
def _attention_backward_fake(grad: Tensor, *args: Any) -> list[Tensor]:
    query, key, value, coeff, mask, _, is_causal, scale, needs = args
    return empty_gradients(Call(query, key, value, coeff, mask, is_causal, scale), Needs(*needs))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[1])
    ctx.options = inputs[5:]


def _autograd(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:4])
    gradients = iter(_attention_backward(grad, *ctx.saved_tensors, *ctx.options, needs))
    return (*(next(gradients) if need else None for need in needs), None, None, None)


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise UnsupportedError(
        'The native backend has first derivatives only, and a second one was asked for. Pass backend="reference".'
    )


_attention.register_autograd(_autograd, setup_context=_setup_context)
_attention_backward.register_autograd(_no_second_derivative)

BACKEND = Backend("native", priority=30, supports=supports, call=native_attention)
