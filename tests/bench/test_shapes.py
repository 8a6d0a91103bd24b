from __future__ import annotations

import pytest
import torch

from coeff_tuning.bench.shapes import BACKWARD, FORWARD, SWEEPS, TABLE, Shape, parse_shapes
from coeff_tuning.errors import BenchError


def test_default_is_the_table_of_the_device() -> None:
    names = [shape.name for shape in parse_shapes([], "cpu", None)]
    assert names == ["vit", "clip-l", "len-1024", "len-4096", "len-4096-causal", "decode"]
    assert {shape.dtype for shape in parse_shapes([], "cuda", None)} == {"bfloat16"}
    assert all(shape.goals.keys() == set(shape.passes) for shape in TABLE.values())


def test_sizes() -> None:
    (shape,) = parse_shapes(["B=2,H=12,L=5,S=7,E=16,kv=3,causal"], "cpu", None)
    assert (shape.batch, shape.heads, shape.kv_heads) == (2, 12, 3)
    assert (shape.length, shape.source, shape.head_size, shape.is_causal) == (5, 7, 16, True)
    assert shape.name == shape.text == "B=2,H=12,L=5,S=7,E=16,kv=3,causal"
    (plain,) = parse_shapes(["B=1,H=4,L=9"], "cuda", None)
    assert (plain.kv_heads, plain.source, plain.head_size, plain.is_causal) == (4, 9, 64, False)
    assert (plain.dtype, plain.device, plain.goals) == ("bfloat16", "cuda", {})
    assert plain.text == "B=1,H=4,L=9"


def test_another_dtype_has_no_goals() -> None:
    same, other = parse_shapes(["vit"], "cpu", "float32")[0], parse_shapes(["vit"], "cpu", "bfloat16")[0]
    assert same.goals == {FORWARD: 1.15, BACKWARD: 1.30}
    assert other.goals == {}
    assert other.torch_dtype == torch.bfloat16


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_vary_one_size(name: str) -> None:
    shapes = parse_shapes([name, "vit"], "cpu", None)
    assert shapes.pop().name == "vit"
    size = name.removeprefix("sweep-")
    attribute = {"length": "length", "heads": "heads", "batch": "batch"}[size]
    assert len({getattr(shape, attribute) for shape in shapes}) == len(shapes) >= 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vitt", "must be one of vit, clip-l, .*, sweep-batch, or sizes like B=1,H=12,L=1024 .*; got 'vitt'"),
        ("B=1,H=2,L=3,X=4", r"must name each of B, H, kv, L, S, E at most once; got 'X=4'"),
        ("B=1,H=2,L=3,L=4", r"at most once; got 'L=4'"),
        ("B=1,H=2,L=3.5", "must have whole numbers above 0; got 'L=3.5'"),
        ("B=0,H=2,L=3", "must have whole numbers above 0; got 'B=0'"),
        ("B=1,H=2,L=", "must have whole numbers above 0; got 'L='"),
        ("E=8,causal", "must say B, H, L, like B=1"),
        ("B=1,H=7,L=3,kv=2", "a multiple of kv as H; got H=7 for kv=2"),
        ("gpu-vit", "'gpu-vit' is for cuda, and the device is cpu"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        parse_shapes([text], "cpu", None)


@pytest.mark.parametrize(("length", "source"), [(5, 5), (3, 7), (7, 3), (1, 4)])
def test_pairs_of_a_causal_call(length: int, source: int) -> None:
    shape = Shape("s", 1, 1, 1, length, source, is_causal=True)
    assert shape.pairs == int(torch.ones(length, source).tril().sum())


def test_flops_and_their_limit() -> None:
    shape = TABLE["len-1024"]
    plain = 4 * 12 * 1024**2 * 64
    assert shape.flops(FORWARD, mixed=False) == plain
    assert shape.flops(FORWARD) - plain == 2 * 12 * 12 * 1024**2
    assert shape.ratio_limit(FORWARD) == pytest.approx(1 + 12 / 128)
    assert shape.ratio_limit(BACKWARD) == pytest.approx(1 + 4 * 12 / (7 * 64))


def test_scaled_down_copy_keeps_what_it_is_about() -> None:
    small = TABLE["gpu-causal"].scaled_down()
    assert (small.heads, small.kv_heads, small.head_size, small.is_causal) == (32, 8, 128, True)
    assert small.batch * small.length * small.source < 2**16
    decode = TABLE["decode"].scaled_down()
    assert decode.length == 1 < decode.source
