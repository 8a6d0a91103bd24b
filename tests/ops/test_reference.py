"""The ground truth against numbers by hand, plain loops, torch, and another library."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from x_transformers.attend import Attend

from coeff_tuning.functional import coeff_attention
from tests.ops.attention_cases import CASES, Case, differentiable, run


def test_two_heads_by_hand() -> None:
    # Equal scores: head 0 has the map (1/2, 1/2); head 1 sees key 1 only: (0, 1).
    query, key = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 2, 1)
    value = torch.tensor([[[[2.0], [4.0]], [[10.0], [20.0]]]])
    mask = torch.tensor([[[[True, True]], [[False, True]]]])
    coeff = torch.tensor([[1.0, 2.0], [-4.0, 3.0]])
    # head 0: 1 * (1/2, 1/2) + 2 * (0, 1) = (1/2, 5/2); head 1: -4 * (1/2, 1/2) + 3 * (0, 1) = (-2, 1).
    expected = [[[[0.5 * 2 + 2.5 * 4]], [[-2.0 * 10 + 1 * 20]]]]
    for backend in ("reference", "chunked"):
        out = coeff_attention(query, key, value, coeff, mask, backend=backend)
        assert out.tolist() == expected == [[[[11.0]], [[0.0]]]]


def loops(case: Case, x: dict[str, Any]) -> list[Any]:
    """The formula in Python numbers: no tensor operations, no broadcasting."""
    q, k, v = (x[name].tolist() for name in ("query", "key", "value"))
    coeff = x["coeff"].expand(case.batch, case.heads, case.heads).tolist()
    full = (case.batch, case.heads, case.length, case.source)
    mask = None if x["attn_mask"] is None else x["attn_mask"].expand(full).tolist()
    scale = 1 / math.sqrt(case.head_size) if case.scale is None else case.scale
    group = case.heads // case.kv_heads

    def score(b: int, h: int, i: int, j: int) -> float:
        if case.is_causal and j > i:
            return -math.inf
        bias = 0.0 if mask is None else mask[b][h][i][j]
        if isinstance(bias, bool):
            bias = 0.0 if bias else -math.inf
        return scale * sum(a * c for a, c in zip(q[b][h][i], k[b][h // group][j], strict=True)) + bias

    def row(b: int, h: int, i: int) -> list[float]:
        weights = [math.exp(score(b, h, i, j)) for j in range(case.source)]
        total = sum(weights)
        return [w / total if total else 0.0 for w in weights]

    return [
        [
            [
                [
                    sum(
                        coeff[b][h][g] * row(b, g, i)[j] * v[b][h // group][j][e]
                        for g in range(case.heads)
                        for j in range(case.source)
                    )
                    for e in range(2)
                ]
                for i in range(case.length)
            ]
            for h in range(case.heads)
        ]
        for b in range(case.batch)
    ]


@pytest.mark.parametrize("case", [c for c in CASES if c.heads < 7], ids=lambda case: case.name)
def test_against_loops(case: Case) -> None:
    inputs = case.inputs()
    out = coeff_attention(**inputs, backend="reference")
    expected = torch.tensor(loops(case, inputs), dtype=torch.float64)
    torch.testing.assert_close(out[..., :2].detach(), expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("case", [c for c in CASES if not c.per_sample], ids=lambda case: case.name)
def test_identity_is_sdpa(case: Case) -> None:
    inputs = case.inputs()
    inputs["coeff"] = torch.eye(case.heads, dtype=torch.float64)
    actual = run(inputs, backend="reference")
    del inputs["coeff"]
    out = scaled_dot_product_attention(**inputs)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    expected = torch.autograd.grad(out, list(differentiable(inputs).values()), grad)
    torch.testing.assert_close(list(actual.values()), [out, *expected], atol=1e-12, rtol=1e-10)


def talking_heads(inputs: dict[str, Any]) -> Tensor:
    """Post-softmax talking heads of x-transformers: a 1x1 convolution over the heads; softmax in float32."""
    heads = inputs["query"].shape[1]
    attend = Attend(
        heads=heads, causal=inputs["is_causal"], scale=inputs["scale"], post_talking_heads=True, dropout=0.0
    ).double()
    del attend.post_softmax_talking_heads.weight
    attend.post_softmax_talking_heads.weight = inputs["coeff"][:, :, None, None]
    mask = inputs["attn_mask"]
    is_bool = mask is not None and mask.dtype == torch.bool
    group = heads // inputs["key"].shape[1]  # that library orders grouped heads in another way
    out, _ = attend(
        inputs["query"],
        inputs["key"].repeat_interleave(group, 1),
        inputs["value"].repeat_interleave(group, 1),
        mask=mask if is_bool else None,
        attn_bias=None if is_bool else mask,
    )
    return out


@pytest.mark.parametrize(
    "case",
    [
        Case("plain"),
        Case("square causal", length=7, is_causal=True),
        Case("scale", scale=0.3),
        Case("13 heads", heads=13, kv_heads=13),
        Case("GQA", heads=6, kv_heads=2),
        Case("bool", mask="bool B 1 1 S"),
        Case("float", mask="float H 1 S"),
    ],
    ids=lambda case: case.name,
)
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_against_x_transformers(case: Case, backend: str) -> None:
    inputs = case.inputs()
    actual = run(inputs, backend=backend)
    out = talking_heads(inputs)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    expected = torch.autograd.grad(out, list(differentiable(inputs).values()), grad)
    torch.testing.assert_close(list(actual.values()), [out, *expected], atol=1e-5, rtol=1e-5)


def test_dropout_drops_map_entries_before_mixing() -> None:
    # One-hot values read the mixed map; coefficients that sum over heads would blur a drop that came after.
    query, key = torch.zeros(1, 2, 400, 1), torch.zeros(1, 2, 5, 1)
    value = torch.eye(5).expand(1, 2, 5, 5)
    coeff = torch.tensor([[1.0, 10.0], [0.0, 0.0]])
    for backend in ("reference", "chunked"):
        out = coeff_attention(query, key, value, coeff, dropout_p=0.25, backend=backend)
        entry = 1 / 5 / 0.75
        levels = torch.tensor([0.0, entry, 10 * entry, 11 * entry])
        seen = (out[0, 0, :, :, None] - levels).abs().min(-1)
        assert seen.values.max() < 1e-5
        shares = torch.bincount(seen.indices.flatten(), minlength=4) / 2000
        expected = torch.tensor([1 / 16, 3 / 16, 3 / 16, 9 / 16])
        torch.testing.assert_close(shares, expected, atol=0.05, rtol=0)
        assert out[0, 1].abs().max() == 0
