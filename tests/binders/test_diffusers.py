"""diffusers: tiny models of seven kinds against plain maps, processors that come and go, and what raises."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from coeff_tuning import CoeffConfig, CoeffLayer
from coeff_tuning.errors import AdapterNotAppliedError, UnsupportedModelError
from tests import tiny
from tests.binders.diffusers_cases import FAMILIES, build, output, wan
from tests.binders.literal import literal_mixing
from tests.tiny import deltas

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def adapt(model: nn.Module) -> PeftModel:
    return tiny.randomise(get_peft_model(model, CoeffConfig(coeff_dropout=0.0)).eval(), scale=0.3)


def eager(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *_: Any, scale: Any = None, **__: Any
) -> Tensor:
    """Attention in plain torch, whose softmax the literal formula mixes."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value


@contextmanager
def literal(model: nn.Module) -> Iterator[None]:
    layers = sum(isinstance(m, CoeffLayer) for m in model.modules())
    with (
        literal_mixing(model) as mixed,
        model.disable_adapter(),
        mock.patch.object(F, "scaled_dot_product_attention", eager),
    ):
        yield
    assert mixed == [layers]


def assert_gradients(ours: Tensor, expected: Tensor, model: nn.Module) -> None:
    upstream = torch.randn_like(ours)
    got = torch.autograd.grad(ours, deltas(model), upstream, retain_graph=True)
    wanted = torch.autograd.grad(expected, deltas(model), upstream)
    for a, b in zip(got, wanted, strict=True):
        scale = b.abs().max()
        assert scale > 1e-4
        torch.testing.assert_close(a / scale, b / scale, **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_equals_the_literal_formula(family: str) -> None:
    base_model, inputs = build(family)
    with torch.no_grad():
        base = output(base_model, inputs)
    model = adapt(base_model)
    ours = output(model, inputs)
    with literal(model):
        expected = output(model, inputs)
    scale = expected.abs().max()
    assert (expected - base).abs().max() / scale > 1e-3
    torch.testing.assert_close(ours / scale, expected / scale, **TOLERANCE)
    assert_gradients(ours, expected, model)


@pytest.mark.parametrize("family", FAMILIES)
def test_on_off_copy_save_unload(family: str, tmp_path: Any) -> None:
    base_model, inputs = build(family)
    keys, classes = list(base_model.state_dict()), [type(m) for m in base_model.modules()]
    with torch.no_grad():
        base = output(base_model, inputs)
        model = adapt(base_model)
        with model.disable_adapter():
            assert torch.equal(output(model, inputs), base)
        on = output(model, inputs)
        assert torch.equal(output(copy.deepcopy(model), inputs), on)
        assert torch.equal(output(pickle.loads(pickle.dumps(model)), inputs), on)
        model.save_pretrained(tmp_path)
        assert torch.equal(output(PeftModel.from_pretrained(build(family)[0], tmp_path), inputs), on)
        unloaded = model.unload()
        assert torch.equal(output(unloaded, inputs), base)
    assert list(unloaded.state_dict()) == keys
    assert [type(m) for m in unloaded.modules()] == classes


@pytest.mark.parametrize("family", ["unet-sd15", "unet-sdxl", "flux", "wan"])
def test_fused_projections_keep_the_coefficients(family: str) -> None:
    base_model, inputs = build(family)
    model = adapt(base_model)
    with torch.no_grad():
        on = output(model, inputs)
        model.base_model.model.fuse_qkv_projections()
        torch.testing.assert_close(output(model, inputs), on, atol=1e-4, rtol=1e-4)
        model.base_model.model.unfuse_qkv_projections()
        torch.testing.assert_close(output(model, inputs), on, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["unet-sd15", "sd3", "flux"])
def test_gradient_checkpointing(family: str) -> None:
    base_model, inputs = build(family)
    model = adapt(base_model).train()
    inputs["encoder_hidden_states"].requires_grad_()
    plain = torch.autograd.grad(output(model, inputs).square().mean(), deltas(model))
    model.base_model.model.enable_gradient_checkpointing()
    again = torch.autograd.grad(output(model, inputs).square().mean(), deltas(model))
    for a, b in zip(again, plain, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("family", ["sd3", "unet-sd15"])
def test_compile(family: str) -> None:
    base_model, inputs = build(family)
    model = adapt(base_model)
    with torch.no_grad():
        out = output(model, inputs)
        compiled = torch.compile(model.base_model.model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(output(compiled, inputs), out, atol=1e-4, rtol=1e-4)


def test_cross_attention_and_heads() -> None:
    model = adapt(build("unet-sd15")[0])
    names = [n for n, m in model.named_modules() if isinstance(m, CoeffLayer)]
    assert any("attn1" in n for n in names)
    assert any("attn2" in n for n in names)
    assert {tuple(p.shape) for p in deltas(model)} == {(3, 3)}


def test_processors_that_cannot_be_served_raise() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    base_model, _ = build("unet-sd15")
    base_model.set_attn_processor(AttnProcessor())
    with pytest.raises(UnsupportedModelError, match=r"processor AttnProcessor does not.*AttnProcessor2_0"):
        get_peft_model(base_model, CoeffConfig())
    for change in (lambda m: m.set_attn_processor(AttnProcessor()), lambda m: m.set_attention_slice("max")):
        base_model, inputs = build("unet-sd15")
        model = adapt(base_model)
        output(model, inputs)
        change(model.base_model.model)
        with pytest.raises(AdapterNotAppliedError, match=r"Attention must call .* it did 0 time\(s\).*Sliced"):
            output(model, inputs)
        with model.disable_adapter():
            assert output(model, inputs).isfinite().all()


def test_image_to_video_attention_raises() -> None:
    torch.manual_seed(0)
    base_model, inputs = wan(image_dim=12, added_kv_proj_dim=36)
    model = adapt(base_model.eval())
    with pytest.raises(AdapterNotAppliedError, match=r"it did 2 time\(s\)"):
        output(model, {**inputs, "encoder_hidden_states_image": torch.randn(2, 257, 12)})


def test_context_parallelism_raises() -> None:
    base_model, inputs = build("wan")
    model = adapt(base_model)
    for module in model.modules():
        if hasattr(module, "processor"):
            module.processor._parallel_config = object()
    with pytest.raises(UnsupportedModelError, match="context parallelism"):
        output(model, inputs)
