"""A call below autograd, as the chunked and the Triton backend take it, and the tensors that it fills."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """Arguments of the op.

    Attributes:
        query: `(B, H, L, E)`.
        key: `(B, Hkv, S, E)`.
        value: `(B, Hkv, S, Ev)`.
        coeff: `(H, H)`, `(B, H, H)`, or None for the identity.
        mask: 4 dimensions, each 1 or that of `(B, H, L, S)`; bool or float.
        seed: one integer on the CPU that says which entries are dropped; None if none are.
        dropout_p: chance to zero an entry of a map.
        is_causal: query `i` sees keys `0..i`.
        scale: factor on the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    coeff: Tensor | None
    mask: Tensor | None
    seed: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float


class Needs(NamedTuple):
    """Which gradients to compute."""

    query: bool
    key: bool
    value: bool
    coeff: bool
    mask: bool


class Gradients(NamedTuple):
    """Gradients, None where not needed; uninitialised when they come from `empty_gradients`."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    coeff: Tensor | None
    mask: Tensor | None

    def zero_(self) -> Gradients:
        """Fill them with zeros.

        Returns:
            The same gradients.
        """
        for gradient in self:
            if gradient is not None:
                gradient.zero_()
        return self


def is_empty(call: Call) -> bool:
    """Whether there are no queries or no keys, so that outputs and gradients are zeros if there are any."""
    return 0 in (*call.query.shape[:3], call.key.shape[2])


def empty_output(call: Call) -> Tensor:
    """Uninitialised `(B, H, L, Ev)`, positions before heads in memory, as models want it next."""
    batch, heads, length, _ = call.query.shape
    return call.query.new_empty((batch, length, heads, call.value.shape[-1])).transpose(1, 2)


def empty_gradients(call: Call, needs: Needs) -> Gradients:
    """Uninitialised gradients in the dtype of their inputs."""
    inputs = (call.query, call.key, call.value, call.coeff, call.mask)
    pairs = zip(inputs, needs, strict=True)
    return Gradients(*(torch.empty_like(x) if need and x is not None else None for x, need in pairs))
