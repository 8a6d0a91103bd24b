"""Blocks of queries in plain torch: maps are never held whole, and are computed again in the backward pass.

The custom op hides the blocks from autograd and `torch.compile`. Its registration (shapes, autograd, vmap) is
here; its arithmetic is in `_chunked_kernel`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.ops._call import Call, Needs, empty_gradients, empty_output
from coeff_tuning.ops._chunked_kernel import backward, forward
from coeff_tuning.ops._chunked_vmap import vmap_backward_rule, vmap_rule
from coeff_tuning.ops.registry import Backend
from coeff_tuning.ops.request import Request, in_forward_mode, in_functorch_transform, without_autocast

_GENERATOR_DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")


def supports(request: Request) -> tuple[bool, str]:
    """Refuses forward-mode differentiation, and map dropout on a device for which torch has no random generator."""
    if in_forward_mode():
        return False, "has no forward-mode derivatives."
    device = request.query.device.type
    if request.dropout_p > 0 and device not in _GENERATOR_DEVICES:
        return False, f"needs one of {', '.join(_GENERATOR_DEVICES)} for dropout_p > 0, got device {device}."
    return True, ""


def chunked_attention(request: Request) -> Tensor:
    """Scaled dot-product attention whose maps are mixed across heads, by blocks of queries.

    Args:
        request: the checked call.

    Returns:
        `(B, H, L, Ev)`, dtype of `query`.

    Cost: `2*B*H*L*S*(E + H + Ev)` FLOPs forward and about 2.7 times that backward. Beside inputs and outputs
    it holds a few blocks of maps of some megabytes, and sums of the gradients of key and value.
    """
    # From torch's global generator: a seeded run, or a checkpointed one, drops the same entries again.
    seed = torch.randint(2**62, (), dtype=torch.int64, device="cpu") if request.dropout_p > 0 else None
    call = _Transformable.apply if _needs_function() else _attention
    return call(  # type: ignore[no-any-return,no-untyped-call]
        request.query,
        request.key,
        request.value,
        request.coeff,
        request.attn_mask,
        seed,
        request.dropout_p,
        request.is_causal,
        request.scale,
    )


@torch.library.custom_op("coeff_tuning::chunked_attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor | None,
    mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float,
) -> Tensor:
    with without_autocast(query.device.type):
        return forward(Call(query, key, value, coeff, mask, seed, dropout_p, is_causal, scale))


@torch.library.custom_op("coeff_tuning::chunked_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor | None,
    mask: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float,
    needs: list[bool],
) -> list[Tensor]:
    call = Call(query, key, value, coeff, mask, seed, dropout_p, is_causal, scale)
    with without_autocast(query.device.type):
        return [gradient for gradient in backward(grad, call, Needs(*needs)) if gradient is not None]


@_attention.register_fake
def _attention_fake(*args: Any) -> Tensor:
    return empty_output(Call(*args))


@_attention_backward.register_fake
def _attention_backward_fake(grad: Tensor, *args: Any) -> list[Tensor]:
    *call, needs = args
    return [gradient for gradient in empty_gradients(Call(*call), Needs(*needs)) if gradient is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:5])
    call = _TransformableBackward.apply if _needs_function() else _attention_backward
    gradients = iter(call(grad, *ctx.saved_tensors, *ctx.options, needs))  # type: ignore[no-untyped-call]
    return (*(next(gradients) if need else None for need in needs), None, None, None, None)


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise UnsupportedError(
        'The chunked backend has first derivatives only, and a second one was asked for. Pass backend="reference".'
    )


_attention.register_autograd(_autograd, setup_context=_setup_context)
_attention_backward.register_autograd(_no_second_derivative)


def _needs_function() -> bool:
    """Nested `torch.func` transforms need an `autograd.Function`; the autograd of a custom op is not one."""
    return not torch.compiler.is_compiling() and in_functorch_transform()


class _Transformable(torch.autograd.Function):
    generate_vmap_rule = True
    forward = staticmethod(_attention)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_autograd)


class _TransformableBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        return tuple(_attention_backward(*args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    backward = staticmethod(_no_second_derivative)


_attention.register_vmap(vmap_rule(_attention))
_attention_backward.register_vmap(vmap_backward_rule(_attention_backward))

BACKEND = Backend("chunked", priority=20, supports=supports, call=chunked_attention)
