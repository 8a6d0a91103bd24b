"""Coefficients trained on a transformers ViT, moved to the timm ViT of the same weights, as docs/peft.md says."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from coeff_tuning import CoeffConfig, CoeffLayer
from tests import tiny
from tests.binders.libraries import library

DEPTH, LABELS = 3, 7


def transformers_vit() -> nn.Module:
    sizes = {**tiny.VISION, "num_hidden_layers": DEPTH}
    model = tf.ViTForImageClassification(tf.ViTConfig(**sizes, num_labels=LABELS, qkv_bias=True, layer_norm_eps=1e-6))
    for parameter in model.parameters():  # no zeros and ones, which would hide a weight that is left out
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def timm_vit(source: nn.Module) -> nn.Module:
    library("timm")
    sizes = {"img_size": 14, "patch_size": 7, "embed_dim": 24, "depth": DEPTH, "num_heads": 3, "mlp_ratio": 20 / 24}
    model = import_module("timm.models.vision_transformer").VisionTransformer(
        **sizes, num_classes=LABELS, qkv_bias=True
    )
    weights = source.state_dict()
    names = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        **both("vit.embeddings.patch_embeddings.projection", "patch_embed.proj"),
        **both("vit.layernorm", "norm"),
        **both("classifier", "head"),
    }
    for i in range(DEPTH):
        theirs, ours = f"vit.layers.{i}", f"blocks.{i}"
        names |= both(f"{theirs}.layernorm_before", f"{ours}.norm1") | both(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1")
        names |= both(f"{theirs}.layernorm_after", f"{ours}.norm2") | both(f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2")
        names |= both(f"{theirs}.attention.o_proj", f"{ours}.attn.proj")
    renamed = {new: weights[old] for old, new in names.items()}
    for i in range(DEPTH):
        for kind in ("weight", "bias"):
            parts = [weights.pop(f"vit.layers.{i}.attention.{x}_proj.{kind}") for x in "qkv"]
            renamed[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    assert set(weights) == set(names)
    model.load_state_dict(renamed)
    return model


def both(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}


def matrices(model: nn.Module) -> list[Tensor]:
    return [m.coeff_delta["default"] for m in model.modules() if isinstance(m, CoeffLayer)]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_moved_from_transformers_to_timm(dtype: torch.dtype, limit: float) -> None:
    tolerance = {"atol": limit, "rtol": limit}
    source = transformers_vit()
    target = timm_vit(source)
    config = CoeffConfig(coeff_dropout=0.0)
    adapters: list[PeftModel] = [get_peft_model(model, config).eval().to(dtype) for model in (source, target)]
    ours, theirs = tiny.randomise(adapters[0]), adapters[1]
    x = torch.randn(2, 3, 14, 14, dtype=dtype)
    assert (ours(x).logits - theirs(x)).abs().max() > 1e-2  # not moved yet

    with torch.no_grad():
        for new, trained in zip(matrices(theirs), matrices(ours), strict=True):
            new.copy_(trained)

    expected, out = ours(x).logits, theirs(x)
    torch.testing.assert_close(out, expected, **tolerance)
    upstream = torch.randn_like(out)
    wanted = torch.autograd.grad(expected, matrices(ours), upstream)
    got = torch.autograd.grad(out, matrices(theirs), upstream)
    assert [gradient.dtype for gradient in got] == [dtype] * DEPTH
    for gradient, other in zip(got, wanted, strict=True):
        scale = other.abs().max()
        assert scale > 1e-3
        torch.testing.assert_close(gradient / scale, other / scale, **tolerance)
