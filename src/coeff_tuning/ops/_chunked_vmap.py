"""`torch.func.vmap` over the chunked op: the mapped dimension becomes part of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from coeff_tuning.ops._call import Call, Needs

Dims = tuple[int | None, ...]
Rule = Callable[..., tuple[Any, Any]]
_NO_NEEDS = Needs(False, False, False, False, False)


def vmap_rule(op: Callable[..., Tensor]) -> Rule:
    """Rule for the forward op."""

    def rule(info: Any, in_dims: Dims, *args: Any) -> tuple[Tensor, int]:
        size = info.batch_size
        args, mapped = _to_front(args, in_dims)
        call = Call(*args)
        if call.seed is not None and not mapped[5]:
            return torch.stack([op(*_select(args, mapped, i)) for i in range(size)]), 0
        return op(*_fold(call, mapped, size, _NO_NEEDS)).unflatten(0, (size, -1)), 0

    return rule


def vmap_backward_rule(op: Callable[..., list[Tensor]]) -> Rule:
    """Rule for the backward op."""

    def rule(info: Any, in_dims: Dims, *args: Any) -> tuple[list[Tensor], list[int]]:
        size = info.batch_size
        args, mapped = _to_front(args, in_dims)
        grad, call, needs = args[0], Call(*args[1:-1]), Needs(*args[-1])
        if call.seed is not None and not mapped[6]:
            samples = [op(*_select(args, mapped, i)) for i in range(size)]
            stacked = [torch.stack(gradients) for gradients in zip(*samples, strict=True)]
            return stacked, [0] * len(stacked)
        folded = _fold(call, mapped[1:], size, needs)
        gradients = op(_fold_first(grad, mapped[0], size), *folded, args[-1])
        gradients = [gradient.unflatten(0, (size, -1)) for gradient in gradients]

        shared_coeff = call.coeff is not None and call.coeff.dim() - mapped[4] == 2
        shared_mask = call.mask is not None and call.mask.shape[int(mapped[5])] == 1
        if needs.mask and shared_mask:
            gradients[-1] = gradients[-1].sum(1, keepdim=True)
        if needs.coeff and shared_coeff:
            index = sum(needs[:3])
            gradients[index] = gradients[index].sum(1)
        return gradients, [0] * len(gradients)

    return rule


def _to_front(args: tuple[Any, ...], in_dims: Dims) -> tuple[tuple[Any, ...], tuple[bool, ...]]:
    """Move mapped dimensions to the front; also tells which arguments have one."""
    dims = (*in_dims, *[None] * (len(args) - len(in_dims)))
    mapped = tuple(isinstance(dim, int) for dim in dims)
    moved = tuple(x.movedim(d, 0) if isinstance(d, int) else x for x, d in zip(args, dims, strict=True))
    return moved, mapped


def _select(args: tuple[Any, ...], mapped: tuple[bool, ...], index: int) -> list[Any]:
    """Arguments of one sample."""
    return [x[index] if is_mapped else x for x, is_mapped in zip(args, mapped, strict=True)]


def _fold_first(tensor: Tensor, is_mapped: bool, size: int) -> Tensor:
    """`(V, B, ...)`, or `(B, ...)` repeated, as `(V*B, ...)`."""
    return (tensor if is_mapped else tensor.expand(size, *tensor.shape)).flatten(0, 1)


def _fold(call: Call, mapped: tuple[bool, ...], size: int, needs: Needs) -> Call:
    """Arguments over a batch of `V*B`; coefficients and mask stay shared where all samples share them."""
    batch = call.query.shape[int(mapped[0])]
    query, key, value = (_fold_first(x, m, size) for x, m in zip(call[:3], mapped[:3], strict=True))
    coeff, mask, seed = call.coeff, call.mask, call.seed
    if coeff is not None and (mapped[3] or coeff.dim() == 3 or needs.coeff):
        coeff = coeff if mapped[3] else coeff.expand(size, *coeff.shape)  # (V, H, H) or (V, B, H, H)
        coeff = coeff.unsqueeze(1).expand(-1, batch, -1, -1) if coeff.dim() == 3 else coeff
        coeff = coeff.flatten(0, 1)
    if mask is not None and (mapped[4] or mask.shape[0] > 1 or needs.mask):
        mask = mask if mapped[4] else mask.expand(size, *mask.shape)
        mask = mask.expand(-1, batch, -1, -1, -1).flatten(0, 1)
    seed = None if seed is None else seed[0]
    return call._replace(query=query, key=key, value=value, coeff=coeff, mask=mask, seed=seed)
