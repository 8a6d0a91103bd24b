"""What the backend refuses and why; the op as a citizen of torch."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.functional import coeff_attention
from coeff_tuning.ops import select_backend
from coeff_tuning.ops.canonical import make_request
from coeff_tuning.ops.triton import backend
from tests.ops.attention_cases import NAMED, Case, assert_same, differentiable, run


def request(case: Case, **changes: Any) -> Any:
    inputs = case.inputs(changes.pop("dtype", torch.float32))
    if inputs["attn_mask"] is not None and not changes.pop("mask_gradient", False):
        inputs["attn_mask"] = inputs["attn_mask"].detach()
    return make_request(**inputs | {"dropout_p": 0.0} | changes)[0]


def test_needs_a_gpu() -> None:
    with pytest.raises(UnsupportedError, match="'triton' cannot serve this call: needs a CUDA device, got cpu"):
        coeff_attention(**NAMED["plain"].inputs(torch.float32), backend="triton")


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "float64": (
        lambda: request(NAMED["plain"], dtype=torch.float64),
        "needs float16, bfloat16 or float32, got float64",
    ),
    "heads": (lambda: request(Case("many", heads=65, kv_heads=65)), "needs 1..64 heads, got 65"),
    "no heads": (lambda: request(Case("none", heads=0, kv_heads=0)), "needs 1..64 heads, got 0"),
    "head size": (lambda: request(Case("wide", head_size=257)), "needs head sizes 1..256, got 257 and 13"),
    "value size": (lambda: request(Case("empty", value_size=0)), "needs head sizes 1..256, got 11 and 0"),
    "dropout": (lambda: request(NAMED["plain"], dropout_p=0.25), "needs dropout_p=0, got 0.25"),
    "mask": (
        lambda: request(NAMED["float (L, 1)"], mask_gradient=True),
        "needs a mask without gradient, got one that requires grad",
    ),
}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    make, reason = REFUSALS[name]
    with pytest.raises(UnsupportedError, match=f"'triton' cannot serve this call: {reason}"):
        select_backend(make(), "triton")
    assert select_backend(make()).name != "triton"


@pytest.mark.usefixtures("device")
def test_by_name_only() -> None:
    assert select_backend(request(NAMED["float (L, 1)"]), "triton").name == "triton"
    assert select_backend(request(NAMED["float (L, 1)"])).name != "triton"


def test_vmap_is_left_to_the_next_in_line(device: str) -> None:
    inputs = NAMED["plain"].inputs(torch.float32)

    def function(coeff: Tensor, name: str | None = None) -> Tensor:
        return coeff_attention(**inputs | {"coeff": coeff}, backend=name)

    coeff = torch.randn(2, 3, 3)
    torch.testing.assert_close(torch.func.vmap(function)(coeff), torch.stack([function(c) for c in coeff]))
    with pytest.raises(UnsupportedError, match="outside of torch.func transforms"):
        torch.func.vmap(lambda c: function(c, "triton"))(coeff)


MACHINES = [
    ((7, 5), 64, None, 12, "needs a GPU of compute capability 8.0 or higher, got 7.5"),
    ((9, 0), 227, "6.4", 12, "needs an NVIDIA GPU, got one of AMD"),
    ((8, 9), 99, None, 37, "needs 136 KiB of shared memory per block for 37 heads, got 99 KiB"),
    ((8, 9), 99, None, 12, ""),
    ((9, 0), 227, None, 64, ""),
]


@pytest.mark.parametrize(("capability", "shared", "hip", "heads", "reason"), MACHINES)
def test_machines(
    capability: tuple[int, int],
    shared: int,
    hip: str | None,
    heads: int,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("triton")

    class Properties:
        shared_memory_per_block_optin = shared * 1024

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(backend, "_inspect", backend._inspect.__wrapped__)
    call = request(Case("heads", heads=heads, kv_heads=heads))

    class OnGpu:
        """Looks like a tensor of the shape and dtype of another, on a GPU."""

        def __init__(self, tensor: Tensor) -> None:
            self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, torch.device("cuda:0")

    call = call._replace(query=OnGpu(call.query))
    supported, answer = backend.supports(call)
    assert (supported, answer.startswith(reason)) == (not reason, True)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("version", [None, "3.4.1"])
def test_missing_or_old_triton(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if version is None:
        monkeypatch.setitem(sys.modules, "triton", None)
    else:
        monkeypatch.setattr("triton.__version__", version)
    monkeypatch.setattr(backend, "_inspect", backend._inspect.__wrapped__)
    reason = "needs the package triton, which is not installed" if version is None else "3.5 or later, got 3.4.1"
    with pytest.raises(UnsupportedError, match=reason):
        select_backend(request(NAMED["plain"]), "triton")


OPCHECK = [
    Case("bool mask", batch=1, length=3, source=5, mask="bool B H L S"),
    Case("GQA causal", batch=1, heads=4, kv_heads=2, length=3, source=5, is_causal=True, per_sample=True),
]


@pytest.mark.parametrize("case", OPCHECK, ids=lambda case: case.name)
def test_opcheck(case: Case, device: str) -> None:
    with torch.device(device):
        x = case.inputs(torch.float32)
        grad = torch.randn(case.batch, case.heads, case.length, case.value_size)
    arguments = (x["query"], x["key"], x["value"], x["coeff"], x["attn_mask"], case.is_causal, 0.3)
    torch.library.opcheck(torch.ops.coeff_tuning.triton_attention, arguments)
    plain = [a.detach() if torch.is_tensor(a) else a for a in arguments]
    _, statistics = torch.ops.coeff_tuning.triton_attention(*plain)
    for needs in ([True, False, True, False], [False, True, False, True]):
        backward = (grad, statistics, *plain, needs)
        torch.library.opcheck(torch.ops.coeff_tuning.triton_attention_backward, backward)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph(dynamic: bool, device: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(coeff_attention, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    case = Case("GQA", batch=1, heads=6, kv_heads=2, is_causal=True, per_sample=True)
    for each in (case, dataclasses.replace(case, length=13, source=17)):
        with torch.device(device):
            inputs = each.inputs(torch.float32)
        grad = torch.randn(1, 6, each.length, 13).to(device)
        out = compiled(**inputs)
        gradients = torch.autograd.grad(out, list(differentiable(inputs).values()), grad)
        actual = {"out": out.detach(), **dict(zip(differentiable(inputs), gradients, strict=True))}
        assert_same(actual, run(inputs, grad, backend="reference"), torch.float32)


def test_machine_is_a_constant_of_a_compiled_graph() -> None:
    torch._dynamo.reset()

    def function(x: Tensor) -> Tensor:
        lacking, _ = backend._machine("cpu", None)
        return x + 1 if lacking else x + 2

    x = torch.zeros(2)
    assert torch.equal(torch.compile(function, fullgraph=True, backend="eager")(x), function(x))


def test_second_derivative_is_refused(device: str) -> None:
    with torch.device(device):
        inputs = NAMED["plain"].inputs(torch.float32)
    (gradient,) = torch.autograd.grad(
        coeff_attention(**inputs, backend="triton").square().sum(), inputs["query"], create_graph=True
    )
    with pytest.raises(UnsupportedError, match='triton backend has first derivatives only.*backend="reference"'):
        gradient.sum().backward()


def test_autocast_casts_inputs_and_not_the_inside(device: str) -> None:
    with torch.device(device):
        inputs = NAMED["plain"].inputs(torch.float32)
    with torch.autocast(device, torch.bfloat16):
        out = coeff_attention(**inputs, backend="triton")
    half = {name: x.bfloat16() if torch.is_tensor(x) and name != "coeff" else x for name, x in inputs.items()}
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, coeff_attention(**half, backend="triton"))


def test_memory_layout_suits_the_next_layer(device: str) -> None:
    with torch.device(device):
        out = coeff_attention(**NAMED["plain"].inputs(torch.float32), backend="triton")
    assert out.transpose(1, 2).is_contiguous()
