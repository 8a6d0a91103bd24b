"""Many adapters: loaded at once, served from one batch, each as if it ran alone; broken files are named."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from coeff_tuning import CoeffConfig, CoeffLayer, add_coeff, load_adapters, load_coeff
from coeff_tuning.errors import AdapterFileError, AdapterMismatchError, CombinationError
from tests import tiny

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def vit(labels: int = 5, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = tf.ViTForImageClassification(tf.ViTConfig(**{**tiny.VISION, **changes}, num_labels=labels))
    for parameter in model.parameters():
        if parameter.dim() > 1:  # large enough that every adapter changes the output
            parameter.data.mul_(6)
    return model.eval()


def save(folder: Path, seed: int, model: nn.Module | None = None, **config: Any) -> Path:
    """A saved adapter; what it trains is random."""
    peft_model = get_peft_model(model or vit(), CoeffConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad:
            scale = 0.5 if "coeff_delta" in name else 1.0
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    peft_model.save_pretrained(folder)
    return folder


@torch.no_grad()
def run(model: nn.Module, pixels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return model(pixel_values=pixels, **kwargs).logits


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 3e-6 * expected.abs().max()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 14, 14, generator=torch.Generator().manual_seed(9))


def test_a_thousand_adapters(tmp_path: Path) -> None:
    count, heads = 1000, {"num_hidden_layers": 12, "num_attention_heads": 12}
    first = save(tmp_path / "a0", 0, vit(**heads))
    keys = list(load_file(first / WEIGHTS))
    assert len(keys) == 12
    folders = {f"a{number}": tmp_path / f"a{number}" for number in range(count)}
    generator = torch.Generator().manual_seed(3)
    for folder in list(folders.values())[1:]:
        folder.mkdir()
        shutil.copy(first / CONFIG, folder)
        save_file({key: 0.5 * torch.randn(12, 12, generator=generator) for key in keys}, folder / WEIGHTS)

    start = time.process_time()
    model = load_adapters(vit(**heads), folders)
    assert time.process_time() - start < 5.0
    assert list(model.peft_config) == list(folders)
    pixels = images(count)
    mixed = run(model, pixels, adapter_names=list(folders))

    alone = PeftModel.from_pretrained(vit(**heads), first)
    layers = {name: layer for name, layer in alone.named_modules() if isinstance(layer, CoeffLayer)}
    for row, folder in enumerate(folders.values()):
        tensors = load_file(folder / WEIGHTS)
        for name, layer in layers.items():
            layer.coeff_delta["default"].data.copy_(tensors[f"{name}.coeff_delta"])
        assert_same(mixed[row : row + 1], run(alone, pixels[row : row + 1]))
    assert torch.pdist(mixed).min() > 1e-3  # no two adapters did the same to their images


KINDS: dict[str, dict[str, Any]] = {
    "cats": {},
    "dogs": {},
    "direct": {"parameterization": "direct"},
    "head": {"modules_to_save": ["classifier"]},
    "last": {"layers_to_transform": [1]},
    "second_head": {"modules_to_save": ["classifier"], "coeff_dropout": 0.4},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {name: save(root / name, seed, **config) for seed, (name, config) in enumerate(KINDS.items())}


def assert_each_as_if_alone(model: PeftModel, saved: dict[str, Path]) -> None:
    names = ["direct", "cats", "__base__", "second_head", "last", "head", "dogs"]
    pixels = images(len(names))
    mixed = run(model, pixels, adapter_names=names)
    for row, name in enumerate(names):
        alone = vit() if name == "__base__" else PeftModel.from_pretrained(vit(), saved[name])
        assert_same(mixed[row], run(alone.eval(), pixels)[row])


def test_adapters_of_all_kinds(saved: dict[str, Path]) -> None:
    model = load_adapters(vit(), saved)
    assert set(model.peft_config) == set(KINDS)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.active_adapters == ["cats"]
    assert_each_as_if_alone(model, saved)


def test_they_are_ordinary_adapters(saved: dict[str, Path], tmp_path: Path) -> None:
    model, pixels = load_adapters(vit(), saved), images(2)
    for name in ("second_head", "last", "dogs"):
        model.set_adapter(name)
        expected = run(PeftModel.from_pretrained(vit(), saved[name]), pixels)
        assert torch.equal(run(model, pixels), expected)
        model.save_pretrained(tmp_path, selected_adapters=[name])
        assert torch.equal(run(PeftModel.from_pretrained(vit(), tmp_path / name), pixels), expected)
    assert model.peft_config["second_head"].coeff_dropout == 0.4
    model.delete_adapter("cats")
    assert torch.equal(run(model, pixels), expected)
    model.load_adapter(saved["cats"], "dogs")  # another's numbers, in place
    assert torch.equal(run(model, pixels), run(PeftModel.from_pretrained(vit(), saved["cats"]), pixels))


def test_beside_coefficients_in_training(saved: dict[str, Path], tmp_path: Path) -> None:
    model, pixels = get_peft_model(vit(), CoeffConfig(layers_to_transform=[0], init="random")), images(2)
    before = run(model.eval(), pixels)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert load_adapters(model, saved) is model
    assert torch.equal(run(model, pixels), before)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert_each_as_if_alone(model, saved)


@pytest.mark.parametrize("has_coefficients", [True, False])
def test_beside_another_method(has_coefficients: bool, saved: dict[str, Path], tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["query", "q_proj"], init_lora_weights=False, modules_to_save=["classifier"])
    model, pixels = get_peft_model(vit(), lora, adapter_name="mine").eval(), images(4)
    model.save_pretrained(tmp_path)
    if has_coefficients:
        add_coeff(model, CoeffConfig(init="random"), "own").eval()
    before = run(model, pixels)
    bare = {name: folder for name, folder in saved.items() if "head" not in name}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    load_adapters(model, bare)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert torch.equal(run(model, pixels), before) == has_coefficients
    names = [("mine", "last"), "direct", "mine", ("dogs", "mine")]
    mixed = run(model, pixels, adapter_names=names)
    for row, name in enumerate(["last", "direct", None, "dogs"]):
        alone: Any = vit() if row == 1 else PeftModel.from_pretrained(vit(), tmp_path / "mine")
        alone = alone if name is None else load_coeff(alone, saved[name])
        assert_same(mixed[row], run(alone.eval(), pixels)[row])
    with pytest.raises(CombinationError, match=r"head: modules_to_save=\['classifier'\]"):
        load_adapters(model, {"fresh": saved["cats"], "with_head": saved["head"]})
    assert "fresh" not in model.peft_config


# Refusals


def _truncate(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-1])


def _rewrite(folder: Path, change: Any) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def _as_lora(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "peft_type": "LORA"}))


DAMAGE: dict[str, tuple[Any, type[Exception], str]] = {
    "truncated": (_truncate, AdapterFileError, "complete safetensors"),
    "no-weights": (lambda f: (f / WEIGHTS).unlink(), AdapterFileError, "must hold adapter_model"),
    "no-config": (lambda f: (f / CONFIG).unlink(), AdapterFileError, "there is none"),
    "broken-config": (lambda f: (f / CONFIG).write_text("{"), AdapterFileError, "JSON"),
    "lora": (_as_lora, AdapterFileError, "it is of LORA"),
    "nan": (
        lambda f: _rewrite(f, lambda w: {k: v * float("nan") for k, v in w.items()}),
        AdapterMismatchError,
        "finite",
    ),
    "one-layer": (lambda f: _rewrite(f, lambda w: dict(list(w.items())[:1])), AdapterMismatchError, "1 modules have"),
    "other-model": (lambda f: save(f, 1, vit(num_hidden_layers=3)), AdapterMismatchError, "1 saved matrices"),
    "other-heads": (lambda f: save(f, 1, vit(num_attention_heads=6)), AdapterMismatchError, r"\(6, 6\) in the file"),
    "head": (
        lambda f: save(f, 1, vit(labels=4), modules_to_save=["classifier"]),
        AdapterMismatchError,
        r"\(5, 24\).*\(4, 24\)",
    ),
    "head-missing": (
        lambda f: _rewrite(save(f, 1, modules_to_save=["classifier"]), lambda w: {k: w[k] for k in w if "coeff" in k}),
        AdapterMismatchError,
        "the file has {}",
    ),
    "layers": (lambda f: save(f, 1, vit(num_hidden_layers=9), layers_to_transform=[8]), ValueError, r"\[8\]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_file_is_named_and_nothing_is_loaded(damage: str, saved: dict[str, Path], tmp_path: Path) -> None:
    harm, error, message = DAMAGE[damage]
    shutil.copytree(saved["dogs"], tmp_path / "bad")
    harm(tmp_path / "bad")
    model = vit()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(error, match=message) as caught:
        load_adapters(model, {"cats": saved["cats"], "bad": tmp_path / "bad", "head": saved["head"]})
    assert str(tmp_path / "bad") in str(caught.value)
    assert [name for name, _ in model.named_modules()] == names


def test_bad_names_raise(saved: dict[str, Path]) -> None:
    model = load_adapters(vit(), {"cats": saved["cats"]})
    for name, message in (
        ("cats", "'cats' exists"),
        ("a.b", "'a.b'"),
        ("keys", "'keys'"),
        ("__base__", "got '__base__'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_adapters(model, {"dogs": saved["dogs"], name: saved["dogs"]})
    with pytest.raises(ValueError, match="at least one"):
        load_adapters(model, {})
    assert list(model.peft_config) == ["cats"]


# Swapping


@pytest.mark.parametrize("is_combined", [False, True])
def test_swapping_does_not_recompile(is_combined: bool, saved: dict[str, Path]) -> None:
    model: Any = vit()
    if is_combined:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["query", "q_proj"], init_lora_weights=False))
    model, pixels = load_coeff(model, saved["cats"], "mine"), images(2)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="eager")
    first = run(model, pixels)
    assert torch.equal(run(compiled, pixels), first)
    with torch.compiler.set_stance("fail_on_recompile"):
        for name in ("dogs", "cats"):
            model.load_adapter(saved[name], "mine")
            assert torch.equal(run(compiled, pixels), run(model, pixels))
            assert torch.equal(run(model, pixels), first) == (name == "cats")
        with pytest.raises(RuntimeError, match="recompil"):  # what the swaps would have raised
            run(compiled, images(3)[:, :, :7])
    torch.compiler.reset()
