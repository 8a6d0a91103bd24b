"""Each method against its formula, and against the model it is attached to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coeff_tuning.errors import UnsupportedModelError
from coeff_tuning.studies.methods import adapter, fact, prompts, ssf
from tests.binders.libraries import library

timm = library("timm")

Attach = Callable[[nn.Module], list[nn.Parameter]]
METHODS: dict[str, Attach] = {"fact": fact.attach, "ssf": ssf.attach, "adapter": adapter.attach}


def make(**options: Any) -> nn.Module:
    """Two blocks of width 8, an MLP of 24, 5 tokens."""
    torch.manual_seed(0)
    sizes = {"img_size": 14, "patch_size": 7, "embed_dim": 8, "depth": 2, "num_heads": 2, "mlp_ratio": 3}
    return timm.models.vision_transformer.VisionTransformer(**{**sizes, "num_classes": 3, **options}).eval()


def images() -> Tensor:
    return torch.randn(5, 3, 14, 14)


def randomise(model: nn.Module, parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.data = torch.randn_like(parameter) / 3
    model.eval()  # new modules are in training mode


@pytest.mark.parametrize("name", METHODS)
def test_starts_as_the_base_and_every_number_counts(name: str) -> None:
    base, x = make(), images()
    model = copy.deepcopy(base)
    trained = METHODS[name](model)
    torch.testing.assert_close(model(x), base(x))
    assert {id(p) for p in trained} == {id(p) for p in model.parameters()} - {
        id(p) for key, p in model.named_parameters() if not is_new(key)
    }
    randomise(model, trained)
    out = model(x)
    assert not torch.allclose(out, base(x), atol=1e-2)
    gradients = torch.autograd.grad((out * torch.randn_like(out)).sum(), trained)
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def is_new(key: str) -> bool:
    return any(part in key for part in (".down.", ".up.", ".core.", ".scale", ".shift", ".prompts"))


def test_fact_is_a_change_of_weights() -> None:
    """V T U on each (8, 8) matrix of each layer, added to the weights by hand."""
    model, x = make(), images()
    merged = copy.deepcopy(model)
    trained = fact.attach(model, scale=0.7)
    randomise(model, trained)
    first = model.blocks[0].attn.qkv
    down, up = first.down.weight, first.up.weight  # (16, 8), (8, 16)
    for block, plain in zip(model.blocks, merged.blocks, strict=True):
        for name, rows, columns in (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 3, 1), ("mlp.fc2", 1, 3)):
            core = block.get_submodule(name).core.weight
            weight = plain.get_submodule(name).weight.data
            for i in range(rows):
                for j in range(columns):
                    part = core[16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
                    weight[8 * i : 8 * i + 8, 8 * j : 8 * j + 8] += 0.7 * (up @ part @ down).detach()
    torch.testing.assert_close(model(x), merged(x))
    assert len(trained) == 2 + 2 * 4
    assert sum(p.numel() for p in trained) == 2 * 8 * 16 + 2 * 256 * (3 + 1 + 3 + 3)


def test_ssf_is_a_change_of_weights() -> None:
    model, x = make(), images()
    merged = copy.deepcopy(model)
    trained = ssf.attach(model)
    randomise(model, trained)
    layers = dict(merged.named_modules())
    added = {name.removesuffix(".1"): m for name, m in model.named_modules() if isinstance(m, ssf.ScaleShift)}
    after_patches = added.pop("patch_embed.norm")
    added["patch_embed.proj"] = after_patches
    for name, extra in added.items():
        layer = layers[name]
        layer.weight.data *= extra.scale.detach().reshape(-1, *[1] * (layer.weight.dim() - 1))
        layer.bias.data = layer.bias.data * extra.scale.detach() + extra.shift.detach()
    torch.testing.assert_close(model(x), merged(x))
    assert len(added) == 2 + 2 * 6


def test_adapter_by_hand() -> None:
    model = make()
    plain = copy.deepcopy(model.blocks[1].mlp)
    randomise(model, adapter.attach(model))
    extra, h = model.blocks[1].mlp[1], torch.randn(2, 5, 8)
    middle = nn.functional.gelu(plain(h) @ extra.down.weight.T + extra.down.bias)
    torch.testing.assert_close(model.blocks[1].mlp(h), plain(h) + middle @ extra.up.weight.T + extra.up.bias)


def test_prompts_by_hand() -> None:
    base, x = make(), images()
    model = copy.deepcopy(base)
    (own,) = prompts.attach(model, count=3)
    model.eval()
    assert own.shape == (3, 8)
    tokens = base.norm_pre(base._pos_embed(base.patch_embed(x)))
    joined = torch.cat([tokens[:, :1], own.expand(5, -1, -1), tokens[:, 1:]], dim=1)
    expected = base.head(base.norm(base.blocks(joined))[:, 0])
    torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(model(x), base(x), atol=1e-3)
    (none,) = prompts.attach(empty := copy.deepcopy(base), count=0)
    assert none.numel() == 0
    torch.testing.assert_close(empty(x), base(x))


def test_sizes_in_vit_base() -> None:
    """The published numbers: FacT-TT, SSF 0.205 M, LoRA-sized adapters, 50 prompts."""
    with torch.device("meta"):
        models = [timm.create_model("vit_base_patch16_224", num_classes=0) for _ in range(4)]
        attached = [m.attach(v) for m, v in zip((fact, ssf, adapter, prompts), models, strict=True)]
    assert [sum(p.numel() for p in parameters) for parameters in attached] == [61_440, 205_824, 230_544, 38_400]


@pytest.mark.parametrize("method", [fact, ssf, adapter, prompts])
def test_other_models_are_refused(method: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="norm1, attn.qkv, .*got ResNet"):
        method.attach(timm.create_model("test_resnet"))


def test_refusals_name_numbers() -> None:
    with pytest.raises(UnsupportedModelError, match="multiples of the width 8; mlp.fc1 has 8 to 20"):
        fact.attach(make(mlp_ratio=2.5))
    with pytest.raises(UnsupportedModelError, match="global_pool='token'; got 'avg'"):
        prompts.attach(make(global_pool="avg"))
