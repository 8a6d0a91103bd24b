"""The formula with no code of ours: a library's own eager attention, its maps mixed right after their softmax."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor, nn

from coeff_tuning import CoeffLayer

# Modules whose maps have further dimensions between the heads and the two last ones.
HEADS_SECOND = {"timm.models.hiera": 1, "timm.models.nest": 1}


@contextmanager
def literal_mixing(model: nn.Module, adapter: str = "default") -> Iterator[list[int]]:
    """Run the enclosed passes, with adapters disabled, by the literal formula.

    Every softmax inside an adapted module is taken for that of its attention: a map has its heads before the two last
    dimensions, or folded with the batch into one.

    Args:
        model: a model with an adapter whose library computes attention eagerly.
        adapter: name of the adapter.

    Yields:
        A list with one number, how many maps were mixed.
    """
    stack: list[Tensor | None] = []
    axes: list[int] = []
    mixed = [0]

    def mix(maps: Tensor, coeff: Tensor) -> Tensor:
        mixed[0] += 1
        heads = coeff.shape[0]
        if maps.dim() == 3:  # folded
            out = mix_heads(maps.unflatten(0, (-1, heads)), coeff, 1).flatten(0, 1)
        elif maps.dim() == 4 and maps.shape[1] == 2 * heads:  # two maps to a head
            out = mix_heads(maps.unflatten(1, (heads, 2)), coeff, 1).flatten(1, 2)
        else:
            out = mix_heads(maps, coeff, axes[-1])
        return out

    def mix_heads(maps: Tensor, coeff: Tensor, axis: int) -> Tensor:
        return torch.tensordot(coeff.to(maps.dtype), maps, dims=([1], [axis])).movedim(0, axis)

    def around(softmax: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def patched(scores: Tensor, *args: object, **kwargs: object) -> Tensor:
            if not stack or stack[-1] is None:
                return softmax(scores, *args, **kwargs)
            stack.append(None)  # the function calls the method: mix once
            maps = softmax(scores, *args, **kwargs)
            stack.pop()
            return mix(maps, stack[-1])

        return patched

    def enter(module: nn.Module, args: object) -> None:
        layer = module.coefficients
        delta = layer.coeff_delta[adapter].requires_grad_()  # which disable_adapter() takes away
        stack.append(torch.eye(layer.num_heads) + delta)
        axes.append(HEADS_SECOND.get(type(module).__module__, -3))

    def leave(module: nn.Module, args: object, out: object) -> None:
        stack.pop()
        axes.pop()

    hosts = [m for m in model.modules() if isinstance(getattr(m, "coefficients", None), CoeffLayer)]
    handles = [host.register_forward_pre_hook(enter) for host in hosts]
    handles += [host.register_forward_hook(leave) for host in hosts]
    try:
        with (
            mock.patch.object(nn.functional, "softmax", around(nn.functional.softmax)),
            mock.patch.object(torch, "softmax", around(torch.softmax)),
            mock.patch.object(Tensor, "softmax", around(Tensor.softmax)),
        ):
            yield mixed
    finally:
        for handle in handles:
            handle.remove()
