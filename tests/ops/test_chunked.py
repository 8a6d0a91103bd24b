"""The chunked op as a citizen of torch: gradcheck, opcheck, compile, vmap, autocast, checkpoint, memory."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.functional import coeff_attention
from tests.ops.attention_cases import NAMED, Case, assert_same, differentiable, run

GRADCHECK = [
    Case("plain", length=3, source=5, head_size=2, value_size=3),
    Case("GQA causal", heads=4, kv_heads=2, length=3, source=5, head_size=2, value_size=3, is_causal=True),
    Case("float", length=3, source=5, head_size=2, value_size=3, mask="float B 1 L S", per_sample=True),
    Case("sliced", length=3, source=5, head_size=2, value_size=3, layout="sliced"),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("case", GRADCHECK, ids=lambda case: case.name)
def test_gradcheck(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    inputs = case.inputs()
    if inputs["attn_mask"] is not None:
        inputs["attn_mask"] = torch.randn_like(inputs["attn_mask"]).requires_grad_()
    names = list(differentiable(inputs))

    def function(*tensors: Tensor) -> Tensor:
        return coeff_attention(**inputs | dict(zip(names, tensors, strict=True)), backend="chunked")

    assert torch.autograd.gradcheck(function, [inputs[name] for name in names], fast_mode=True)


def test_gradcheck_of_dropped_maps() -> None:
    inputs = GRADCHECK[0].inputs()
    names = list(differentiable(inputs))

    def function(*tensors: Tensor) -> Tensor:
        torch.manual_seed(3)
        return coeff_attention(**inputs | dict(zip(names, tensors, strict=True)), dropout_p=0.4, backend="chunked")

    assert torch.autograd.gradcheck(function, [inputs[name] for name in names], fast_mode=True)


@pytest.mark.parametrize(
    "name",
    ["plain", "coefficients per sample", "float (H, 1, S)", "bool (B, H, L, S)", "GQA causal per sample"],
)
def test_opcheck(name: str) -> None:
    case = NAMED[name]
    x = case.inputs(torch.float32)
    mask = None if x["attn_mask"] is None else x["attn_mask"].detach()
    mask = None if mask is None else mask.reshape([1] * (4 - mask.dim()) + list(mask.shape))
    if mask is not None and mask.is_floating_point():
        mask.requires_grad_()
    arguments = (x["query"], x["key"], x["value"], x["coeff"], mask, None, 0.0, case.is_causal, 0.3)
    torch.library.opcheck(torch.ops.coeff_tuning.chunked_attention, arguments)

    grad = torch.randn(case.batch, case.heads, case.length, case.value_size)
    plain = [a.detach() if torch.is_tensor(a) else a for a in arguments]
    for needs in (True, False):
        wants = [needs, True, not needs, True, mask is not None and mask.requires_grad]
        torch.library.opcheck(torch.ops.coeff_tuning.chunked_attention_backward, (grad, *plain, wants))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ["plain", "GQA mask", "causal, L > S", "coefficients per sample"])
def test_compile_fullgraph(name: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(coeff_attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    case = NAMED[name]
    longer = dataclasses.replace(case, length=19, source=23)
    for inputs in (case.inputs(torch.float32), longer.inputs(torch.float32)):
        actual = differentiate(compiled(**inputs, backend="chunked"), inputs)
        assert_same(actual, run(inputs, backend="reference"), torch.float32)


def differentiate(out: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)
    wanted = differentiable(inputs)
    gradients = torch.autograd.grad(out, list(wanted.values()), grad)
    return {"out": out.detach(), **dict(zip(wanted, gradients, strict=True))}


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda **x: coeff_attention(**x, backend="chunked").transpose(1, 2).flatten(2), fullgraph=True
    )
    inputs = NAMED["GQA mask"].inputs(torch.float32)
    out = compiled(**inputs).unflatten(2, (6, 13)).transpose(1, 2)
    assert_same(differentiate(out, inputs), run(inputs, backend="reference"), torch.float32)


def test_compile_of_dropout_and_of_the_identity() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(coeff_attention, fullgraph=True, backend="aot_eager")
    inputs = NAMED["plain"].inputs(torch.float32)
    out = compiled(**inputs, dropout_p=0.5)
    assert out.isfinite().all()
    assert (out != compiled(**inputs, dropout_p=0.5)).any()
    actual = compiled(**inputs | {"coeff": None})
    expected = coeff_attention(**inputs | {"coeff": None}, backend="reference")
    torch.testing.assert_close(actual, expected)


def per_sample(in_dims: dict[str, int | None], inputs: dict[str, Any], **kwargs: Any) -> Tensor:
    """What vmap has to give, by a loop."""
    size = next(inputs[name].shape[dim] for name, dim in in_dims.items() if dim is not None)
    samples = [
        {name: x if in_dims.get(name) is None else x.select(in_dims[name], i) for name, x in inputs.items()}
        for i in range(size)
    ]
    return torch.stack([coeff_attention(**sample, backend="reference", **kwargs) for sample in samples])


VMAPS = {
    "everything": {"query": 0, "key": 0, "value": 0, "coeff": 0, "attn_mask": 0},
    "only coeff": {"coeff": 0},
    "only coeff, last": {"coeff": 2},
    "only query": {"query": 1},
    "only mask": {"attn_mask": 0},
    "only value": {"value": 3},
}


@pytest.mark.parametrize("matrix", [(3, 3), (2, 3, 3)], ids=["(H, H)", "(B, H, H)"])
@pytest.mark.parametrize("in_dims", VMAPS.values(), ids=VMAPS)
@pytest.mark.parametrize("shared_mask", [True, False])
def test_vmap(in_dims: dict[str, int], matrix: tuple[int, ...], shared_mask: bool) -> None:
    shapes = {
        "query": (2, 3, 5, 11),
        "key": (2, 3, 7, 11),
        "value": (2, 3, 7, 13),
        "coeff": matrix,
        "attn_mask": (1 if shared_mask else 2, 1, 5, 7),
    }
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    for name, dim in in_dims.items():
        inputs[name] = torch.randn(*shapes[name][:dim], 4, *shapes[name][dim:], dtype=torch.float64)
    for tensor in inputs.values():
        tensor.requires_grad_()

    def function(*tensors: Tensor) -> Tensor:
        return coeff_attention(*tensors, backend="chunked")

    dims = tuple(in_dims.get(name) for name in inputs)
    expected = per_sample(in_dims, inputs)
    actual = torch.func.vmap(function, dims)(*inputs.values())
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, list(inputs.values()), grad),
        torch.autograd.grad(expected, list(inputs.values()), grad),
    )


def test_per_sample_gradients_by_vmap_of_grad() -> None:
    inputs = NAMED["plain"].inputs()
    rows, coeff = inputs["query"].detach(), inputs["coeff"].detach()
    key, value = inputs["key"].detach(), inputs["value"].detach()

    def loss(coeff: Tensor, query: Tensor, key: Tensor, value: Tensor, backend: str) -> Tensor:
        return coeff_attention(query, key, value, coeff, backend=backend).square().sum()

    def gradients(backend: str) -> Tensor:
        function = torch.func.grad(lambda *x: loss(*x, backend))
        return torch.func.vmap(function, (None, 0, 0, 0))(coeff, rows, key, value)

    torch.testing.assert_close(gradients("chunked"), gradients("reference"))


def test_second_derivative_is_refused() -> None:
    inputs = NAMED["plain"].inputs()
    (gradient,) = torch.autograd.grad(
        coeff_attention(**inputs, backend="chunked").square().sum(), inputs["query"], create_graph=True
    )
    with pytest.raises(UnsupportedError, match='backend="reference"'):
        gradient.sum().backward()


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_of_dropout(randomness: str) -> None:
    query, key = torch.zeros(4, 2, 3, 5, 1), torch.zeros(2, 3, 7, 1)
    value, coeff = torch.randn(2, 3, 7, 13), torch.randn(3, 3)

    def function(query: Tensor) -> Tensor:
        return coeff_attention(query, key, value, coeff, dropout_p=0.5, backend="chunked")

    out = torch.func.vmap(function, randomness=randomness)(query)
    assert torch.equal(out[0], out[1]) == (randomness == "same")

    def loss(query: Tensor, value: Tensor) -> Tensor:
        out = coeff_attention(query, key, value, coeff, dropout_p=0.5, backend="chunked")
        return (out * value.sum()).sum() / value.detach().sum()

    both = torch.func.grad_and_value(loss, argnums=1)
    values = value.expand(4, *value.shape)
    gradient, total = torch.func.vmap(both, randomness=randomness)(query, values)
    # The loss is homogeneous in value, of degree 2: forward and backward dropped the same entries.
    torch.testing.assert_close((gradient * values).sum((1, 2, 3, 4)), 2 * total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["reference", "chunked", "sdpa"])
def test_autocast_does_as_sdpa(backend: str, dtype: torch.dtype) -> None:
    inputs = Case("square", source=5, mask="float L S").inputs(torch.float32)
    inputs["coeff"] = None if backend == "sdpa" else inputs["coeff"]
    with torch.autocast("cpu", dtype):
        out = coeff_attention(**inputs, backend=backend)
        actual = differentiate(out, inputs)
    assert out.dtype == dtype
    half = {name: x.to(dtype) if torch.is_tensor(x) and name != "coeff" else x for name, x in inputs.items()}
    assert torch.equal(out, coeff_attention(**half, backend=backend))
    expected = run(inputs, backend=backend)
    for name, tensor in expected.items():
        assert actual[name].dtype == (dtype if name == "out" else torch.float32)
        torch.testing.assert_close(actual[name].float(), tensor, atol=0.15, rtol=0.1)


def test_autocast_does_not_reach_into_the_op() -> None:
    x = NAMED["plain"].inputs(torch.float32)
    arguments = (x["query"], x["key"], x["value"], x["coeff"], None, None, 0.0, False, 0.3)
    expected = torch.ops.coeff_tuning.chunked_attention(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.ops.coeff_tuning.chunked_attention(*arguments), expected)


def test_inference_mode_and_no_grad() -> None:
    inputs = NAMED["float (B, 1, L, S)"].inputs()
    expected = coeff_attention(**inputs, backend="reference").detach()
    with torch.inference_mode():
        torch.testing.assert_close(coeff_attention(**inputs), expected)
    with torch.no_grad():
        out = coeff_attention(**inputs)
    assert not out.requires_grad
    torch.testing.assert_close(out, expected)


def test_dropout_follows_the_seed_and_replays_in_a_checkpoint() -> None:
    inputs = NAMED["GQA mask"].inputs()

    def function(query: Tensor) -> Tensor:
        return coeff_attention(**inputs | {"query": query}, dropout_p=0.3, backend="chunked")

    torch.manual_seed(11)
    plain = differentiate(function(inputs["query"]), inputs)
    torch.manual_seed(11)
    replayed = differentiate(checkpoint(function, inputs["query"], use_reentrant=False), inputs)
    other = function(inputs["query"])
    assert_same(replayed, plain, torch.float64)
    assert (other != plain["out"]).any()


def test_memory_layout_suits_the_next_layer() -> None:
    out = coeff_attention(**NAMED["plain"].inputs(), backend="chunked")
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_maps() -> None:
    """Forward and backward over maps of 192 MiB stay under 80 MiB above the inputs."""
    script = """
    import resource, torch
    from coeff_tuning.functional import coeff_attention
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    def run(length):
        query, key, value = (torch.randn(1, 12, length, 64, requires_grad=True) for _ in range(3))
        coeff = torch.eye(12, requires_grad=True)
        before = peak()
        coeff_attention(query, key, value, coeff, backend="chunked").sum().backward()
        return peak() - before
    run(64)
    print(run(2048))
    """
    printed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    assert float(printed.stdout) < 80
