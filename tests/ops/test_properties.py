"""Laws of the op, on sizes and values that hypothesis picks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from coeff_tuning.functional import coeff_attention

BACKENDS = ("reference", "chunked")


@st.composite
def calls(draw: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of the op in float64, without a mask."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    batch, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    length, source = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    size, value_size = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    heads = kv_heads * group

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    per_sample = draw(st.booleans())
    return {
        "query": tensor(batch, heads, length, size),
        "key": tensor(batch, kv_heads, source, size),
        "value": tensor(batch, kv_heads, source, value_size),
        "coeff": tensor(batch, heads, heads) if per_sample else tensor(heads, heads),
        "is_causal": draw(st.booleans()),
        "enable_gqa": True,
        "backend": draw(st.sampled_from(BACKENDS)),
    }


def law(test: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    return settings(max_examples=30, deadline=None, derandomize=True)(given(calls())(test))


@law
def test_identity_is_sdpa(call: dict[str, Any]) -> None:
    call["coeff"] = torch.eye(call["query"].shape[1], dtype=torch.float64)
    out = coeff_attention(**call)
    del call["coeff"], call["backend"]
    torch.testing.assert_close(out, scaled_dot_product_attention(**call))


@law
def test_permuting_heads_everywhere_permutes_the_output(call: dict[str, Any]) -> None:
    heads = call["query"].shape[1]
    for name in ("key", "value"):
        call[name] = call[name].repeat_interleave(heads // call[name].shape[1], 1)
    order = torch.randperm(heads)
    permuted = {name: call[name][:, order] for name in ("query", "key", "value")}
    permuted["coeff"] = call["coeff"][..., order, :][..., order]
    torch.testing.assert_close(coeff_attention(**call | permuted), coeff_attention(**call)[:, order])


@pytest.mark.parametrize("name", ["value", "coeff"])
def test_linear(name: str) -> None:
    @law
    def check(call: dict[str, Any]) -> None:
        other = torch.randn_like(call[name])
        mixture = coeff_attention(**call | {name: 2.5 * call[name] - other})
        parts = 2.5 * coeff_attention(**call) - coeff_attention(**call | {name: other})
        torch.testing.assert_close(mixture, parts)

    check()


@law
def test_samples_do_not_meet(call: dict[str, Any]) -> None:
    whole = coeff_attention(**call)
    for i in range(len(whole)):
        one = {name: call[name][i : i + 1] for name in ("query", "key", "value")}
        one["coeff"] = call["coeff"][i] if call["coeff"].dim() == 3 else call["coeff"]
        torch.testing.assert_close(coeff_attention(**call | one)[0], whole[i])


@law
def test_later_keys_never_change_earlier_causal_rows(call: dict[str, Any]) -> None:
    call["is_causal"] = True
    before = coeff_attention(**call)
    cut = call["key"].shape[2] // 2
    for name in ("key", "value"):
        changed = call[name].clone()
        changed[:, :, cut:] = 1e3 * torch.randn_like(changed[:, :, cut:])
        call[name] = changed
    after = coeff_attention(**call)
    torch.testing.assert_close(after[:, :, :cut], before[:, :, :cut])
    if before.shape[2] > cut:
        assert (after[:, :, cut:] != before[:, :, cut:]).any()
