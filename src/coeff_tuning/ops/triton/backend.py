"""What the Triton backend serves, and its registration with torch: shapes and autograd. Triton is imported late.

Two passes: the statistics of the softmax of all rows, then outputs. A program of the second pass holds the maps of
*all* heads for a few queries and keys, `(heads, queries, keys)` in registers, since the mixture needs them all: one
batched product gives them, one `(H, H)` product mixes them, a batched one multiplies by the values. With a program
per output head, each would compute all scores, `H` times the work. With maps in a scratch buffer in global memory,
each would move through the L2 cache four times, in an order of reads and writes that no test on a CPU checks. The
price: tiles are small, `16 x 16` for 16 heads, and where the sums of all heads are more than registers hold (16 heads
of 64 features, 8 of 128 or more, in half precision) several programs share the heads, and each computes all scores.

The backward pass computes the maps of a tile again, in a kernel for each gradient. Nothing is added atomically:
results are the same in every run.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
from torch import Tensor

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.ops._call import Call, Needs, empty_gradients, empty_output
from coeff_tuning.ops.registry import Backend
from coeff_tuning.ops.request import Request, in_forward_mode, in_functorch_transform, without_autocast
from coeff_tuning.ops.triton._plan import MAX_HEADS

_MAX_HEAD_SIZE = 256
_OLDEST_TRITON = (3, 5)  # the first with products of fewer than 16 rows
_OLDEST_CAPABILITY = (8, 0)
_SHARED_KIB, _SHARED_KIB_MANY_HEADS, _MANY_HEADS = 99, 136, 32
_interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels as slow Python on the CPU


def supports(request: Request) -> tuple[bool, str]:
    """Refuses what the kernels do not compute, or the machine cannot run."""
    query, value, mask = request.query, request.value, request.attn_mask
    device, heads, sizes = query.device, query.shape[1], (query.shape[-1], value.shape[-1])
    if device.type != "cuda" and not (_interpreted and device.type == "cpu"):
        return False, f"needs a CUDA device, got {device.type}."
    lacking, shared_kib = _machine(device.type, device.index)
    if lacking:
        return False, lacking
    if query.dtype == torch.float64:
        return False, "needs float16, bfloat16 or float32, got float64."
    if not 1 <= heads <= MAX_HEADS:
        return False, f"needs 1..{MAX_HEADS} heads, got {heads}."
    if not 1 <= min(sizes) <= max(sizes) <= _MAX_HEAD_SIZE:
        return False, f"needs head sizes 1..{_MAX_HEAD_SIZE}, got {sizes[0]} and {sizes[1]}."
    needed = _SHARED_KIB if heads <= _MANY_HEADS else _SHARED_KIB_MANY_HEADS
    if shared_kib < needed:
        return False, f"needs {needed} KiB of shared memory per block for {heads} heads, got {shared_kib} KiB."
    if request.dropout_p > 0:
        return False, f"needs dropout_p=0, got {request.dropout_p}."
    if mask is not None and mask.requires_grad:
        return False, "needs a mask without gradient, got one that requires grad."
    if in_forward_mode():
        return False, "has no forward-mode derivatives."
    if not torch.compiler.is_compiling() and in_functorch_transform():
        return False, "needs a call outside of torch.func transforms, got one inside."
    return True, ""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _machine(device_type: str, index: int | None) -> tuple[str, int]:
    """What this machine lacks, "" if nothing, and its shared memory per block in KiB."""
    return _inspect(device_type, index)


@functools.cache
def _inspect(device_type: str, index: int | None) -> tuple[str, int]:
    try:
        import triton
    except ImportError:
        return "needs the package triton, which is not installed.", 0
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST_TRITON:
        return f"needs triton {_OLDEST_TRITON[0]}.{_OLDEST_TRITON[1]} or later, got {triton.__version__}.", 0
    if device_type == "cpu":
        return "", _SHARED_KIB_MANY_HEADS
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU, got one of AMD.", 0
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST_CAPABILITY:
        needed = "{}.{}".format(*_OLDEST_CAPABILITY)
        return "needs a GPU of compute capability {} or higher, got {}.{}.".format(needed, *capability), 0
    return "", torch.cuda.get_device_properties(index).shared_memory_per_block_optin // 1024  # type: ignore[attr-defined]


def triton_attention(request: Request) -> Tensor:
    """Scaled dot-product attention whose maps are mixed across heads, in fused kernels.

    Args:
        request: a call that `supports` accepted.

    Returns:
        `(B, H, L, Ev)`, dtype of `query`.

    Cost: `2*B*H*L*S*(2*E + H + Ev)` FLOPs forward and about 3.5 times that backward; half of it if causal. Beside
    inputs, outputs and gradients it holds 3 numbers per row, and `H*H` per 8 to 32 queries in the backward pass.
    """
    out: Tensor = _attention(
        request.query,
        request.key,
        request.value,
        request.coeff,
        request.attn_mask,
        request.is_causal,
        request.scale,
    )[0]
    return out


@torch.library.custom_op("coeff_tuning::triton_attention", mutates_args=())
def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor | None,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    from coeff_tuning.ops.triton._launch import forward

    with without_autocast(query.device.type):
        return forward(_call(query, key, value, coeff, mask, is_causal, scale))


@torch.library.custom_op("coeff_tuning::triton_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    statistics: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor | None,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
    needs: list[bool],
) -> list[Tensor]:
    from coeff_tuning.ops.triton._launch import backward

    call = _call(query, key, value, coeff, mask, is_causal, scale)
    with without_autocast(query.device.type):
        gradients = backward(grad, statistics, call, _needs(needs))
    return [gradient for gradient in gradients if gradient is not None]


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    coeff: Tensor | None,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> Call:
    return Call(query, key, value, coeff, mask, None, 0.0, is_causal, scale)


def _needs(needs: list[bool]) -> Needs:
    query, key, value, coeff = needs
    return Needs(query, key, value, coeff, mask=False)


@_attention.register_fake
def _attention_fake(*args: Any) -> tuple[Tensor, Tensor]:
    call = _call(*args)
    return empty_output(call), call.query.new_empty((2, *call.query.shape[:3]), dtype=torch.float32)


@_attention_backward.register_fake
def _attention_backward_fake(grad: Tensor, statistics: Tensor, *args: Any) -> list[Tensor]:
    *call, needs = args
    gradients = empty_gradients(_call(*call), _needs(needs))
    return [gradient for gradient in gradients if gradient is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *inputs[:5])
    ctx.options = inputs[5:]


def _autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:4])
    gradients = iter(_attention_backward(grad, *ctx.saved_tensors, *ctx.options, needs))
    return (*(next(gradients) if need else None for need in needs), None, None, None)


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise UnsupportedError(
        'The triton backend has first derivatives only, and a second one was asked for. Pass backend="reference".'
    )


_attention.register_autograd(_autograd, setup_context=_setup_context)
_attention_backward.register_autograd(_no_second_derivative)

# After `chunked`, which serves everything: taken only by name until it has run on a GPU, not just in the interpreter.
BACKEND = Backend("triton", priority=15, supports=supports, call=triton_attention)
