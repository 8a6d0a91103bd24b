"""merge_and_unload(): equal to the unmerged model in every listed class, or refused before anything changes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from coeff_tuning import CoeffConfig, CoeffLayer, add_coeff
from coeff_tuning.binders import transformers_projections
from coeff_tuning.binders.bound import Bound
from coeff_tuning.errors import MergeError
from tests import tiny
from tests.binders import diffusers_cases, timm_cases
from tests.tiny import deltas

EXACT = {"atol": 1e-5, "rtol": 1e-5}
DOUBLE = {"atol": 1e-10, "rtol": 1e-10}
# A model of its own for each, with layer norms that stay in float64.
IN_DOUBLE = ("bert", "vit", "gpt2", "opt", "bart", "t5", "starcoder2", "swin", "clip")


def louder(model: nn.Module, seed: int = 5) -> nn.Module:
    """Weights and biases large enough that attention matters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def build(family: str, **config: Any) -> tuple[PeftModel, dict[str, Any]]:
    model, inputs = tiny.build(family)
    model = get_peft_model(louder(model), CoeffConfig(**config))
    return tiny.randomise(model).eval(), inputs


def llama(kv_heads: int, family: type[nn.Module] = tf.LlamaForCausalLM) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    config = family.config_class(**{**tiny.GROUPED, "num_key_value_heads": kv_heads})
    model, inputs = tiny.decoder(family, config)
    return louder(model).eval(), inputs


@torch.no_grad()
def run(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    return tiny.output(model, inputs)


def assert_plain(model: nn.Module, original: nn.Module) -> None:
    assert [type(m).__qualname__ for m in model.modules()] == [type(m).__qualname__ for m in original.modules()]
    assert not any(isinstance(m, Bound) for m in model.modules())
    assert list(model.state_dict()) == list(original.state_dict())
    for module, former in zip(model.modules(), original.modules(), strict=True):
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_state_dict_pre_hooks"):
            assert len(getattr(module, hooks)) == len(getattr(former, hooks))
        assert vars(module).keys() == vars(former).keys()
    assert not hasattr(model, "peft_config")


# Every listed class


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_family(family: str) -> None:
    model, inputs = build(family, mixing="group")
    unmerged = run(model, inputs)
    with model.disable_adapter():
        assert (run(model, inputs) - unmerged).abs().max() > 1e-3
    merged = model.merge_and_unload()
    torch.testing.assert_close(run(merged, inputs), unmerged, **EXACT)
    original, inputs = tiny.build(family)
    run(original, inputs)  # transformers adds hooks of its own in the first pass
    assert_plain(merged, original)


@pytest.mark.parametrize("family", IN_DOUBLE)
def test_family_in_double(family: str) -> None:
    model, inputs = build(family, mixing="group")
    model.double()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    unmerged = run(model, inputs)
    torch.testing.assert_close(run(model.merge_and_unload(), inputs), unmerged, **DOUBLE)


CROSS = ("Bert", "Camembert", "Data2VecText", "Electra", "Roberta", "XLMRoberta", "GPT2")


@pytest.mark.parametrize("name", CROSS)
def test_cross_attention(name: str) -> None:
    torch.manual_seed(0)
    options = {**tiny.TEXT, "is_decoder": True, "add_cross_attention": True, "bos_token_id": 1, "eos_token_id": 2}
    if name == "GPT2":
        options = {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 3, "add_cross_attention": True}
    model = louder(getattr(tf, f"{name}Model")(getattr(tf, f"{name}Config")(**options))).eval()
    model = tiny.randomise(get_peft_model(model, CoeffConfig(mixing="group"))).eval()
    assert len(deltas(model)) == 4
    inputs = {"input_ids": torch.randint(3, 50, (2, 5)), "encoder_hidden_states": torch.randn(2, 7, 24)}
    unmerged = run(model, inputs)
    torch.testing.assert_close(run(model.merge_and_unload(), inputs), unmerged, **EXACT)


def test_every_listed_class_is_tested() -> None:
    tested = {f"{name}CrossAttention" for name in CROSS if name != "GPT2"}
    for family in tiny.FAMILIES:
        tested |= {type(module).__name__ for module in tiny.build(family)[0].modules()}
    assert set(transformers_projections.NAMES) <= tested


TIMM = {
    "layers.attention.Attention",
    "layers.attention.Attention masked",
    "layers.attention.AttentionRope",
    "layers.attention.AttentionRope shared",
    "layers.attention_pool.AttentionPoolLatent",
    "models.beit.Attention",
    "models.cait.ClassAttn",
    "models.metaformer.Attention",
    "models.pvt_v2.Attention",
    "models.swin_transformer.WindowAttention",
    "models.twins.GlobalSubSampleAttn",
    "models.twins.LocallyGroupedAttn",
    "models.vision_transformer_relpos.RelPosAttention",
    "models.vision_transformer_sam.Attention",
}


@pytest.mark.parametrize("case", timm_cases.CASES)
def test_timm(case: str) -> None:
    host, x, kwargs = timm_cases.build(case)
    if case not in TIMM:
        reason = "a norm or a gate" if case.endswith("causal") or "EvaAtt" in case else rf"{case.split()[0]} is not"
        with pytest.raises(MergeError, match=reason):
            get_peft_model(host, CoeffConfig(mixing="group"))
        return
    original = copy.deepcopy(host)
    model = tiny.randomise(get_peft_model(host, CoeffConfig(mixing="group"))).eval()
    with torch.no_grad():
        unmerged = model(x, **kwargs)
        assert (original(x, **kwargs) - unmerged).abs().max() > 1e-3
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(x, **kwargs), unmerged, **EXACT)
    assert_plain(merged, original)


@pytest.mark.parametrize("fused", [False, True])
def test_eva_without_and_with_a_norm_between_heads_and_projection(fused: bool) -> None:
    timm_cases.library("timm")
    from timm.models.eva import EvaAttention

    host = timm_cases.Host(louder(EvaAttention(24, num_heads=3, qkv_fused=fused, scale_norm=False)))
    model, x = tiny.randomise(get_peft_model(host, CoeffConfig(mixing="group"))).eval(), torch.randn(2, 5, 24)
    with torch.no_grad():
        unmerged = model(x)
        torch.testing.assert_close(model.merge_and_unload()(x), unmerged, **EXACT)
    host = timm_cases.Host(EvaAttention(24, num_heads=3, norm_layer=nn.LayerNorm, scale_norm=True, qkv_fused=fused))
    with pytest.raises(MergeError, match="EvaAttention has a norm or a gate"):
        get_peft_model(host, CoeffConfig(mixing="group"))
    model = tiny.randomise(get_peft_model(host, CoeffConfig()))
    with pytest.raises(MergeError, match="'attn' cannot be merged.*norm or a gate"):
        model.merge_and_unload()


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 11, "vdim": 13}, {"add_bias_kv": True}])
def test_torch_multihead_attention(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    host = timm_cases.Host(louder(nn.MultiheadAttention(12, 3, **options)))
    original = copy.deepcopy(host)
    model = tiny.randomise(get_peft_model(host, CoeffConfig(mixing="group"))).eval()
    inputs = (
        torch.randn(5, 2, 12),
        torch.randn(7, 2, options.get("kdim", 12)),
        torch.randn(7, 2, options.get("vdim", 12)),
    )
    with torch.no_grad():
        unmerged = model(*inputs)[0]
        merged = model.merge_and_unload().eval()
        torch.testing.assert_close(merged(*inputs, need_weights=False)[0], unmerged, **EXACT)
    assert_plain(merged, original)


@pytest.mark.parametrize("family", diffusers_cases.FAMILIES)
def test_diffusers(family: str) -> None:
    base, inputs = diffusers_cases.build(family)
    exclude = r"single_transformer_blocks.*" if family == "flux" else None
    if exclude is not None:
        with pytest.raises(MergeError, match="FluxAttention is not"):
            get_peft_model(base, CoeffConfig(mixing="group"))
    model = get_peft_model(base, CoeffConfig(mixing="group", exclude_modules=exclude))
    tiny.randomise(model, scale=0.3).eval()
    with torch.no_grad():
        unmerged = diffusers_cases.output(model, inputs)
        scale = unmerged.abs().max()
        with model.disable_adapter():
            assert (diffusers_cases.output(model, inputs) - unmerged).abs().max() / scale > 1e-3
        merged = model.merge_and_unload()
        torch.testing.assert_close(diffusers_cases.output(merged, inputs) / scale, unmerged / scale, **EXACT)
    assert_plain(merged, diffusers_cases.build(family)[0])


# What merges


@pytest.mark.parametrize(("family", "tolerance"), [(tf.LlamaForCausalLM, EXACT), (tf.Starcoder2ForCausalLM, DOUBLE)])
@pytest.mark.parametrize("parameterization", ["residual", "direct"])
def test_any_matrix_of_multi_query_attention(
    family: type[nn.Module], tolerance: dict[str, float], parameterization: str
) -> None:
    model, inputs = llama(1, family)
    model = tiny.randomise(get_peft_model(model, CoeffConfig(parameterization=parameterization))).eval()
    if tolerance is DOUBLE:
        model.double()
    assert all((p != 0).all() for p in deltas(model))
    unmerged = run(model, inputs)
    generated = model.generate(**inputs, max_new_tokens=9, do_sample=False)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(run(merged, inputs), unmerged, **tolerance)
    assert torch.equal(merged.generate(**inputs, max_new_tokens=9, do_sample=False), generated)


def test_merged_model_is_saved_and_loaded(tmp_path: Path) -> None:
    model, inputs = llama(2)
    model = tiny.randomise(get_peft_model(model, CoeffConfig(mixing="group"))).eval()
    merged = model.merge_and_unload()
    expected = run(merged, inputs)
    merged.save_pretrained(tmp_path)
    again = tf.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(run(again, inputs), expected)
    assert type(again.config) is type(merged.config)


def test_modes_and_adapters() -> None:
    """Dropout does not act; several active adapters add up; adapter_names chooses."""
    model, inputs = llama(1)
    model = get_peft_model(model, CoeffConfig(coeff_dropout=0.5))
    model.add_adapter("other", CoeffConfig(parameterization="direct", coeff_dropout=0.5))
    tiny.randomise(model).eval()
    for active, named in ((["default", "other"], None), (["default"], ["other"]), (["other"], ["default", "other"])):
        twin = copy.deepcopy(model)
        twin.base_model.set_adapter(named or active)
        unmerged = run(twin, inputs)
        twin.base_model.set_adapter(active)
        merged = twin.train().merge_and_unload(adapter_names=named)
        torch.testing.assert_close(run(merged.eval(), inputs), unmerged, **EXACT)
    with pytest.raises(ValueError, match=r"\['default', 'other'\]; \['nope'\] are not"):
        model.merge_and_unload(adapter_names=["nope"])
    with pytest.raises(TypeError, match="'other'"):
        model.merge_and_unload(adapter_names="other")


def test_half_precision_is_merged_in_float32() -> None:
    model, _ = llama(1)
    weight = model.model.layers[0].self_attn.o_proj.weight.data.bfloat16()
    model = tiny.randomise(get_peft_model(model.bfloat16(), CoeffConfig()))
    coeff = model.base_model.model.model.layers[0].self_attn.coefficients.eval().coeff().detach()
    merged = model.merge_and_unload()
    expected = torch.einsum("hi,ohd->oid", coeff, weight.float().unflatten(1, (6, -1))).flatten(1).bfloat16()
    assert torch.equal(merged.model.layers[0].self_attn.o_proj.weight, expected)


def test_a_trained_head_stays() -> None:
    torch.manual_seed(0)
    model = tf.BertForSequenceClassification(tf.BertConfig(**tiny.TEXT, num_labels=5))
    model = tiny.randomise(get_peft_model(louder(model), CoeffConfig(task_type="SEQ_CLS", mixing="group"))).eval()
    model.base_model.model.classifier.modules_to_save["default"].weight.data += 1.0
    inputs = {"input_ids": torch.arange(3, 17).reshape(2, 7)}
    unmerged = run(model, inputs)
    merged = model.merge_and_unload()
    torch.testing.assert_close(run(merged, inputs), unmerged, **EXACT)
    assert type(merged.classifier) is nn.Linear


@pytest.mark.parametrize("mixing", ["group", "full"])
def test_beside_lora_on_all_projections(mixing: str) -> None:
    model, inputs = llama(2)
    lora = LoraConfig(target_modules=["q_proj", "v_proj", "o_proj"], r=2, init_lora_weights=False)
    model = add_coeff(get_peft_model(model, lora), CoeffConfig(mixing=mixing))
    tiny.randomise(model).eval()
    unmerged = run(model, inputs)
    if mixing == "group":
        merged = model.merge_and_unload()
        assert not any(isinstance(m, (CoeffLayer, BaseTunerLayer)) for m in merged.modules())
    else:
        with pytest.warns(UserWarning, match="stay active in the merged model.*36 entries in 2 modules"):
            merged = model.merge_and_unload()
        assert list(merged.peft_config) == ["coeff"]
        assert any(isinstance(m, CoeffLayer) for m in merged.modules())
    torch.testing.assert_close(run(merged, inputs), unmerged, **EXACT)


def test_beside_lora_adapter_names() -> None:
    model, inputs = llama(1)
    lora = LoraConfig(target_modules=["o_proj"], r=2, init_lora_weights=False)
    model = tiny.randomise(add_coeff(get_peft_model(model, lora), CoeffConfig())).eval()
    unmerged = run(model, inputs)
    twin = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="stay active.*names none of them"):
        merged = twin.merge_and_unload(adapter_names=["default"])
    torch.testing.assert_close(run(merged, inputs), unmerged, **EXACT)
    merged = model.merge_and_unload(adapter_names=["default", "coeff"])
    assert not any(isinstance(m, CoeffLayer) for m in merged.modules())
    torch.testing.assert_close(run(merged, inputs), unmerged, **EXACT)


# What is refused, before anything changes


class Quantised(nn.Linear):
    """As quantisation makes them: a linear layer of a class of its own."""


def refuse(model: PeftModel, inputs: dict[str, Any], message: str) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    unmerged = run(model, inputs)
    with pytest.raises(MergeError, match=message):
        model.merge_and_unload()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(run(model, inputs), unmerged)


def test_entries_between_value_heads_are_counted() -> None:
    model, inputs = llama(2)  # 6 heads: 18 of 36 entries within groups
    model = get_peft_model(model, CoeffConfig()).eval()
    first, second = deltas(model)
    first.data[0, 1], first.data[0, 3], second.data[5, 2], second.data[4, 1] = 0.5, 1e-30, -2.0, 1.0
    refuse(
        model, inputs, r"3 entries in 2 modules.*'model.layers.0.self_attn', 'model.layers.1.self_attn'.*mixing='group'"
    )
    first.data[0, 3] = second.data[5, 2] = second.data[4, 1] = 0.0
    unmerged = run(model, inputs)
    torch.testing.assert_close(run(model.merge_and_unload(), inputs), unmerged, **EXACT)


def _projection(model: PeftModel) -> nn.Module:
    return model.base_model.model.model.layers[1].self_attn


def _quantise(model: PeftModel) -> None:
    _projection(model).o_proj.__class__ = Quantised


def _hook(model: PeftModel) -> None:
    _projection(model).o_proj.register_forward_hook(lambda *_: None)


def _share_layer(model: PeftModel) -> None:
    _projection(model).o_proj = model.base_model.model.model.layers[0].self_attn.o_proj


def _tie_weight(model: PeftModel) -> None:
    _projection(model).o_proj.weight = model.base_model.model.model.layers[0].self_attn.o_proj.weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_quantise, "layers.1.self_attn' cannot be merged.*it is a Quantised"),
        (_hook, "layers.1.self_attn' cannot be merged.*Linear has hooks"),
        (_share_layer, "layers.0.self_attn' cannot be merged.*Linear or its weight is shared"),
        (_tie_weight, "layers.0.self_attn' cannot be merged.*Linear or its weight is shared"),
    ],
)
def test_projections_that_are_not_plain(change: Any, message: str) -> None:
    model, inputs = llama(1)
    model = tiny.randomise(get_peft_model(model, CoeffConfig())).eval()
    change(model)
    refuse(model, inputs, message)


def test_lora_that_is_not_merged_yet() -> None:
    model, inputs = llama(1)
    model = tiny.randomise(
        add_coeff(get_peft_model(model, LoraConfig(target_modules=["o_proj"], r=2)), CoeffConfig())
    ).eval()
    from coeff_tuning.tuner.merge import merge_exactly

    with pytest.raises(MergeError, match="Merge or remove other adapters first"):
        merge_exactly(model.get_base_model())
    run(model, inputs)


@pytest.mark.parametrize(("number", "safe"), [(float("nan"), False), (1e38, True)], ids=["nan", "overflow"])
def test_numbers_that_are_not_finite(number: float, safe: bool) -> None:
    model, _ = llama(1)
    model = tiny.randomise(get_peft_model(model, CoeffConfig())).eval()
    deltas(model)[1].data[0, 1] = number
    if safe:
        model.base_model.model.model.layers[1].self_attn.o_proj.weight.data *= 1e3
    before = [layer.self_attn.o_proj.weight.clone() for layer in model.base_model.model.model.layers]
    with pytest.raises(MergeError, match="must be finite.*layers.1.self_attn"):
        model.merge_and_unload(safe_merge=safe)
    for layer, weight in zip(model.base_model.model.model.layers, before, strict=True):
        assert torch.equal(layer.self_attn.o_proj.weight, weight)


def test_disabled_adapters_are_not_merged() -> None:
    model, inputs = llama(1)
    model = tiny.randomise(get_peft_model(model, CoeffConfig())).eval()
    with model.disable_adapter():
        refuse(model, inputs, "these are disabled")


def gated(self: Any, attention_interface: Any, query: Tensor, gate: Tensor, shape: list[int]) -> Tensor:
    """As a later release may change a listed class; the rest is Llama's."""
    attn_output = attention_interface(self, query)
    attn_output = attn_output * gate
    attn_output = attn_output.reshape(*shape, -1).contiguous()
    return self.o_proj(attn_output)


def test_listed_classes_whose_code_has_changed() -> None:
    model, _ = llama(1)
    module = model.model.layers[0].self_attn
    assert transformers_projections.projections(module, model, 6).kv_heads == 1
    home = {"__module__": type(module).__module__}
    for forward in (gated, transformers_projections.projections):
        module.__class__ = type("LlamaAttention", (type(module),), {"forward": forward, **home})
        with pytest.raises(MergeError, match="modeling_llama.LlamaAttention is not"):
            transformers_projections.projections(module, model, 6)


def test_a_class_of_ones_own_is_named() -> None:
    from coeff_tuning import register_attention

    class Own(nn.Module):
        num_heads = 3

        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            heads = x.unflatten(-1, (3, 4)).transpose(1, 2)
            out = nn.functional.scaled_dot_product_attention(heads, heads, heads)
            return self.proj(out.transpose(1, 2).flatten(2))

    register_attention(Own)
    model = tiny.randomise(get_peft_model(nn.Sequential(Own()), CoeffConfig()))
    with pytest.raises(MergeError, match="'0' cannot be merged.*Own is not"):
        model.merge_and_unload()
    untouched = get_peft_model(nn.Sequential(Own()), CoeffConfig())
    assert type(untouched.merge_and_unload()[0]) is Own  # identity coefficients: nothing to merge
