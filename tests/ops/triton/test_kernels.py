"""The kernels against the reference: outputs and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coeff_tuning.functional import coeff_attention
from tests.ops.attention_cases import (
    CASES,
    NAMED,
    Case,
    assert_as_exact_as_reference,
    assert_same,
    differentiable,
    run,
)

# What takes several tiles: of queries, keys and features, sets of outputs, every layout of heads.
LARGER = [
    Case("tiles", batch=1, heads=2, kv_heads=2, length=37, source=41, head_size=43, value_size=47, mask="bool 1 1 1 S"),
    Case("causal tiles, S > L", batch=1, heads=2, kv_heads=2, length=37, source=59, is_causal=True),
    Case("causal tiles, L > S", batch=1, heads=5, kv_heads=5, length=59, source=37, is_causal=True),
    Case("8 heads in 2 sets", batch=1, heads=8, kv_heads=8, head_size=131, value_size=67),
    Case("17 heads in 2 sets", batch=1, heads=17, kv_heads=17, head_size=67, mask="float L S"),
    Case("37 heads", batch=1, heads=37, kv_heads=37, length=17, source=11, is_causal=True),
    Case("head size 256, value size 1", batch=1, head_size=256, value_size=1),
    Case("groups of 6", heads=12, kv_heads=2, mask="bool B H L S"),
    Case("group of 64", batch=1, heads=64, kv_heads=1, length=3, source=19, is_causal=True),
    Case("groups of 3, not padded", heads=15, kv_heads=5, source=3, mask="float H 1 S"),
]
HALVES = ["plain", "one key", "13 heads", "causal, L > S", "GQA mask", "bool (B, H, L, S)", "tiles"]
EVERY = {case.name: case for case in (*CASES, *LARGER)}


def make_inputs(case: Case, device: str, *dtypes: torch.dtype) -> dict[str, Any]:
    """Inputs made on the device, so that they keep their strides; the mask has no gradient here."""
    with torch.device(device):
        inputs = case.inputs(*dtypes)
    if inputs["attn_mask"] is not None:
        inputs["attn_mask"] = inputs["attn_mask"].detach()
    return inputs


@pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)
def test_float32_against_reference(case: Case, device: str) -> None:
    assert_as_exact_as_reference("triton", make_inputs(case, device, torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", HALVES)
def test_half_precision_against_reference(name: str, dtype: torch.dtype, device: str) -> None:
    assert_as_exact_as_reference("triton", make_inputs(EVERY[name], device, dtype, torch.float32))


@pytest.mark.parametrize("coeff_dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtype_of_coefficients(coeff_dtype: torch.dtype, device: str) -> None:
    assert_as_exact_as_reference("triton", make_inputs(NAMED["13 heads"], device, torch.bfloat16, coeff_dtype))


@pytest.mark.parametrize("name", ["GQA mask", "expanded"])
def test_upstream_gradient_and_coeff_in_any_layout(name: str, device: str) -> None:
    inputs = make_inputs(EVERY[name], device, torch.float32)
    inputs["coeff"] = torch.randn(11, 17, device=device, dtype=torch.float64)[: inputs["query"].shape[1]].mT
    inputs["coeff"] = inputs["coeff"][2 : 2 + inputs["query"].shape[1]].requires_grad_()
    shape = coeff_attention(**inputs, backend="reference").shape
    grad = torch.randn(shape[0], 1, 1, shape[-1], device=device).expand(shape)
    assert_same(run(inputs, grad, backend="triton"), run(inputs, grad, backend="reference"), torch.float32)


@pytest.mark.parametrize("wanted", ["query", "key", "value", "coeff"])
def test_one_gradient_alone(wanted: str, device: str) -> None:
    inputs = make_inputs(NAMED["GQA mask"], device, torch.float32)
    for name, tensor in differentiable(inputs).items():
        tensor.requires_grad_(name == wanted)
    actual, expected = run_on(device, inputs, "triton"), run_on(device, inputs, "reference")
    assert list(actual) == ["out", wanted]
    assert_same(actual, expected, torch.float32)


def run_on(device: str, inputs: dict[str, Any], backend: str) -> dict[str, torch.Tensor]:
    """`run` with an upstream gradient on the device."""
    shape = (*inputs["query"].shape[:3], inputs["value"].shape[-1])
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(device, inputs["query"].dtype)
    return run(inputs, grad, backend=backend)


@pytest.mark.parametrize("name", ["causal, one per sample", "bool (B, 1, L, 1)"])
def test_no_coefficients_are_the_identity(name: str, device: str) -> None:
    inputs = make_inputs(NAMED[name], device, torch.float32) | {"coeff": None}
    assert_same(run_on(device, inputs, "triton"), run_on(device, inputs, "reference"), torch.float32)


@pytest.mark.parametrize(
    ("mask", "dtype"), [("bool B H L S", torch.float32), ("float L S", torch.bfloat16), ("bool L 1", torch.float16)]
)
def test_fully_masked_query_gives_zeros(mask: str, dtype: torch.dtype, device: str) -> None:
    results = run_on(device, make_inputs(Case("masked", length=7, mask=mask), device, dtype), "triton")
    assert results["out"][:, :, 1].abs().max() == 0
    assert results["query"][:, :, 1].abs().max() == 0
    assert all(tensor.isfinite().all() for tensor in results.values())
    assert results["out"][:, :, 0].abs().max() > 0


def test_everything_masked_gives_zeros(device: str) -> None:
    inputs = make_inputs(NAMED["plain"], device, torch.float32)
    results = run_on(device, inputs | {"attn_mask": torch.zeros(5, 7, dtype=torch.bool, device=device)}, "triton")
    assert all((tensor == 0).all() for tensor in results.values())


@pytest.mark.parametrize("sizes", [(2, 0, 7), (2, 5, 0), (0, 5, 7)])
def test_no_positions_or_no_samples(sizes: tuple[int, int, int], device: str) -> None:
    batch, length, source = sizes
    case = Case("empty", batch=batch, length=length, source=source)
    results = run_on(device, make_inputs(case, device, torch.float32), "triton")
    assert results["out"].shape == (batch, 3, length, 13)
    assert all((tensor == 0).all() for tensor in results.values())


@pytest.mark.parametrize("value", [torch.finfo(torch.float32).min, -1e4, 1e4], ids=str)
def test_mask_of_large_numbers(value: float, device: str) -> None:
    """A mask that shifts all scores changes nothing, and does no harm in the padding of 3 heads to 4."""
    inputs = make_inputs(NAMED["plain"], device, torch.float32) | {"scale": 0.0}
    inputs["attn_mask"] = torch.full((5, 7), value, device=device)
    assert_same(run_on(device, inputs, "triton"), run_on(device, inputs, "reference"), torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_same_results_in_every_run(device: str) -> None:
    inputs = make_inputs(Case("large", heads=12, kv_heads=4, length=499, source=503), device, torch.float32)
    first, second = (run_on(device, inputs, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_offsets_beyond_32_bits(device: str) -> None:
    inputs = make_inputs(NAMED["plain"], device, torch.bfloat16)
    stride = 2**31 + 8
    for name in ("query", "key", "value"):
        tensor = inputs[name].detach()
        far = torch.zeros(stride + tensor[0].numel(), dtype=tensor.dtype, device=device)
        view = far.as_strided(tensor.shape, (stride, *tensor.stride()[1:]))
        inputs[name] = view.copy_(tensor).requires_grad_()
        assert_as_exact_as_reference("triton", inputs)
        inputs[name] = tensor.requires_grad_()


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_size", [64, 80, 128, 256])
@pytest.mark.parametrize("heads", [(1, 1), (6, 6), (12, 12), (14, 2), (16, 16), (32, 8), (32, 32), (64, 8)], ids=str)
def test_sizes_of_real_models(heads: tuple[int, int], head_size: int, dtype: torch.dtype, device: str) -> None:
    case = Case("real", 2, *heads, 197, 211, head_size, head_size, mask="bool B 1 1 S")
    assert_as_exact_as_reference("triton", make_inputs(case, device, dtype, torch.float32))
