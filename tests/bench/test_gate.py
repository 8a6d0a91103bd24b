from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coeff_tuning.bench import gate
from coeff_tuning.bench.calls import SDPA, make_inputs, results
from coeff_tuning.bench.shapes import parse_shapes
from coeff_tuning.ops import Request
from coeff_tuning.ops.chunked import chunked_attention
from tests.bench.conftest import Add


def verdict(backend: str, text: str = "B=3,H=5,L=139", dtype: str | None = None) -> gate.Verdict:
    (shape,) = parse_shapes([text], "cpu", dtype)
    inputs = make_inputs(shape)
    return gate.check(shape, backend, inputs, results(shape, inputs, gate.TRUSTED))


class _Scaled(torch.autograd.Function):
    """The identity, with a gradient that is a hundredth too large."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return 1.01 * grad


def transposed(request: Request) -> Tensor:
    assert request.coeff is not None
    return chunked_attention(request._replace(coeff=request.coeff.mT))


def wrong_gradient(name: str, request: Request) -> Tensor:
    return chunked_attention(request._replace(**{name: _Scaled.apply(getattr(request, name))}))


def not_a_number(request: Request) -> Tensor:
    return chunked_attention(request) * torch.nan


def wrong_at_full_size(request: Request) -> Tensor:
    out = chunked_attention(request)
    return out if request.query.shape[0] < 3 else out.roll(1, 0)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "text", ["B=3,H=5,L=139", "B=1,H=6,L=7,S=153,kv=2,E=8", "B=2,H=3,L=17,causal", "B=1,H=9,L=1,S=99,kv=3"]
)
def test_right_backends_pass(text: str, dtype: str) -> None:
    for backend in ("chunked", "reference"):
        found = verdict(backend, text, dtype)
        assert found.passed, found.reason
        assert all(error < 2e-2 for error in found.errors.values())
    sizes = {key.split()[0] for key in found.errors}
    assert sizes == {"small", "full"}
    assert ("small coeff" in found.errors) == ("L=1," not in text)


# A hundredth is within two roundings of bfloat16; the gradient of coeff is in float32.
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("query", "float32"), ("key", "float32"), ("value", "float32"), ("coeff", "float32"), ("coeff", "bfloat16")],
)
def test_each_wrong_gradient_is_named(name: str, dtype: str, add_backend: Add) -> None:
    backend = add_backend("broken", lambda request: wrong_gradient(name, request))
    assert verdict(backend, dtype=dtype).reason.startswith(f"gradient of {name} off by 1.0e-02 of its largest entry")


def test_transposed_coefficients_are_seen(add_backend: Add) -> None:
    found = verdict(add_backend("broken", transposed))
    assert not found.passed
    assert found.reason.startswith("output off by")
    assert found.errors["small out"] > 0.1


def test_not_a_number_is_wrong(add_backend: Add) -> None:
    assert verdict(add_backend("broken", not_a_number)).reason.startswith("output off by nan")


def test_full_size_is_looked_at(add_backend: Add) -> None:
    found = verdict(add_backend("broken", wrong_at_full_size))
    assert "at full size" in found.reason
    assert found.errors["small out"] < 1e-5 < 0.1 < found.errors["full out"]


def test_coefficients_are_not_used_by_the_rival() -> None:
    (shape,) = parse_shapes(["B=1,H=3,L=11"], "cpu", None)
    inputs = make_inputs(shape)
    assert results(shape, inputs, SDPA).keys() == {"out", "query", "key", "value"}
    mixed = results(shape, inputs, "reference")["out"]
    assert (mixed - results(shape, inputs, SDPA)["out"]).abs().max() > 0.1


def test_inputs_tell_heads_apart() -> None:
    (shape,) = parse_shapes(["B=1,H=6,L=11,kv=2"], "cpu", None)
    inputs = make_inputs(shape)
    assert (inputs.coeff - inputs.coeff.mT).abs().max() > 0.1
    assert inputs.coeff.min() < 0 < inputs.coeff.max()
    assert torch.equal(inputs.query, make_inputs(shape).query)
    exact = inputs.to(torch.float64)
    assert exact.coeff.dtype == torch.float64
    assert exact.query.requires_grad
