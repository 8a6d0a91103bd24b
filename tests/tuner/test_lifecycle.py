"""PEFT's life cycle with CoeffConfig: what PEFT's own generic adapter tests ask of every method."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils import PeftType
from safetensors.torch import load_file
from torch import nn

from coeff_tuning import CoeffConfig, CoeffLayer
from coeff_tuning.errors import MergeError
from coeff_tuning.tuner import mixed_batch
from tests import tiny
from tests.tiny import layers

FOUR = pytest.mark.parametrize("family", ["bert", "vit", "llama", "bart"])


def fresh(family: str, **config: Any) -> tuple[PeftModel, dict[str, Any]]:
    model, inputs = tiny.build(family)
    return get_peft_model(model, CoeffConfig(**config)).eval(), inputs


def trained(family: str, **config: Any) -> tuple[PeftModel, dict[str, Any]]:
    peft_model, inputs = fresh(family, **config)
    return tiny.randomise(peft_model), inputs


@torch.no_grad()
def run(model: nn.Module, inputs: dict[str, Any], **kwargs: Any) -> torch.Tensor:
    return tiny.output(model, inputs, **kwargs)


def test_the_method_is_registered() -> None:
    assert PeftType.COEFF == "COEFF"
    assert PeftType("COEFF") is PeftType.COEFF
    assert "COEFF" in list(PeftType)
    assert CoeffConfig().peft_type is PeftType.COEFF


def test_registering_twice_changes_nothing() -> None:
    from coeff_tuning.tuner.register import register

    before = list(PeftType)
    register()
    assert list(PeftType) == before


@FOUR
def test_only_coefficients_are_trained(family: str) -> None:
    peft_model, inputs = fresh(family, coeff_dropout=0.0)
    before = {name: p.detach().clone() for name, p in peft_model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        loss = tiny.output(peft_model.train(), inputs).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in peft_model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("coeff_delta" not in name), name


@FOUR
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load(family: str, low_cpu_mem_usage: bool, tmp_path: Path) -> None:
    peft_model, inputs = trained(family, task_type="FEATURE_EXTRACTION" if family == "bert" else None)
    expected = run(peft_model, inputs)
    peft_model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert len(weights) == len(layers(peft_model))
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4000
    model, _ = tiny.build(family)
    loaded = PeftModel.from_pretrained(model, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(run(loaded, inputs), expected)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert isinstance(PeftConfig.from_pretrained(tmp_path), CoeffConfig)
    result = loaded.load_adapter(tmp_path, "other", low_cpu_mem_usage=low_cpu_mem_usage)
    assert result.missing_keys == []
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}


@FOUR
def test_pickle_format_saves_and_loads_too(family: str, tmp_path: Path) -> None:
    peft_model, inputs = trained(family)
    peft_model.save_pretrained(tmp_path, safe_serialization=False)
    model, _ = tiny.build(family)
    assert torch.equal(run(PeftModel.from_pretrained(model, tmp_path), inputs), run(peft_model, inputs))


@FOUR
def test_several_adapters(family: str, tmp_path: Path) -> None:
    peft_model, inputs = trained(family)
    first = run(peft_model, inputs)
    peft_model.add_adapter("second", CoeffConfig())
    for layer in layers(peft_model):
        layer.coeff_delta["second"].data.normal_()
    assert torch.equal(run(peft_model, inputs), first)
    peft_model.set_adapter("second")
    assert not torch.allclose(run(peft_model, inputs), first, atol=1e-5)
    assert all(p.requires_grad == (".second" in n) for n, p in peft_model.named_parameters())
    second = run(peft_model, inputs)
    peft_model.save_pretrained(tmp_path)
    model, _ = tiny.build(family)
    loaded = PeftModel.from_pretrained(model, tmp_path)
    loaded.load_adapter(tmp_path / "second", "renamed")
    assert torch.equal(run(loaded, inputs), first)
    loaded.set_adapter("renamed")
    assert torch.equal(run(loaded, inputs), second)
    loaded.load_adapter(tmp_path, "renamed")  # over an existing name: swapped in place
    assert torch.equal(run(loaded, inputs), first)


@FOUR
def test_delete(family: str) -> None:
    peft_model, inputs = trained(family)
    first = run(peft_model, inputs)
    peft_model.add_adapter("second", CoeffConfig(init="random", init_scale=1.0))
    peft_model.set_adapter("second")
    with pytest.warns(UserWarning, match="Adapter second was active which is now deleted"):
        peft_model.delete_adapter("second")
    assert list(peft_model.peft_config) == ["default"]
    assert all("second" not in layer.coeff_delta for layer in layers(peft_model))
    assert torch.equal(run(peft_model, inputs), first)
    peft_model.delete_adapter("default")
    model, _ = tiny.build(family)
    with torch.no_grad():
        torch.testing.assert_close(tiny.output(peft_model.base_model.model, inputs), run(model, inputs))


@FOUR
def test_merge_is_refused_and_says_why(family: str) -> None:
    peft_model, inputs = trained(family)
    expected = run(peft_model, inputs)
    for merge in (peft_model.merge_and_unload, peft_model.merge_adapter):
        with pytest.raises(MergeError, match="another value head.*unload"):
            merge()
    assert torch.equal(run(peft_model, inputs), expected)


@FOUR
def test_mixed_batch_equals_single_runs(family: str) -> None:
    peft_model, inputs = trained(family)
    peft_model.add_adapter("second", CoeffConfig())
    for layer in layers(peft_model):
        layer.coeff_delta["second"].data.normal_()
    inputs = {name: torch.cat([x, x[:1]]) for name, x in inputs.items()}
    names = ["second", "__base__", "default"]
    mixed = run(peft_model, inputs, adapter_names=names)
    for row, name in enumerate(names):
        if name == "__base__":
            with peft_model.disable_adapter():
                single = run(peft_model, inputs)
        else:
            peft_model.set_adapter(name)
            single = run(peft_model, inputs)
        torch.testing.assert_close(mixed[row], single[row], atol=2e-6, rtol=1e-5)
    assert not torch.allclose(mixed[0], run(peft_model, inputs)[0], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_mixed_batch_in_generate(family: str, beams: int) -> None:
    peft_model, inputs = trained(family)
    inputs = {k: v for k, v in inputs.items() if k != "decoder_input_ids"}
    kwargs = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    mixed = peft_model.generate(**inputs, adapter_names=["default", "__base__"], **kwargs)
    on = peft_model.generate(**inputs, **kwargs)
    with peft_model.disable_adapter():
        off = peft_model.generate(**inputs, **kwargs)
    assert torch.equal(mixed[0], on[0])
    assert torch.equal(mixed[1], off[1])


def test_mixed_batch_of_heads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = tf.BertConfig(**tiny.TEXT, num_labels=5)
    peft_model = get_peft_model(
        tf.BertForSequenceClassification(config).eval(), CoeffConfig(task_type="SEQ_CLS")
    ).eval()
    peft_model.add_adapter("second", CoeffConfig(task_type="SEQ_CLS"))
    for name, parameter in peft_model.named_parameters():
        if "coeff_delta" in name or "modules_to_save" in name:
            parameter.data.normal_()
    ids = torch.randint(3, 61, (2, 6))
    mixed = run(peft_model, {"input_ids": ids}, adapter_names=["second", "default"])
    default = run(peft_model, {"input_ids": ids})
    peft_model.set_adapter("second")
    second = run(peft_model, {"input_ids": ids})
    torch.testing.assert_close(mixed, torch.stack([second[0], default[1]]), atol=2e-6, rtol=1e-5)
    assert not torch.allclose(second, default)


def test_mixed_batch_misuse_raises() -> None:
    peft_model, inputs = trained("bert")
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\) \['nope'\]"):
        peft_model(**inputs, adapter_names=["nope", "default"])
    with pytest.raises(TypeError, match="'default'"):
        peft_model(**inputs, adapter_names="default")
    for count in (1, 3, 4):
        with pytest.raises(ValueError, match=f"{count} names for a batch of 2"):
            peft_model(**inputs, adapter_names=["default"] * count)
    with pytest.raises(ValueError, match=r"eval\(\)"):
        peft_model.train()(**inputs, adapter_names=["default"] * 2)
    assert all(layer.sample_adapters is None for layer in layers(peft_model))


@pytest.mark.parametrize("name", ["input_ids", "sample", "hidden_states", "x"])
def test_samples_are_counted_whatever_the_library_calls_them(name: str) -> None:
    call = {"timestep": torch.tensor([7]), name: torch.zeros(2, 3), "attention_mask": torch.ones(4, 3)}
    with pytest.raises(ValueError, match="1 names for a batch of 2"):
        mixed_batch.check_batch((), call, 1)
    mixed_batch.check_batch((), call, 2)


@pytest.mark.parametrize("parameterization", ["residual", "direct"])
def test_weighted_sum(parameterization: str, tmp_path: Path) -> None:
    peft_model, inputs = trained("vit", parameterization=parameterization)
    first = run(peft_model, inputs)
    peft_model.add_adapter("second", CoeffConfig(parameterization=parameterization, init="random"))
    matrices = {name: [] for name in ("default", "second", "same", "sum")}
    peft_model.add_weighted_adapter(["default"], [1.0], "same")
    peft_model.add_weighted_adapter(["default", "second"], [0.25, -2.0], "sum")
    assert torch.equal(run(peft_model, inputs), first)
    for name, found in matrices.items():
        peft_model.set_adapter(name)
        found.extend(layer.coeff().detach() for layer in layers(peft_model))
    for one, two, same, total in zip(*matrices.values(), strict=True):
        eye = torch.eye(3)
        assert torch.equal(one, same)
        torch.testing.assert_close(total - eye, 0.25 * (one - eye) - 2.0 * (two - eye))
    peft_model.save_pretrained(tmp_path, selected_adapters=["sum"])
    model, _ = tiny.build("vit")
    peft_model.set_adapter("sum")
    assert torch.equal(run(PeftModel.from_pretrained(model, tmp_path / "sum"), inputs), run(peft_model, inputs))


@pytest.mark.parametrize("parameterization", ["residual", "direct"])
def test_arithmetic_of_adapters(parameterization: str) -> None:
    peft_model, inputs = trained("vit", parameterization=parameterization)
    base = run(tiny.build("vit")[0], inputs)
    peft_model.add_adapter("second", CoeffConfig(parameterization=parameterization, init="random", init_scale=0.4))

    def coefficients(names: list[str], weights: list[float]) -> list[torch.Tensor]:
        name = f"sum{len(peft_model.peft_config)}"
        peft_model.add_weighted_adapter(names, weights, name)
        peft_model.set_adapter(name)
        return [layer.coeff().detach().clone() for layer in layers(peft_model)]

    first, second = coefficients(["default"], [1.0]), coefficients(["second"], [1.0])
    for share in (0.0, 0.3, 1.0):
        between = coefficients(["default", "second"], [1.0 - share, share])
        torch.testing.assert_close(between, [torch.lerp(a, b, share) for a, b in zip(first, second, strict=True)])
    peft_model.add_weighted_adapter(["default"], [-1.0], "minus")
    nothing = coefficients(["default", "minus"], [1.0, 1.0])
    torch.testing.assert_close(nothing, [torch.eye(3)] * 2)
    torch.testing.assert_close(run(peft_model, inputs), base, atol=2e-6, rtol=1e-5)
    assert torch.equal(torch.stack(coefficients(["default"], [0.0])), torch.eye(3).expand(2, 3, 3))
    peft_model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "total")
    torch.testing.assert_close(coefficients(["total", "second"], [1.0, -1.0]), first)
    assert not torch.allclose(torch.stack(first), torch.stack(second), atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["nope"], [1.0], "new"), r"got \['nope'\]"),
        (([], [], "new"), r"got \[\]"),
        ((["default"], [1.0, 2.0], "new"), r"\[1.0, 2.0\]"),
        ((["default"], [1.0], "default"), "'default' exists"),
        ((["default"], ["x"], "new"), r"\['x'\]"),
        ((["default"], [float("nan")], "new"), r"\[nan\]"),
        ((["default"], [1.0], "a.b"), "'a.b'"),
        ((["default", "direct"], [1.0, 1.0], "new"), "'direct', 'residual'"),
    ],
)
def test_weighted_sum_without_a_meaning_raises(arguments: Any, message: str) -> None:
    peft_model, _ = trained("vit")
    peft_model.add_adapter("direct", CoeffConfig(parameterization="direct"))
    with pytest.raises(ValueError, match=message):
        peft_model.add_weighted_adapter(*arguments)
    assert list(peft_model.peft_config) == ["default", "direct"]


@pytest.mark.parametrize("name", ["copy", "a.b"])
def test_names_that_cannot_be_keys_raise(name: str) -> None:
    peft_model, _ = trained("vit")
    with pytest.raises(ValueError, match=f"got {name!r}"):
        peft_model.add_adapter(name, CoeffConfig())
    assert list(peft_model.peft_config) == ["default"]


def test_two_active_adapters_add_up() -> None:
    peft_model, _ = trained("vit")
    peft_model.add_adapter("second", CoeffConfig(init="random", parameterization="direct"))
    peft_model.base_model.set_adapter(["default", "second"])
    layer = layers(peft_model)[0]
    torch.testing.assert_close(layer.coeff(), layer.coeff_delta["default"] + layer.coeff_delta_direct["second"])


def test_weighted_sum_takes_the_trained_heads_along(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tf.BertForSequenceClassification(tf.BertConfig(**tiny.TEXT, num_labels=5)).eval()
    peft_model = get_peft_model(copy.deepcopy(base), CoeffConfig(task_type="SEQ_CLS")).eval()
    peft_model.add_adapter("second", CoeffConfig(task_type="SEQ_CLS"))
    for name, parameter in peft_model.named_parameters():
        if "coeff_delta" in name or "modules_to_save" in name:
            parameter.data.normal_()
    inputs = {"input_ids": torch.randint(3, 61, (2, 6))}
    expected = run(peft_model, inputs)
    peft_model.add_weighted_adapter(["default"], [1.0], "same")
    peft_model.add_weighted_adapter(["default", "second"], [0.5, 0.5], "mean")
    peft_model.set_adapter("same")
    assert torch.equal(run(peft_model, inputs), expected)
    heads = peft_model.base_model.model.classifier.modules_to_save
    torch.testing.assert_close(heads["mean"].weight, (heads["default"].weight + heads["second"].weight) / 2)
    peft_model.save_pretrained(tmp_path)
    assert torch.equal(run(PeftModel.from_pretrained(base, tmp_path / "same"), inputs), expected)


def test_weighted_sum_takes_running_statistics_along() -> None:
    head = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(24, 2))
    model = nn.Sequential(OrderedDict(encoder=nn.TransformerEncoderLayer(24, 3, 20, batch_first=True), head=head))
    peft_model = get_peft_model(model, CoeffConfig(modules_to_save=["head"])).train()
    x = torch.randn(7, 5, 24)
    peft_model(3 * x + 1)
    expected = peft_model.eval()(x)
    peft_model.add_weighted_adapter(["default"], [1.0], "same")
    peft_model.add_weighted_adapter(["default"], [0.25], "part")
    heads = peft_model.base_model.model.head
    means = [heads.modules_to_save[name][0].running_mean for name in ("default", "part")]
    torch.testing.assert_close(means[1], 0.25 * means[0] + 0.75 * heads.original_module[0].running_mean)
    peft_model.set_adapter("same")
    assert torch.equal(peft_model.eval()(x), expected)


def test_a_trained_classifier_is_saved_and_used(tmp_path: Path) -> None:
    config = tf.ViTConfig(**tiny.VISION, num_labels=4)
    torch.manual_seed(0)
    model = tf.ViTForImageClassification(config).eval()
    base = copy.deepcopy(model)
    inputs = {"pixel_values": torch.randn(2, 3, 14, 14)}
    expected_base = run(model, inputs)
    peft_model = tiny.randomise(get_peft_model(model, CoeffConfig(modules_to_save=["classifier"])).eval())
    head = peft_model.base_model.model.classifier.modules_to_save["default"]
    assert head.weight.requires_grad
    assert peft_model.get_nb_trainable_parameters()[0] == 18 + 24 * 4 + 4
    before = run(peft_model, inputs)
    head.weight.data.normal_()
    on = run(peft_model, inputs)
    assert not torch.allclose(on, before)
    with peft_model.disable_adapter():
        assert torch.equal(run(peft_model, inputs), expected_base)
    peft_model.save_pretrained(tmp_path)
    assert torch.equal(run(PeftModel.from_pretrained(base, tmp_path), inputs), on)
    unloaded = peft_model.unload()
    assert type(unloaded.classifier) is nn.Linear


def test_layers_to_transform_and_exclude() -> None:
    def names(**config: Any) -> list[str]:
        model = fresh("bart", **config)[0].base_model.model
        return [n.removesuffix(".coefficients") for n, m in model.named_modules() if isinstance(m, CoeffLayer)]

    assert len(names()) == len(names(target_modules="all-attention")) == 6
    assert all(".1." in name for name in names(layers_to_transform=1))
    assert len(names(layers_to_transform=[1])) == 3
    assert names(target_modules=["encoder_attn"]) == [f"model.decoder.layers.{i}.encoder_attn" for i in range(2)]
    assert names(target_modules=r"model\.encoder.*self_attn") == [
        f"model.encoder.layers.{i}.self_attn" for i in range(2)
    ]
    assert len(names(exclude_modules=["encoder_attn"])) == 4
    assert len(names(exclude_modules=r"model\.decoder.*")) == 2


def test_an_exclusion_that_matches_nothing_raises() -> None:
    for exclusion in (["encoder_attn", "nope"], "nope"):
        with pytest.raises(ValueError, match="'nope' must match a module of BartForConditionalGeneration"):
            fresh("bart", exclude_modules=exclusion)


def test_attention_that_is_saved_in_full_gets_no_coefficients() -> None:
    peft_model, inputs = fresh("bart", modules_to_save=["encoder_attn"])
    assert len(layers(peft_model)) == 4
    run(peft_model, inputs)


def test_transformers_own_delete_removes_the_coefficients() -> None:
    model, inputs = tiny.build("llama")
    base = run(model, inputs)
    model.add_adapter(CoeffConfig(), "mine")
    tiny.randomise(model.eval())
    model.delete_adapter("mine")
    assert not any("coeff_delta" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(run(model, inputs), base, atol=2e-6, rtol=1e-5)


def test_mixed_batch_with_beams_from_a_generation_config() -> None:
    peft_model, inputs = trained("llama")
    config = tf.GenerationConfig(max_new_tokens=4, min_new_tokens=4, num_beams=2, pad_token_id=0)
    mixed = peft_model.generate(**inputs, generation_config=config, adapter_names=["default", "__base__"])
    with peft_model.disable_adapter():
        off = peft_model.generate(**inputs, generation_config=config)
    assert torch.equal(mixed[0], peft_model.generate(**inputs, generation_config=config)[0])
    assert torch.equal(mixed[1], off[1])


def test_mixed_batch_where_images_are_no_samples_raises() -> None:
    peft_model, inputs = trained("llava")
    with pytest.raises(ValueError, match="vision_tower"):
        peft_model(**inputs, adapter_names=["default"])
    language, inputs = trained("llava", target_modules=r".*language_model.*self_attn")
    on = run(language, inputs)
    assert torch.equal(run(language, inputs, adapter_names=["default"]), on)


def test_half_precision_base_keeps_float32_coefficients(tmp_path: Path) -> None:
    model, inputs = tiny.build("llama")
    base = model.to(torch.bfloat16)
    peft_model = get_peft_model(copy.deepcopy(base), CoeffConfig())
    assert {layer.coeff_delta["default"].dtype for layer in layers(peft_model)} == {torch.float32}
    assert run(peft_model, inputs).dtype == torch.bfloat16
    tiny.randomise(peft_model).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert {layer.coeff_delta["default"].dtype for layer in layers(loaded)} == {torch.float32}
    assert torch.equal(run(loaded, inputs), run(peft_model.eval(), inputs))
    asked = get_peft_model(copy.deepcopy(base), CoeffConfig(), autocast_adapter_dtype=False)
    assert {layer.coeff_delta["default"].dtype for layer in layers(asked)} == {torch.bfloat16}


def test_direct_injection_without_a_peft_model() -> None:
    peft_model, inputs = trained("bert")
    state_dict = get_peft_model_state_dict(peft_model)
    model, _ = tiny.build("bert")
    inject_adapter_in_model(CoeffConfig(), model)
    set_peft_model_state_dict(model, state_dict)
    assert torch.equal(run(model.eval(), inputs), run(peft_model, inputs))
    from_keys, _ = tiny.build("bert")
    some = {k.removeprefix("base_model.model."): v for k, v in state_dict.items() if ".layer.1." in k}
    with pytest.warns(RuntimeWarning, match="inconsistency"):
        inject_adapter_in_model(CoeffConfig(), from_keys, state_dict=some)
    assert [n for n, m in from_keys.named_modules() if isinstance(m, CoeffLayer)] == [
        "encoder.layer.1.attention.self.coefficients"
    ]


def test_low_cpu_mem_injection_uses_the_meta_device() -> None:
    model, _ = tiny.build("bert")
    inject_adapter_in_model(CoeffConfig(), model, low_cpu_mem_usage=True)
    assert {p.device.type for n, p in model.named_parameters() if "coeff" in n} == {"meta"}


def test_transformers_own_adapter_methods(tmp_path: Path) -> None:
    model, inputs = tiny.build("llama")
    base = run(model, inputs)
    model.add_adapter(CoeffConfig(), "mine")
    tiny.randomise(model.eval())
    on = run(model, inputs)
    assert not torch.allclose(on, base)
    model.save_pretrained(tmp_path)
    other, _ = tiny.build("llama")
    other.load_adapter(str(tmp_path), "mine")
    assert torch.equal(run(other.eval(), inputs), on)
    other.disable_adapters()
    assert torch.equal(run(other, inputs), base)


def test_dropout_acts_on_delta_only_in_training() -> None:
    layer = CoeffLayer(50)
    layer.update_layer("default", CoeffConfig(coeff_dropout=0.5))
    layer.coeff_delta["default"].data.fill_(1.0)
    delta = layer.train().coeff() - torch.eye(50)
    assert set(delta.unique().tolist()) == {0.0, 2.0}  # on the identity's diagonal as well
    assert 0.4 < (delta == 0).float().mean() < 0.6
    assert torch.equal(layer.eval().coeff() - torch.eye(50), torch.ones(50, 50))


@pytest.mark.parametrize(
    ("config", "start"),
    [
        (CoeffConfig(), torch.eye(4)),
        (CoeffConfig(parameterization="direct"), torch.eye(4)),
        (CoeffConfig(parameterization="direct", init="identity"), torch.eye(4)),
    ],
    ids=["residual", "direct", "direct-identity"],
)
def test_default_starts_are_the_pretrained_model(config: CoeffConfig, start: torch.Tensor) -> None:
    layer = CoeffLayer(4)
    layer.update_layer("default", config)
    assert torch.equal(layer.eval().coeff(), start)


def test_random_starts_have_the_scale_asked_for() -> None:
    for parameterization, centre in (("residual", torch.eye(80)), ("direct", torch.zeros(80, 80))):
        layer = CoeffLayer(80)
        layer.update_layer("default", CoeffConfig(parameterization=parameterization, init="random", init_scale=0.3))
        assert (layer.eval().coeff() - centre).std().item() == pytest.approx(0.3, rel=0.05)
