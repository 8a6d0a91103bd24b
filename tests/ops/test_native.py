"""The compiled CPU kernel: tiles and blocks, threads, memory, and its manners as an op of torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.functional import coeff_attention
from coeff_tuning.ops.native import library
from coeff_tuning.ops.native.launch import _even_blocks
from tests.ops.attention_cases import NAMED, Case, as_served, assert_same, differentiable, run

pytestmark = pytest.mark.skipif(bool(library.why_missing()), reason=f"the native backend {library.why_missing()}")

# Keys come in tiles of 96, queries in blocks of at most 48 or 96, vectors in 8 or 16: no size here is a multiple.
LARGE = [
    Case("several tiles", length=101, source=349, head_size=16, value_size=24),
    Case("several blocks, 13 heads", heads=13, kv_heads=13, length=211, source=207, head_size=8, value_size=8),
    Case("causal, L > S", length=199, source=131, is_causal=True, head_size=7, value_size=5),
    Case("causal, S > L", length=61, source=263, is_causal=True, per_sample=True),
    Case("32 heads, one key", heads=32, kv_heads=4, length=67, source=1),
    Case("one query", heads=6, kv_heads=2, length=1, source=331, head_size=64, value_size=64),
    Case("three queries, own masks", batch=3, heads=10, kv_heads=2, length=3, source=411, mask="float B H L S"),
    Case("four queries, causal", length=4, source=263, is_causal=True, per_sample=True),
    Case("float mask", length=53, source=97, mask="float B 1 L S"),
    Case("padding", length=53, source=297, mask="bool B 1 1 S", per_sample=True),
    Case("mask by head, GQA", heads=6, kv_heads=2, length=59, source=101, mask="bool 1 H L S"),
    Case("positions first", length=101, source=89, head_size=64, value_size=64, layout="positions first"),
    Case("expanded", batch=3, heads=4, kv_heads=2, length=101, source=53, layout="expanded", mask="float L S"),
]


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n} threads")
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("case", LARGE, ids=lambda case: case.name)
def test_tiles_and_blocks(case: Case) -> None:
    inputs, _ = as_served("native", case.inputs())
    exact = {n: x.detach().double() if torch.is_tensor(x) and x.dtype != torch.bool else x for n, x in inputs.items()}
    for name in differentiable(inputs):
        exact[name].requires_grad_()
    grad = torch.randn(case.batch, case.heads, case.length, case.value_size)
    expected = run(exact, grad.double(), backend="reference")
    for name, actual in run(inputs, grad, backend="native").items():
        error, size = (actual - expected[name]).abs().max(), expected[name].abs().max()
        assert error <= 3e-6 * max(1.0, size), f"{name}: {error} of {size}"


def test_same_numbers_twice() -> None:
    inputs, _ = as_served("native", LARGE[0].inputs())
    first, second = (run(inputs, backend="native") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("length", [3, 131])
def test_keys_that_nobody_sees_are_not_read(length: int) -> None:
    """Tiles of padding are skipped: not even NaN in them comes out."""
    inputs, _ = as_served("native", Case("padded", length=length, source=373).inputs())
    inputs["attn_mask"] = torch.arange(373) < 96
    clean = {name: tensor.clone() for name, tensor in run(inputs, backend="native").items()}
    with torch.no_grad():
        inputs["key"][:, :, 96:] = torch.nan
        inputs["value"][:, :, 96:] = torch.nan
        assert torch.equal(coeff_attention(**inputs, backend="native"), clean["out"])


@pytest.mark.parametrize(
    ("batch", "length", "sharers", "size"), [(1, 1024, 2, 88), (8, 577, 2, 88), (1, 97, 2, 56), (5, 7, 1, 8)]
)
def test_blocks_are_even(batch: int, length: int, sharers: int, size: int) -> None:
    assert _even_blocks(batch, length, 96, 8, sharers) == size


@pytest.mark.parametrize("name", ["query", "key", "value", "coeff"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_numbers_come_out_again(name: str, value: float) -> None:
    inputs, _ = as_served("native", LARGE[0].inputs())
    with torch.no_grad():
        inputs[name].view(-1)[-1] = value
        assert not coeff_attention(**inputs, backend="native").isfinite().all()


def test_scores_far_apart() -> None:
    """Softmax is shifted by the largest score of a query, and by that of its tile on the way."""
    inputs, _ = as_served("native", dataclasses.replace(LARGE[0], scale=60.0).inputs())
    double = {name: x.double() if isinstance(x, Tensor) else x for name, x in inputs.items()}
    expected = coeff_attention(**double, backend="reference")
    torch.testing.assert_close(coeff_attention(**inputs, backend="native").double(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", ["plain", "coefficients per sample", "GQA causal per sample", "bool (B, 1, L, 1)"])
def test_opcheck(name: str) -> None:
    case = NAMED[name]
    x, _ = as_served("native", case.inputs())
    mask = x["attn_mask"]
    arguments = (x["query"], x["key"], x["value"], x["coeff"], mask, case.is_causal, 0.3)
    torch.library.opcheck(torch.ops.coeff_tuning.native_attention, arguments)
    *plain, is_causal, scale = (a.detach() if torch.is_tensor(a) else a for a in arguments)
    grad = torch.randn(case.batch, case.heads, case.length, case.value_size)
    _, stats = torch.ops.coeff_tuning.native_attention(*plain, is_causal, scale)
    backward = torch.ops.coeff_tuning.native_attention_backward
    for needs in ([True] * 4, [False, True, False, True]):
        torch.library.opcheck(backward, (grad, *plain, stats, is_causal, scale, needs))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["plain", "causal, L > S", "coefficients per sample", "bool (B, H, L, S)"])
def test_compile_fullgraph(name: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(coeff_attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    longer = dataclasses.replace(NAMED[name], length=19, source=23)
    for case in (NAMED[name], longer):
        inputs, _ = as_served("native", case.inputs())
        out = compiled(**inputs, backend="native")
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
        gradients = torch.autograd.grad(out, list(differentiable(inputs).values()), grad)
        actual = {"out": out.detach(), **dict(zip(differentiable(inputs), gradients, strict=True))}
        assert_same(actual, run(inputs, backend="reference"), torch.float32)


def test_second_derivative_is_refused() -> None:
    inputs, _ = as_served("native", NAMED["plain"].inputs())
    out = coeff_attention(**inputs, backend="native").square().sum()
    (gradient,) = torch.autograd.grad(out, inputs["query"], create_graph=True)
    with pytest.raises(UnsupportedError, match='backend="reference"'):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"query": torch.randn(1, 2, 3, 4, dtype=torch.float64)}, "float64"),
        ({"dropout_p": 0.5}, "dropout_p=0, got 0.5"),
        ({"attn_mask": torch.zeros(3, 3, requires_grad=True)}, "no gradient to a float mask"),
        ({"query": torch.randn(1, 2, 0, 4)}, "sizes above 0"),
    ],
)
def test_refusals(changes: dict[str, object], reason: str) -> None:
    inputs: dict[str, object] = dict.fromkeys(("query", "key", "value"), torch.randn(1, 2, 3, 4))
    inputs |= {"coeff": torch.randn(2, 2), **changes}
    if inputs["query"].dtype == torch.float64:
        inputs |= dict.fromkeys(("key", "value"), inputs["query"])
    with pytest.raises(UnsupportedError, match=reason):
        coeff_attention(**inputs, backend="native")
    assert coeff_attention(**inputs).shape == inputs["query"].shape


def test_without_the_library_another_backend_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = library.FOLDER
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    library.load_library.cache_clear()
    try:
        inputs, _ = as_served("native", NAMED["plain"].inputs())
        with pytest.raises(UnsupportedError, match="was not built with this installation"):
            coeff_attention(**inputs, backend="native")
        assert_same(run(inputs), run(inputs, backend="reference"), torch.float32)
        for name in ("avx2", "avx512"):
            (tmp_path / f"kernel-{name}.so").write_text("not a library")
        library.load_library.cache_clear()
        with pytest.raises(UnsupportedError, match="cannot be loaded here"):
            coeff_attention(**inputs, backend="native")
        library.load_library.cache_clear()
        monkeypatch.setattr(library, "FOLDER", folder)
        monkeypatch.setattr(library, "Problem", library.Mask)
        with pytest.raises(UnsupportedError, match="needs a kernel compiled from the sources beside it"):
            coeff_attention(**inputs, backend="native")
    finally:
        library.load_library.cache_clear()


def test_default_on_the_cpu() -> None:
    inputs, _ = as_served("native", NAMED["plain"].inputs())
    assert torch.equal(coeff_attention(**inputs), coeff_attention(**inputs, backend="native"))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_maps() -> None:
    """Forward and backward over maps of 192 MiB stay under 60 MiB above the inputs."""
    script = """
    import resource, torch
    from coeff_tuning.functional import coeff_attention
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    def run(length):
        query, key, value = (torch.randn(1, 12, length, 64, requires_grad=True) for _ in range(3))
        coeff = torch.eye(12, requires_grad=True)
        before = peak()
        coeff_attention(query, key, value, coeff, backend="native").sum().backward()
        return peak() - before
    run(64)
    print(run(2048))
    """
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert float(printed.stdout) < 60


def test_inference_goes_past_the_dispatcher_and_gives_the_same() -> None:
    inputs, _ = as_served("native", NAMED["bool (B, 1, 1, S)"].inputs())
    recorded = coeff_attention(**inputs, backend="native")
    assert recorded.requires_grad
    with torch.inference_mode(), torch.profiler.profile() as profile:
        direct = coeff_attention(**inputs, backend="native")
    assert "coeff_tuning::native_attention" not in {event.key for event in profile.key_averages()}
    assert torch.equal(direct, recorded)


def test_fake_tensors_do_not_reach_the_kernel() -> None:
    with FakeTensorMode() as mode, torch.no_grad():
        inputs = {n: mode.from_tensor(x) if torch.is_tensor(x) else x for n, x in NAMED["plain"].inputs().items()}
        inputs, _ = as_served("native", inputs)
        out = coeff_attention(**inputs, backend="native")
    assert isinstance(out, FakeTensor)
    assert out.shape == inputs["query"].shape[:-1] + inputs["value"].shape[-1:]
