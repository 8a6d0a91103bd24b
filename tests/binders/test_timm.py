"""timm: every served class against its own eager math, whole models, and what is refused."""

from __future__ import annotations

import copy
import inspect
import pickle
import pkgutil
import threading
import warnings
from importlib import import_module
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from coeff_tuning import CoeffConfig, CoeffLayer, add_coeff, load_coeff
from coeff_tuning.binders import timm as lists
from coeff_tuning.errors import AdapterMismatchError, AdapterNotAppliedError, UnsupportedModelError
from tests import tiny
from tests.binders.libraries import library
from tests.binders.literal import literal_mixing
from tests.binders.timm_cases import CASES, build
from tests.tiny import adapt, deltas

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3},
    "beit_base_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 3},
    "eva02_tiny_patch14_224": {"img_size": 28, "depth": 2, "embed_dim": 24, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 4,
        "embed_dim": 12,
        "depths": (2, 2),
        "num_heads": (2, 3),
        "drop_path_rate": 0.0,
    },
}


def by_hand(model: nn.Module) -> None:
    """Switch to timm's own eager attention."""
    for module in model.modules():
        if "fused_attn" in vars(module):
            vars(module)["fused_attn"] = False


def whole(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = library("timm").create_model(name, num_classes=7, **MODELS[name]).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def assert_literal(model: PeftModel, args: list[Any], kwargs: dict[str, Any]) -> None:
    """Outputs and gradients to coefficients and input equal those of timm's eager math with mixed maps."""
    layers = sum(isinstance(m, CoeffLayer) for m in model.modules())
    args[0].requires_grad_()
    ours = model(*args, **kwargs)
    plain = copy.deepcopy(model)
    by_hand(plain)
    with literal_mixing(plain) as mixed, plain.disable_adapter():
        expected = plain(*args, **kwargs)
    assert mixed == [layers]
    with plain.disable_adapter(), torch.no_grad():
        assert (plain(*args, **kwargs) - expected).abs().max() > 1e-3
    torch.testing.assert_close(ours, expected, **TOLERANCE)
    upstream = torch.randn_like(ours)
    got = torch.autograd.grad(ours, [args[0], *deltas(model)], upstream)
    wanted = torch.autograd.grad(expected, [args[0], *deltas(plain)], upstream)
    for a, b in zip(got, wanted, strict=True):
        scale = b.abs().max().clamp(min=1.0)
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a / scale, b / scale, **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_class_equals_its_eager_math(case: str) -> None:
    host, x, kwargs = build(case)
    with torch.no_grad():  # torch picks kernels by what needs gradients, so the base must be frozen as it will be
        base = host.requires_grad_(False)(x, **kwargs)
    model = adapt(host)
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(model(x, **kwargs), base)
    assert_literal(model, [x], kwargs)
    by_hand(model)  # as timm.layers.set_fused_attn(False) makes models
    torch.testing.assert_close(model(x, **kwargs), copy.deepcopy(model)(x, **kwargs))
    assert (model(x, **kwargs) - base).abs().max() > 1e-3
    assert type(model.unload().attn) is type(build(case)[0].attn)


@pytest.mark.parametrize("name", MODELS)
def test_model_on_off_copy_save_unload(name: str, tmp_path: Any) -> None:
    base_model = whole(name)
    keys, classes = list(base_model.state_dict()), [type(m) for m in base_model.modules()]
    x = torch.randn(2, 3, 28 if "eva" in name else 32, 28 if "eva" in name else 32)
    with torch.no_grad():
        base = base_model.requires_grad_(False)(x)
    model = adapt(base_model)
    assert_literal(model, [x.clone()], {})
    on = model(x)
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(model(x), base)
    assert torch.equal(model(x), on)
    assert torch.equal(copy.deepcopy(model)(x), on)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), on)
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(whole(name), tmp_path)(x), on)
    unloaded = model.unload()
    with torch.no_grad():
        assert torch.equal(unloaded(x), base)
    assert list(unloaded.state_dict()) == keys
    assert [type(m) for m in unloaded.modules()] == classes


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_compile_and_checkpointing(name: str) -> None:
    model = adapt(whole(name))
    x = torch.randn(2, 3, 32, 32)
    out = model(x)
    compiled = torch.compile(model.base_model.model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), out, **TOLERANCE)
    plain = torch.autograd.grad(out.square().sum(), deltas(model))
    model.base_model.model.set_grad_checkpointing()
    again = torch.autograd.grad(model.train()(x.requires_grad_()).square().sum(), deltas(model))
    for a, b in zip(again, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_beside_lora(tmp_path: Any) -> None:
    lora = LoraConfig(target_modules=["qkv"], r=2, init_lora_weights=False)
    model = tiny.randomise(add_coeff(get_peft_model(whole("vit_tiny_patch16_224"), lora), CoeffConfig()).eval())
    x = torch.randn(2, 3, 32, 32)
    out = model(x)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(load_coeff(whole("vit_tiny_patch16_224"), tmp_path).eval()(x), out)
    only_lora = PeftModel.from_pretrained(whole("vit_tiny_patch16_224"), tmp_path).eval()
    assert (only_lora(x) - out).abs().max() > 1e-2


def test_two_threads_with_and_without_coefficients() -> None:
    model, other = adapt(whole("vit_tiny_patch16_224")), whole("vit_tiny_patch16_224")
    x = torch.randn(2, 3, 32, 32)
    expected = {"ours": model(x), "base": other(x)}
    wrong = []

    def work(name: str, run: nn.Module) -> None:
        for _ in range(50):
            if not torch.equal(run(x), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=pair) for pair in (("ours", model), ("base", other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_mixed_batch_of_windows() -> None:
    model = adapt(whole("swin_tiny_patch4_window7_224"))
    model.add_adapter("other", CoeffConfig())
    tiny.randomise(model, seed=5)
    x = torch.randn(3, 3, 32, 32)
    out = model(x, adapter_names=["other", "__base__", "default"])
    for i, name in ((0, "other"), (2, "default")):
        model.set_adapter(name)
        torch.testing.assert_close(out[i : i + 1], model(x[i : i + 1]), **TOLERANCE)
    with model.disable_adapter():
        torch.testing.assert_close(out[1:2], model(x[1:2]), **TOLERANCE)


def test_lists_are_those_of_the_installed_timm() -> None:
    timm = library("timm")
    calling, by_hand_classes = set(), set()
    for package in (import_module("timm.layers"), import_module("timm.models")):
        for info in pkgutil.iter_modules(package.__path__):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # renamed modules
                module = import_module(f"{package.__name__}.{info.name}")
            for name, cls in vars(module).items():
                own = inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__
                if own and "forward" in vars(cls):
                    source = inspect.getsource(cls)
                    full = f"{module.__name__}.{name}"
                    calling |= {full} if "scaled_dot_product_attention(" in source else set()
                    by_hand_classes |= {full} if "softmax" in source and "att" in name.lower() else set()
    assert calling == (set(lists.LAYOUTS) | {"timm.models.iformer.SHMA"}) - {"timm.models.vision_transformer.Attention"}
    not_maps = {"selective_kernel.SelectiveKernelAttn", "split_attn.SplitAttn", "non_local_attn.NonLocalAttn"}
    unknown = by_hand_classes - calling - set(lists.REFUSED)
    assert unknown == {f"timm.layers.{name}" for name in not_maps}, timm.__version__
    assert {case.split()[0] for case in CASES} == {name.removeprefix("timm.") for name in calling} - {
        "models.iformer.SHMA"
    }


def test_uncovered_kinds_raise_unless_targets_are_named() -> None:
    timm = library("timm")
    cait = timm.create_model("cait_xxs24_224", img_size=32, depth=1, embed_dim=24, num_heads=3, num_classes=7)
    with pytest.raises(
        UnsupportedModelError, match="blocks.0.attn', a TalkingHeadAttn, computes its attention by hand"
    ):
        get_peft_model(cait, CoeffConfig())
    with pytest.raises(UnsupportedModelError, match="TalkingHeadAttn"):
        get_peft_model(cait, CoeffConfig(target_modules=["blocks.0.attn"]))
    named = adapt(cait, target_modules=["blocks_token_only.0.attn", "blocks_token_only.1.attn"])
    assert len(deltas(named)) == 2
    excluded = adapt(named.unload(), exclude_modules=r"blocks\..*")
    assert len(deltas(excluded)) == 2
    swin_v2 = timm.create_model(
        "swinv2_tiny_window8_256", img_size=32, window_size=4, embed_dim=12, depths=(1,), num_heads=(3,)
    )
    with pytest.raises(UnsupportedModelError, match="WindowAttention"):
        get_peft_model(swin_v2, CoeffConfig())


def test_pool_with_a_root_of_its_output_is_refused() -> None:
    library("timm")
    pool = import_module("timm.layers").SimPool1d(24, num_heads=3, gamma=1.25)
    with pytest.raises(UnsupportedModelError, match="SimPool1d .* with gamma it takes a root"):
        get_peft_model(nn.Sequential(pool), CoeffConfig())


def test_no_call_raises() -> None:
    model = adapt(whole("vit_tiny_patch16_224"))
    attn = model.base_model.model.blocks[1].attn
    attention = import_module("timm.layers.attention")
    former = attention.F
    attention.F = type("Elsewhere", (), {"scaled_dot_product_attention": staticmethod(lambda q, k, v, **_: v)})
    try:
        with pytest.raises(AdapterNotAppliedError, match=r"Attention must call .* 1 time\(s\).* it did 0 time\(s\)"):
            attn(torch.randn(2, 5, 24))
    finally:
        attention.F = former
    attn.coefficients.coeff_delta["default"] = nn.Parameter(torch.zeros(5, 5))
    attn.coefficients.num_heads = 5
    with pytest.raises(AdapterMismatchError, match="5 heads.* 3 heads"):
        attn(torch.randn(2, 5, 24))
