"""Every backend against the reference: outputs and all gradients."""

from __future__ import annotations

import pytest
import torch

from coeff_tuning.functional import coeff_attention
from coeff_tuning.ops import list_backends
from coeff_tuning.ops._call import Call, Needs
from coeff_tuning.ops._chunked_kernel import backward, forward
from coeff_tuning.ops.canonical import make_request
from tests.ops.attention_cases import (
    CASES,
    NAMED,
    Case,
    as_served,
    assert_as_exact_as_reference,
    assert_same,
    differentiable,
    run,
)

# Triton needs a GPU, or its interpreter: see the tests in the folder of this name.
MIXING = [name for name in list_backends() if name not in ("sdpa", "triton", "reference")]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", MIXING)
def test_against_reference(backend: str, case: Case, dtype: torch.dtype) -> None:
    inputs, dtype = as_served(backend, case.inputs(dtype))
    assert_same(run(inputs, backend=backend), run(inputs, backend="reference"), dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("backend", ["sdpa", *MIXING])
def test_identity_against_reference(backend: str, case: Case) -> None:
    inputs, dtype = as_served(backend, case.inputs() | {"coeff": None})
    assert_same(run(inputs, backend=backend), run(inputs, backend="reference"), dtype)


@pytest.mark.parametrize("block_bytes", [1, 1200, 5000])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_block_boundaries(case: Case, block_bytes: int) -> None:
    """Several blocks, partial last blocks, several batch items in a block."""
    inputs = case.inputs()
    expected = run(inputs, backend="reference")
    request, _ = make_request(dropout_p=0.0, **inputs)
    call = Call(
        request.query,
        request.key,
        request.value,
        request.coeff,
        request.attn_mask,
        None,
        0.0,
        request.is_causal,
        request.scale,
    )
    with torch.no_grad():
        out = forward(call, block_bytes)
        has_mask = inputs["attn_mask"] is not None and inputs["attn_mask"].requires_grad
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
        gradients = backward(grad, call, Needs(True, True, True, True, has_mask), block_bytes)
    tensors = [
        gradient.reshape(inputs[n].shape) for gradient, n in zip(gradients, differentiable(inputs), strict=False)
    ]
    assert_same(dict(zip(expected, [out, *tensors], strict=True)), expected, torch.float64)


@pytest.mark.parametrize("block_bytes", [1, 1200, 5000])
def test_dropout_over_several_blocks(block_bytes: int) -> None:
    """The output is linear in value and in coeff: the gradients know which entries the forward dropped."""
    inputs = NAMED["GQA causal per sample"].inputs()
    request, _ = make_request(dropout_p=0.4, **inputs)
    call = Call(
        *(x.detach() for x in (request.query, request.key, request.value, request.coeff)),
        None,
        torch.tensor(5),
        0.4,
        True,
        0.3,
    )
    out = forward(call, block_bytes)
    assert torch.equal(out, forward(call, block_bytes))
    assert (out != forward(call._replace(seed=torch.tensor(6)), block_bytes)).any()
    grad = torch.randn_like(out)
    gradients = backward(grad, call, Needs(True, True, True, True, False), block_bytes)
    total = (out * grad).sum()
    torch.testing.assert_close((gradients.value * call.value).sum(), total)
    torch.testing.assert_close((gradients.coeff * call.coeff).sum(), total)
    step = 1e-6
    for name in ("query", "key"):
        direction = torch.randn_like(getattr(call, name))
        moved = call._replace(**{name: getattr(call, name) + step * direction})
        slope = ((forward(moved, block_bytes) - out) * grad).sum() / step
        expected = (getattr(gradients, name) * direction).sum()
        torch.testing.assert_close(slope, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("wanted", ["query", "key", "value", "coeff", "attn_mask"])
@pytest.mark.parametrize("backend", MIXING)
def test_one_gradient_alone(backend: str, wanted: str) -> None:
    inputs, dtype = as_served(backend, NAMED["float (B, H, L, S)"].inputs())
    for name, tensor in differentiable(inputs).items():
        tensor.requires_grad_(name == wanted)
    if not differentiable(inputs):
        pytest.skip(f"{backend} gives no gradient to a mask")
    actual, expected = run(inputs, backend=backend), run(inputs, backend="reference")
    assert list(actual) == ["out", wanted]
    assert_same(actual, expected, dtype)


@pytest.mark.parametrize("coeff_dtype", [torch.float32, None], ids=["float32 coeff", "half coeff"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["plain", "13 heads", "causal, L > S", "GQA mask", "bool (B, H, L, S)"])
@pytest.mark.parametrize("backend", [name for name in MIXING if name != "mqa"])
def test_half_precision_is_as_good_as_the_reference(
    backend: str, name: str, dtype: torch.dtype, coeff_dtype: torch.dtype | None
) -> None:
    assert_as_exact_as_reference(backend, as_served(backend, NAMED[name].inputs(dtype, coeff_dtype))[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mask", ["bool B H L S", "float B H L S", "bool B 1 L S", "float L S", "bool L 1"])
@pytest.mark.parametrize("backend", ["sdpa", "reference", *MIXING])
def test_fully_masked_query_gives_zeros(backend: str, mask: str, dtype: torch.dtype) -> None:
    inputs = Case("masked", length=7, mask=mask).inputs(dtype)
    inputs, _ = as_served(backend, inputs)
    if backend == "sdpa":
        inputs["coeff"] = None
    results = run(inputs, backend=backend)
    assert results["out"][:, :, 1].abs().max() == 0
    assert results["query"][:, :, 1].abs().max() == 0
    assert all(tensor.isfinite().all() for tensor in results.values())
    assert results["out"][:, :, 0].abs().max() > 0


@pytest.mark.parametrize("sizes", [(0, 7), (5, 0), (0, 0)])
@pytest.mark.parametrize("backend", [name for name in ("reference", *MIXING) if name not in ("native", "decode")])
def test_no_positions(backend: str, sizes: tuple[int, int]) -> None:
    inputs, _ = as_served(backend, Case("empty", length=sizes[0], source=sizes[1]).inputs())
    results = run(inputs, backend=backend)
    assert results["out"].shape == (2, 3, sizes[0], 13)
    assert all((tensor == 0).all() for tensor in results.values())


@pytest.mark.parametrize("backend", MIXING)
def test_padding_in_float_minimum_is_not_infinity(backend: str) -> None:
    inputs = NAMED["float (B, H, L, S)"].inputs(torch.float32)
    inputs, _ = as_served(backend, inputs)
    inputs["attn_mask"] = torch.full((1, 7), torch.finfo(torch.float32).min)
    actual = run(inputs, backend=backend)
    assert_same(actual, run(inputs, backend="reference"), torch.float32)
    mean = coeff_attention(**inputs | {"attn_mask": None, "scale": 0.0}, backend="reference")
    torch.testing.assert_close(actual["out"], mean.detach())
