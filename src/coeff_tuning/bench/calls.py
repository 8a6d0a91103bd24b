"""What is run: torch's own attention and every backend, forward alone or with all gradients, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from coeff_tuning.bench.shapes import BACKWARD, FORWARD, Shape
from coeff_tuning.functional import coeff_attention
from coeff_tuning.ops.canonical import make_request
from coeff_tuning.ops.request import Request

SDPA = "sdpa"


@dataclass(frozen=True)
class Inputs:
    """Tensors of one call.

    Attributes:
        query: `(B, H, L, E)`, contiguous, as all others.
        key: `(B, Hkv, S, E)`.
        value: `(B, Hkv, S, E)`.
        coeff: `(H, H)`: random, signed, not symmetric; float32 unless the call is in float64.
        upstream: gradient of the output, `(B, H, L, E)`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    coeff: Tensor
    upstream: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same numbers in another dtype."""
        tensors = (self.query, self.key, self.value, self.coeff, self.upstream)
        return Inputs(*(tensor.detach().to(dtype).requires_grad_(tensor.requires_grad) for tensor in tensors))


def make_inputs(shape: Shape, seed: int = 0) -> Inputs:
    """Random inputs on the device of a shape, the same at each call; all but `upstream` require grad if any does."""
    trained = BACKWARD in shape.passes
    generator = torch.Generator(shape.device).manual_seed(seed)

    def tensor(*sizes: int, dtype: torch.dtype = shape.torch_dtype) -> Tensor:
        return torch.randn(sizes, generator=generator, device=shape.device, dtype=dtype)

    by_query = (shape.batch, shape.heads, shape.length, shape.head_size)
    by_key = (shape.batch, shape.kv_heads, shape.source, shape.head_size)
    coeff_dtype = torch.promote_types(shape.torch_dtype, torch.float32)
    return Inputs(
        tensor(*by_query).requires_grad_(trained),
        tensor(*by_key).requires_grad_(trained),
        tensor(*by_key).requires_grad_(trained),
        tensor(shape.heads, shape.heads, dtype=coeff_dtype).requires_grad_(trained),
        tensor(*by_query),
    )


def make_call(shape: Shape, inputs: Inputs, name: str, measured: str) -> Callable[[], object]:
    """One measured run.

    Args:
        shape: the call.
        inputs: its tensors.
        name: `SDPA` for torch's own attention, without coefficients, or a backend.
        measured: forward alone runs under `no_grad`; with backward, every input gets its gradient.

    Returns:
        A function without arguments; the caller decides how often and when it runs.
    """
    if measured == FORWARD:

        def forward() -> object:
            with torch.no_grad():
                return _attention(shape, inputs, name)

        return forward
    assert measured == BACKWARD
    return lambda: results(shape, inputs, name)


def results(shape: Shape, inputs: Inputs, name: str) -> dict[str, Tensor]:
    """Output and all gradients, by name; of inputs that require none, the output alone.

    Args:
        shape: the call.
        inputs: its tensors.
        name: `SDPA` or a backend.

    Returns:
        `out`, `query`, `key`, `value`, and for backends `coeff`.
    """
    wanted = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
    if name != SDPA:
        wanted["coeff"] = inputs.coeff
    out = _attention(shape, inputs, name)
    if not out.requires_grad:
        return {"out": out}
    gradients = torch.autograd.grad(out, list(wanted.values()), inputs.upstream)
    return {"out": out.detach(), **dict(zip(wanted, gradients, strict=True))}


def request_of(shape: Shape, inputs: Inputs) -> Request:
    """The request by which a backend says whether it serves the call."""
    tensors = (inputs.query, inputs.key, inputs.value, inputs.coeff)
    return make_request(*tensors, None, 0.0, shape.is_causal, None, shape.kv_heads != shape.heads)[0]


def _attention(shape: Shape, inputs: Inputs, name: str) -> Tensor:
    gqa = shape.kv_heads != shape.heads
    query, key, value = inputs.query, inputs.key, inputs.value
    if name == SDPA:
        return scaled_dot_product_attention(query, key, value, is_causal=shape.is_causal, enable_gqa=gqa)
    return coeff_attention(query, key, value, inputs.coeff, is_causal=shape.is_causal, enable_gqa=gqa, backend=name)
