"""From tensors to kernels: the kernels of each pass, how many programs, which arguments.

Needs Triton; imported on first use.
"""

from __future__ import annotations

from contextlib import nullcontext
from math import ceil
from typing import Any

import torch
from torch import Tensor

from coeff_tuning.ops._call import Call, Gradients, Needs, empty_gradients, empty_output, is_empty
from coeff_tuning.ops.triton import _backward_kernels, _forward_kernels
from coeff_tuning.ops.triton._plan import Plan, Task, make_plan


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """Attention with mixed maps.

    Args:
        call: arguments of the op, without dropout.

    Returns:
        `(B, H, L, Ev)` in the dtype of `query`; and `(2, B, H, L)` in float32, for each row the largest score and
        the inverse of the sum of exponentials.
    """
    out = empty_output(call)
    statistics = call.query.new_empty((2, *call.query.shape[:3]), dtype=torch.float32)
    if is_empty(call):
        return out.zero_(), statistics.zero_()
    query, key, value, mask = _argument(call.query), _argument(call.key), _argument(call.value), _mask(call)
    _run(_forward_kernels.statistics_kernel, call, _plan(call, "statistics"), query, key, mask, tuple(statistics))
    _run(
        _forward_kernels.output_kernel,
        call,
        _plan(call, "queries", call.value.shape[-1]),
        *(query, key, value, _argument(_coeff(call)), mask, tuple(statistics), _argument(out)),
    )
    return out, statistics


def backward(grad: Tensor, statistics: Tensor, call: Call, needs: Needs) -> Gradients:
    """Gradients of `forward`; the maps are computed again, tile by tile.

    Args:
        grad: of the output, `(B, H, L, Ev)`.
        statistics: those of the forward.
        call: arguments of the forward.
        needs: which gradients to compute; not that of the mask.

    Returns:
        Gradients in the dtype of their inputs, None where not needed.
    """
    gradients = empty_gradients(call, needs)
    if is_empty(call):
        return gradients.zero_()
    query, key, value, mask = _argument(call.query), _argument(call.key), _argument(call.value), _mask(call)
    coeff, maps = _coeff(call), (mask, tuple(statistics))
    if gradients.value is not None:
        plan = _plan(call, "keys", call.value.shape[-1])
        sums = _sums(gradients.value, plan)
        arguments = (query, key, _argument(coeff), *maps, _argument(grad), _argument(sums))
        _run(_backward_kernels.value_gradient_kernel, call, plan, *arguments)
        _add_up(sums, gradients.value)
    if not (needs.query or needs.key or needs.coeff):
        return gradients

    delta = torch.empty_like(statistics[0])
    inputs = (query, key, value, _argument(coeff.mT), *maps, _argument(grad), delta)
    plan = _plan(call, "delta")
    dcoeff = delta.new_empty((_programs(call, plan), plan.mix_size, plan.mix_size))
    _run(_backward_kernels.delta_kernel, call, plan, *inputs, dcoeff)
    if gradients.coeff is not None:
        _add_up_coeff(dcoeff, gradients.coeff, plan)
    if gradients.query is not None:
        plan = _plan(call, "queries", call.query.shape[-1])
        _run(_backward_kernels.query_gradient_kernel, call, plan, *inputs, _argument(gradients.query))
    if gradients.key is not None:
        plan = _plan(call, "keys", call.query.shape[-1])
        sums = _sums(gradients.key, plan)
        _run(_backward_kernels.key_gradient_kernel, call, plan, *inputs, _argument(sums))
        _add_up(sums, gradients.key)
    return gradients


def _plan(call: Call, task: Task, features: int = 0) -> Plan:
    return make_plan(call.query, call.key, call.value, call.mask, call.is_causal, task, features)


def _programs(call: Call, plan: Plan) -> int:
    """How many programs a kernel has; its grid has one dimension, as the others are limited to 65535."""
    batch, _, length, _ = call.query.shape
    blocks = ceil(call.key.shape[2] / plan.keys) if plan.task == "keys" else ceil(length / plan.queries)
    return blocks * (plan.bundles // plan.outputs) * batch


def _run(kernel: Any, call: Call, plan: Plan, *arguments: Any) -> None:
    device, sizes = call.query.device, (call.query.shape[2], call.key.shape[2], call.scale)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(_programs(call, plan),)](*arguments, *sizes, plan, num_warps=plan.warps, num_stages=1)


def _argument(tensor: Tensor) -> tuple[Tensor | int, ...]:
    """A tensor as kernels take it, with its strides: 4 of them, or 3 for coefficients."""
    return (tensor, *tensor.stride())


def _coeff(call: Call) -> Tensor:
    """Coefficients as `(B, H, H)`, with stride 0 where they are shared."""
    batch, heads = call.query.shape[:2]
    coeff = torch.eye(heads, device=call.query.device) if call.coeff is None else call.coeff
    return coeff.expand(batch, heads, heads)


def _mask(call: Call) -> tuple[Tensor | int, ...]:
    """The mask as an argument, with stride 0 where it is shared; without one, a stand-in that is not read."""
    if call.mask is None:
        return _argument(call.query)
    mask = call.mask.view(torch.uint8) if call.mask.dtype == torch.bool else call.mask
    return _argument(mask.expand(*call.query.shape[:3], call.key.shape[2]))


def _sums(gradient: Tensor, plan: Plan) -> Tensor:
    """Where to write the gradient of keys or values: in place, or to one sum per bundle."""
    if plan.split == 1:
        return gradient
    batch, kv_heads, source, features = gradient.shape
    return gradient.new_empty((batch, kv_heads * plan.split, source, features), dtype=torch.float32)


def _add_up(sums: Tensor, gradient: Tensor) -> None:
    if sums is not gradient:
        gradient.copy_(sums.unflatten(1, (gradient.shape[1], -1)).sum(2))


def _add_up_coeff(parts: Tensor, gradient: Tensor, plan: Plan) -> None:
    """Add up what the programs wrote, and leave out the padding of heads."""
    places, width = plan.bundles * plan.members, plan.mix_width
    batch = gradient.shape[0] if gradient.dim() == 3 else 1
    total = parts.unflatten(0, (batch, -1)).sum(1).view(batch, places, width, places, width)
    total = total.diagonal(dim1=2, dim2=4).sum(-1)  # (B or 1, places, places)
    group = torch.arange(plan.group, device=parts.device)
    first = torch.arange(plan.kv_heads, device=parts.device) * plan.split * plan.members
    real = (first[:, None] + group).flatten()
    gradient.copy_(total[:, real[:, None], real].view_as(gradient))
