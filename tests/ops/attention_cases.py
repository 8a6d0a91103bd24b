"""Calls of the op that every backend has to get right, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coeff_tuning.functional import coeff_attention

# dtype: (atol, rtol) between two ways to compute the same thing
TOLERANCES = {torch.float64: (1e-12, 1e-10), torch.float32: (2e-5, 2e-5)}


@dataclass(frozen=True)
class Case:
    """A call: sizes are different primes unless the case is about their ratio."""

    name: str
    batch: int = 2
    heads: int = 3
    kv_heads: int = 3
    length: int = 5
    source: int = 7
    head_size: int = 11
    value_size: int = 13
    per_sample: bool = False
    mask: str = ""
    is_causal: bool = False
    scale: float | None = None
    layout: str = "contiguous"

    def inputs(self, dtype: torch.dtype = torch.float64, coeff_dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Arguments of `coeff_attention`; tensors require grad where they can."""
        rows = (self.batch, self.heads, self.length, self.head_size)
        keys = (self.batch, self.kv_heads, self.source, self.head_size)
        values = (self.batch, self.kv_heads, self.source, self.value_size)
        matrix = (*([self.batch] if self.per_sample else []), self.heads, self.heads)
        return {
            "query": _tensor(rows, self.layout).to(dtype).detach().requires_grad_(),
            "key": _tensor(keys, self.layout).to(dtype).detach().requires_grad_(),
            "value": _tensor(values, self.layout).to(dtype).detach().requires_grad_(),
            "coeff": torch.randn(matrix, dtype=coeff_dtype or dtype, requires_grad=True),
            "attn_mask": self._mask(dtype),
            "is_causal": self.is_causal,
            "scale": self.scale,
            "enable_gqa": self.heads != self.kv_heads,
        }

    def _mask(self, dtype: torch.dtype) -> Tensor | None:
        """Masks that hide something and leave the query at position 1 nothing to attend to."""
        if not self.mask:
            return None
        kind, *dims = self.mask.split()
        sizes = {"B": self.batch, "H": self.heads, "L": self.length, "S": self.source}
        shape = [sizes.get(dim, 1) for dim in dims]
        takes_part = torch.rand(shape) > 0.4
        takes_part[..., -1] = True
        if shape[-2] > 1:
            takes_part[..., 1, :] = False
        assert not takes_part.all()
        if kind == "bool":
            return takes_part
        mask = torch.randn(shape, dtype=dtype).masked_fill(~takes_part, -torch.inf)
        return mask.requires_grad_()


def _tensor(shape: tuple[int, ...], layout: str) -> Tensor:
    batch, heads, length, size = shape
    if layout == "positions first":
        return torch.randn(batch, length, heads, size).transpose(1, 2)
    if layout == "sliced":
        return torch.randn(batch, heads, 2 * length, size + 3)[:, :, ::2, 1:-2]
    if layout == "expanded":
        return torch.randn(1, heads, 1, size).expand(shape)
    return torch.randn(shape)


CASES = [
    Case("plain"),
    Case("one head", heads=1, kv_heads=1),
    Case("13 heads", heads=13, kv_heads=13),
    Case("one query", length=1),
    Case("one key", source=1),
    Case("more queries than keys", length=11),
    Case("coefficients per sample", per_sample=True),
    Case("scale", scale=-0.7),
    Case("causal, S > L", is_causal=True),
    Case("causal, L > S", length=17, is_causal=True),
    Case("causal, one per sample", length=7, is_causal=True, per_sample=True),
    Case("GQA 2:1", heads=6, kv_heads=3),
    Case("GQA H:1", heads=5, kv_heads=1),
    Case("GQA causal per sample", heads=6, kv_heads=2, is_causal=True, per_sample=True),
    Case("GQA mask", heads=6, kv_heads=2, mask="float B H L S"),
    Case("bool (B, H, L, S)", mask="bool B H L S"),
    Case("bool (B, 1, 1, S)", mask="bool B 1 1 S"),
    Case("bool (B, 1, L, 1)", mask="bool B 1 L 1"),
    Case("bool (L, S)", mask="bool L S"),
    Case("float (B, H, L, S)", mask="float B H L S", per_sample=True),
    Case("float (1, H, L, S)", mask="float 1 H L S"),
    Case("float (B, 1, L, S)", mask="float B 1 L S"),
    Case("float (H, 1, S)", mask="float H 1 S"),
    Case("float (L, 1)", mask="float L 1"),
    Case("positions first in memory", layout="positions first", mask="bool B 1 L S"),
    Case("sliced", layout="sliced"),
    Case("expanded", layout="expanded"),
    Case("expanded GQA", heads=4, kv_heads=2, layout="expanded", mask="float L S"),
]
NAMED = {case.name: case for case in CASES}


def as_served(backend: str, inputs: dict[str, Any]) -> tuple[dict[str, Any], torch.dtype]:
    """Inputs that a backend does not refuse, and their dtype.

    `native` has no float64 and no gradient to a mask; `decode` takes few queries; `mqa` one key/value
    head and no half types.
    """
    if backend == "mqa":
        one = {name: inputs[name].detach()[:, :1].requires_grad_() for name in ("key", "value")}
        inputs = inputs | one | {"enable_gqa": True}
        if inputs["query"].dtype in (torch.bfloat16, torch.float16):
            inputs = {name: _to_float32(x) for name, x in inputs.items()}
    if backend == "decode":
        inputs = inputs | {"query": _first(inputs["query"], 3)}
        if inputs["attn_mask"] is not None and inputs["attn_mask"].shape[-2] > 1:
            inputs["attn_mask"] = _first(inputs["attn_mask"], 3)
    if backend == "native":
        if inputs["query"].dtype == torch.float64:
            inputs = {name: _to_float32(x) for name, x in inputs.items()}
        if inputs["attn_mask"] is not None:
            inputs["attn_mask"] = inputs["attn_mask"].detach()
    return inputs, inputs["query"].dtype


def _first(x: Tensor, count: int) -> Tensor:
    return x.detach()[..., :count, :].requires_grad_(x.requires_grad)


def _to_float32(x: Any) -> Any:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return x
    return x.detach().to(torch.float32).requires_grad_(x.requires_grad)


def differentiable(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Inputs that require grad."""
    return {name: x for name, x in inputs.items() if isinstance(x, Tensor) and x.requires_grad}


def run(inputs: dict[str, Any], grad: Tensor | None = None, **kwargs: Any) -> dict[str, Tensor]:
    """Output and all gradients of a call, by name; the upstream gradient is random but always the same."""
    out = coeff_attention(**inputs, **kwargs)
    if grad is None:
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    wanted = differentiable(inputs)
    gradients = torch.autograd.grad(out, list(wanted.values()), grad)
    return {"out": out.detach(), **dict(zip(wanted, gradients, strict=True))}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype) -> None:
    """All entries agree, are finite, and have the dtype of the expected ones."""
    atol, rtol = TOLERANCES[dtype]
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.isfinite().all(), name
        torch.testing.assert_close(actual[name], tensor, atol=atol, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}")


def assert_as_exact_as_reference(backend: str, inputs: dict[str, Any]) -> None:
    """Outputs and gradients are at most twice as far from the reference in float64 as that in the dtype of inputs."""
    dtype, device = inputs["query"].dtype, inputs["query"].device
    exact_inputs = {
        name: x.detach().double().requires_grad_(x.requires_grad) if torch.is_tensor(x) and x.is_floating_point() else x
        for name, x in inputs.items()
    }
    shape = coeff_attention(**inputs, backend="reference").shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(7), device="cpu").to(device, dtype)
    exact = run(exact_inputs, grad.double(), backend="reference")
    actual, plain = run(inputs, grad, backend=backend), run(inputs, grad, backend="reference")
    for name, tensor in exact.items():
        assert actual[name].dtype == (inputs[name].dtype if name in inputs else dtype)
        assert actual[name].isfinite().all(), name
        error, allowed = (actual[name] - tensor).abs().max(), 2 * (plain[name] - tensor).abs().max()
        summation = 8 * torch.finfo(torch.float32).eps * tensor.abs().max()  # float32 sums in another order
        assert error <= allowed + summation, f"{name}: {error} > {allowed} + {summation}"
