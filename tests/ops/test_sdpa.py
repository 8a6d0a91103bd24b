"""torch's own kernel: when it is taken, and that it then gives what the other backends give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.testing._internal.common_methods_invocations import op_db

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.functional import coeff_attention
from coeff_tuning.ops import select_backend
from coeff_tuning.ops.canonical import make_request
from coeff_tuning.ops.sdpa import open_dead_rows
from tests.ops.attention_cases import NAMED, assert_same, run


def sample_inputs() -> Iterator[Any]:
    (op,) = (op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention")
    for sample in op.sample_inputs("cpu", torch.float64, requires_grad=True):
        if not sample.kwargs.get("dropout_p"):
            yield sample


@pytest.mark.parametrize("backend", ["sdpa", "chunked", "reference"])
def test_sample_inputs_of_torch(backend: str) -> None:
    count = 0
    for sample in sample_inputs():
        query, (key, value) = sample.input, sample.args
        expected = scaled_dot_product_attention(query, key, value, **sample.kwargs)
        coeff = torch.eye(query.shape[-3])  # float32 ones and zeros are exact
        actual = coeff_attention(query, key, value, coeff, **sample.kwargs, backend=backend)
        torch.testing.assert_close(actual, expected)
        inputs, grad = (query, key, value), torch.randn_like(expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad)
        )
        count += 1
    assert count > 10


def chosen(coeff: torch.Tensor | None, **changes: Any) -> str:
    inputs = NAMED["plain"].inputs(torch.float32) | {"coeff": coeff, "dropout_p": 0.0} | changes
    return select_backend(make_request(**inputs)[0]).name


def test_taken_for_a_frozen_diagonal_only() -> None:
    identity = torch.eye(3)
    assert chosen(None) == "sdpa"
    assert chosen(identity) == "sdpa"
    assert chosen(torch.nn.Parameter(identity, requires_grad=False)) == "sdpa"
    assert chosen(identity.bfloat16()) == "sdpa"
    assert chosen(identity.expand(2, 3, 3)) == "sdpa"
    assert chosen(torch.diag(torch.tensor([2.0, 0.0, -3.0]))) == "sdpa"
    assert chosen(torch.stack([identity, 2 * identity])) == "sdpa"
    assert chosen(torch.stack([identity, identity + 1])) != "sdpa"
    assert chosen(identity.clone().requires_grad_()) != "sdpa"
    assert chosen(identity + 1e-7) != "sdpa"
    assert chosen(torch.full((3, 3), torch.nan)) != "sdpa"


@pytest.mark.parametrize(
    ("coeff", "reason"),
    [
        (torch.eye(3, requires_grad=True), "needs a frozen coeff, got one that requires grad"),
        (torch.ones(3, 3), "needs the identity or a diagonal, got other coefficients"),
    ],
)
def test_refusal_says_why(coeff: torch.Tensor, reason: str) -> None:
    inputs = NAMED["plain"].inputs(torch.float32) | {"coeff": coeff}
    with pytest.raises(UnsupportedError, match=f"backend 'sdpa' cannot serve this call: {reason}"):
        coeff_attention(**inputs, backend="sdpa")


def test_values_are_not_read_in_a_transform_or_on_another_device() -> None:
    inputs = NAMED["plain"].inputs(torch.float32)

    def function(coeff: torch.Tensor) -> torch.Tensor:
        return coeff_attention(**inputs | {"coeff": coeff}, backend="sdpa")

    with pytest.raises(UnsupportedError, match=r"got one inside a torch\.func transform"):
        torch.func.vmap(function)(torch.eye(3)[None])
    on_meta = {name: x.to("meta") if torch.is_tensor(x) else x for name, x in inputs.items()}
    on_meta["coeff"] = torch.empty(3, 3, device="meta")
    with pytest.raises(UnsupportedError, match="or a coeff on the CPU, got one on meta"):
        coeff_attention(**on_meta, backend="sdpa")
    assert coeff_attention(**on_meta).shape == (2, 3, 5, 13)


@pytest.mark.parametrize("per_sample", [False, True])
def test_diagonal(per_sample: bool) -> None:
    inputs = NAMED["GQA mask"].inputs()
    factors = torch.randn(2, 6) if per_sample else torch.randn(6)
    inputs["coeff"] = factors.double().diag_embed()
    actual, expected = (run(inputs, backend=backend) for backend in ("sdpa", "reference"))
    assert_same(actual, expected, torch.float64)
    half = {n: x.bfloat16() if torch.is_tensor(x) and x.is_floating_point() else x for n, x in inputs.items()}
    with pytest.raises(UnsupportedError, match="must not be rounded before, got torch.bfloat16"):
        coeff_attention(**half, backend="sdpa")


def test_bit_equal_to_torch() -> None:
    inputs = NAMED["bool (B, H, L, S)"].inputs(torch.float32) | {"coeff": torch.eye(3)}
    out = coeff_attention(**inputs)
    del inputs["coeff"]
    assert torch.equal(out, scaled_dot_product_attention(**inputs))


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_open_dead_rows(kind: str) -> None:
    takes_part = torch.tensor([[True, False], [False, False], [True, True]])
    mask = takes_part if kind == "bool" else torch.zeros(3, 2).masked_fill(~takes_part, -torch.inf)
    opened, dead = open_dead_rows(mask)
    assert dead.tolist() == [[False], [True], [False]]
    expected = torch.tensor([[True, False], [True, True], [True, True]])
    assert torch.equal(opened if kind == "bool" else opened == 0, expected)
