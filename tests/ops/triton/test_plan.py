"""Layout of heads and sizes of tiles, for every number of heads."""

from __future__ import annotations

import pytest
import torch

from coeff_tuning.ops.triton._plan import Plan, Task, make_plan

GROUPS = [(heads, kv_heads) for heads in range(1, 65) for kv_heads in range(1, heads + 1) if heads % kv_heads == 0]


def plan(
    heads: int, kv_heads: int, task: Task = "queries", features: int = 64, dtype: torch.dtype = torch.half
) -> Plan:
    query = torch.empty(2, heads, 5, 64, dtype=dtype, device="meta")
    key = torch.empty(2, kv_heads, 7, 64, dtype=dtype, device="meta")
    return make_plan(query, key, key, None, False, task, features)


def is_power_of_2(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@pytest.mark.parametrize("task", ["statistics", "queries", "delta", "keys"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_sizes_suit_the_products(task: Task, dtype: torch.dtype) -> None:
    for heads, kv_heads in GROUPS:
        for features in (1, 64, 80, 256):
            p = plan(heads, kv_heads, task, features if task in ("queries", "keys") else 0, dtype)
            assert all(map(is_power_of_2, (p.bundles, p.members, p.queries, p.keys, p.outputs, p.chunk, p.mix_parts)))
            assert heads <= p.bundles * p.members < 2 * heads
            assert p.bundles % p.outputs == 0
            assert p.chunk >= 16
            assert p.mix_size >= 16
            assert p.mix_size * p.mix_columns == p.bundles * p.rows * p.keys
            # the sides that are summed over, which tensor cores want to be 16 or more
            if task == "queries":
                assert p.keys >= 16
            if task == "keys":
                assert p.rows >= 16
            if task == "delta":
                assert p.outputs == p.bundles
                assert p.mix_columns // p.mix_parts >= 16


def test_every_head_has_one_place_with_its_own_key_head() -> None:
    for heads, kv_heads in GROUPS:
        p = plan(heads, kv_heads)
        places = {}
        for bundle in range(p.bundles):  # as in real_heads()
            kv_head = bundle // p.split
            for member in range(p.members):
                group_member = bundle % p.split * p.members + member
                if kv_head < p.kv_heads and group_member < p.group:
                    places[kv_head * p.group + group_member] = bundle * p.members + member
        assert sorted(places) == list(range(heads))
        # where the gradient of the coefficients looks for them
        assert all(places[h] == h // p.group * p.split * p.members + h % p.group for h in places)


def test_layouts_by_hand() -> None:
    assert plan(12, 12).bundles == 16
    assert (plan(14, 2).bundles, plan(14, 2).members, plan(14, 2).split) == (8, 2, 4)
    assert (plan(15, 5).bundles, plan(15, 5).members, plan(15, 5).split) == (16, 1, 3)
    assert (plan(32, 8).bundles, plan(32, 8).members, plan(32, 8).queries) == (8, 4, 8)
