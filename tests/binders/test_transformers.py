"""transformers models: against the literal formula, on and off, caches, masks, refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from coeff_tuning import CoeffConfig, CoeffLayer
from coeff_tuning.binders import find_binder
from coeff_tuning.errors import AdapterMismatchError, AdapterNotAppliedError, UnsupportedModelError
from tests import tiny
from tests.binders.literal import literal_mixing

DECODERS = ("gpt2", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt_oss")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def adapted(family: str, attn_implementation: str | None = None, **config: Any) -> tuple[PeftModel, dict[str, Any]]:
    model, inputs = tiny.build(family, attn_implementation)
    return tiny.randomise(get_peft_model(model, CoeffConfig(**config)).eval()), inputs


def attended(difference: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Drop padded positions, whose outputs mean nothing: their rows are fully masked in one implementation only."""
    mask = inputs.get("attention_mask")
    if mask is not None and difference.dim() == 3 and difference.shape[:2] == mask.shape:
        return difference[mask.bool()]
    return difference


@pytest.mark.parametrize("attn_implementation", [None, "eager"], ids=["default", "eager"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_equals_the_literal_formula(family: str, attn_implementation: str | None) -> None:
    peft_model, inputs = adapted(family, attn_implementation)
    ours = tiny.output(peft_model, inputs)

    model, inputs = tiny.build(family, "eager")
    literal = tiny.randomise(get_peft_model(model, CoeffConfig()).eval())
    with literal_mixing(literal) as mixed, literal.disable_adapter():
        expected = tiny.output(literal, inputs)
        plain_calls = mixed[0]
    with literal.disable_adapter():
        plain = tiny.output(literal, inputs)

    layers = sum(isinstance(m, CoeffLayer) for m in literal.modules())
    assert plain_calls >= layers  # the literal reference really mixed, in every layer
    assert attended((expected - plain).abs(), inputs).max() > 1e-4
    torch.testing.assert_close(
        attended(ours - expected, inputs), torch.zeros_like(attended(ours, inputs)), atol=3e-6, rtol=0.0
    )


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_start_on_off_on_unload(family: str) -> None:
    model, inputs = tiny.build(family)
    keys = list(model.state_dict())
    base = tiny.output(model.requires_grad_(False), inputs)  # torch picks kernels by what needs gradients
    peft_model = get_peft_model(model, CoeffConfig()).eval()
    torch.testing.assert_close(tiny.output(peft_model, inputs), base, atol=2e-6, rtol=1e-5)
    tiny.randomise(peft_model)
    on = tiny.output(peft_model, inputs)
    with peft_model.disable_adapter():
        assert torch.equal(tiny.output(peft_model, inputs), base)
    assert torch.equal(tiny.output(peft_model, inputs), on)
    unloaded = peft_model.unload()
    assert torch.equal(tiny.output(unloaded, inputs), base)
    assert list(unloaded.state_dict()) == keys
    assert not any(isinstance(m, CoeffLayer) for m in unloaded.modules())
    assert not unloaded._forward_hooks
    assert not unloaded._forward_pre_hooks
    bound = [m for m in unloaded.modules() if getattr(find_binder(m), "name", None) == "transformers"]
    assert bound
    assert all(m.config is not None for m in bound)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gradients_reach_every_coefficient(family: str) -> None:
    with torch.enable_grad():
        peft_model, inputs = adapted(family, coeff_dropout=0.0)
        out = tiny.output(peft_model.train(), inputs)
        out.backward(torch.randn_like(out))
    for name, parameter in peft_model.named_parameters():
        if "coeff_delta" in name:
            assert parameter.grad is not None, name
            assert (parameter.grad != 0).float().mean() > 0.7, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_with_and_without_cache(family: str, cache: str) -> None:
    peft_model, inputs = adapted(family)
    kwargs = {
        "max_new_tokens": 6,
        "min_new_tokens": 6,
        "do_sample": False,
        "pad_token_id": 0,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    without = peft_model.generate(**inputs, use_cache=False, **kwargs)
    with_cache = peft_model.generate(**inputs, cache_implementation=cache, **kwargs)
    assert torch.equal(without.sequences, with_cache.sequences)
    torch.testing.assert_close(torch.stack(without.logits), torch.stack(with_cache.logits), atol=3e-6, rtol=1e-5)
    with peft_model.disable_adapter():
        off = peft_model.generate(**inputs, use_cache=False, **kwargs)
    assert (without.logits[0] - off.logits[0]).abs().max() > 1e-4


@pytest.mark.parametrize("family", DECODERS)
def test_left_padded_batch_equals_single_run(family: str) -> None:
    peft_model, inputs = adapted(family)
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    batch = tiny.output(peft_model, inputs, **({} if family == "opt" else {"position_ids": positions}))
    single = tiny.output(peft_model, {"input_ids": inputs["input_ids"][:1, 2:]})
    torch.testing.assert_close(batch[:1, 2:], single, atol=3e-6, rtol=1e-5)
    assert batch.isfinite().all()


@pytest.mark.parametrize("family", ["bart", "t5", "whisper"])
def test_beam_search_of_encoder_decoders(family: str) -> None:
    peft_model, inputs = adapted(family)
    inputs = {k: v for k, v in inputs.items() if k != "decoder_input_ids"}
    kwargs = {"max_new_tokens": 5, "min_new_tokens": 5, "num_beams": 3, "do_sample": False}
    assert torch.equal(
        peft_model.generate(**inputs, use_cache=True, **kwargs),
        peft_model.generate(**inputs, use_cache=False, **kwargs),
    )


def test_bart_has_self_and_cross_attention_in_every_layer() -> None:
    peft_model, _ = adapted("bart")
    names = [name for name, m in peft_model.named_modules() if isinstance(m, CoeffLayer)]
    assert sum("encoder_attn" in name for name in names) == 2
    assert len(names) == 6


def test_vit_base_shape_has_the_papers_count() -> None:
    config = tf.ViTConfig(hidden_size=48, num_hidden_layers=12, num_attention_heads=12, intermediate_size=8)
    assert get_peft_model(tf.ViTModel(config), CoeffConfig()).get_nb_trainable_parameters()[0] == 1728


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    grads = []
    with torch.enable_grad():
        for checkpointing in (False, True):
            peft_model, inputs = adapted("llama", coeff_dropout=0.0)
            peft_model.train()
            if checkpointing:
                peft_model.gradient_checkpointing_enable({"use_reentrant": reentrant})
                peft_model.enable_input_require_grads()
            out = tiny.output(peft_model, inputs, use_cache=False)
            out.backward(torch.ones_like(out).cos())
            grads.append([p.grad for n, p in peft_model.named_parameters() if "coeff_delta" in n])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("family", ["bert", "vit", "llama"])
def test_compile_keeps_one_graph(family: str) -> None:
    torch._dynamo.reset()
    peft_model, inputs = adapted(family)
    eager = tiny.output(peft_model, inputs)
    compiled = torch.compile(peft_model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(tiny.output(compiled, inputs), eager, atol=2e-6, rtol=1e-5)


def test_compiled_training_step_gives_the_same_gradients() -> None:
    torch._dynamo.reset()
    grads = []
    with torch.enable_grad():
        for compiled in (False, True):
            peft_model, inputs = adapted("vit", coeff_dropout=0.0)
            run = torch.compile(peft_model.train(), fullgraph=True, backend="aot_eager") if compiled else peft_model
            out = tiny.output(run, inputs)
            out.backward(torch.ones_like(out).cos())
            grads.append([p.grad for n, p in peft_model.named_parameters() if "coeff_delta" in n])
    for eager, graph in zip(*grads, strict=True):
        torch.testing.assert_close(eager, graph, atol=2e-6, rtol=1e-4)


def test_autocast_bfloat16_is_close_to_float32() -> None:
    peft_model, inputs = adapted("vit")
    full = tiny.output(peft_model, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = tiny.output(peft_model, inputs)
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0.05)


def test_deepcopy_and_pickle_are_independent_and_equal() -> None:
    peft_model, inputs = adapted("llama")
    expected = tiny.output(peft_model, inputs)
    copies = [copy.deepcopy(peft_model), pickle.loads(pickle.dumps(peft_model))]
    tiny.randomise(peft_model, seed=5)
    for twin in copies:
        assert torch.equal(tiny.output(twin, inputs), expected)
        with twin.disable_adapter():
            off = tiny.output(twin, inputs)
        with peft_model.disable_adapter():
            assert torch.equal(off, tiny.output(peft_model, inputs))


def test_set_attn_implementation_afterwards_is_followed() -> None:
    peft_model, inputs = adapted("bert")
    on = tiny.output(peft_model, inputs)
    peft_model.get_base_model().set_attn_implementation("eager")
    torch.testing.assert_close(tiny.output(peft_model, inputs), on, atol=2e-6, rtol=1e-5)
    out = peft_model(**inputs, output_attentions=True)
    assert len(out.attentions) == 2
    assert out.attentions[0].min() < 0  # mixed maps leave [0, 1]


def test_set_attn_implementation_afterwards_to_one_that_is_not_served_raises() -> None:
    peft_model, inputs = adapted("bert")
    tiny.output(peft_model, inputs)
    peft_model.get_base_model().set_attn_implementation("flex_attention")
    with pytest.raises(UnsupportedModelError, match="'sdpa' or 'eager' to get coefficients; it runs with 'flex_att"):
        tiny.output(peft_model, inputs)


# Refusals


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: tf.DebertaV2Model(tf.DebertaV2Config(**tiny.TEXT)), "DisentangledSelfAttention"),
        (lambda: tf.MPNetModel(tf.MPNetConfig(**tiny.TEXT)), "MPNetSelfAttention"),
        (lambda: tf.BloomModel(tf.BloomConfig(vocab_size=61, hidden_size=24, n_layer=2, n_head=3)), "BloomAttention"),
        (lambda: nn.Linear(3, 3), "none found"),
    ],
    ids=["deberta", "mpnet", "bloom", "linear"],
)
def test_models_outside_the_interface_raise(build: Any, named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        get_peft_model(build(), CoeffConfig())


def test_flash_attention_raises_at_attach() -> None:
    model, _ = tiny.build("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="'flash_attention_2'"):
        get_peft_model(model, CoeffConfig())
    assert not any(isinstance(m, CoeffLayer) for m in model.modules())


def test_sparse_attention_keywords_raise() -> None:
    peft_model, inputs = adapted("llama")
    with pytest.raises(UnsupportedModelError, match=r"\['indices'\]"):
        peft_model(**inputs, indices=torch.zeros(1))


def test_other_head_count_than_the_query_raises() -> None:
    peft_model, inputs = adapted("bert")
    layer = next(m for m in peft_model.modules() if isinstance(m, CoeffLayer))
    layer.num_heads = 5
    layer.coeff_delta["default"] = nn.Parameter(torch.zeros(5, 5))
    with pytest.raises(AdapterMismatchError, match="5 heads.* 3 heads"):
        peft_model(**inputs)


def test_part_of_the_model_that_does_not_run_raises() -> None:
    peft_model, inputs = adapted("llava")
    text_only = {"input_ids": torch.tensor([[1, 9, 11]])}
    with pytest.raises(AdapterNotAppliedError, match=r"2 of 4 did not.*vision_tower"):
        peft_model(**text_only)
    peft_model(**inputs)
    peft_model(**text_only)  # checked once


def test_part_that_does_not_run_is_accepted_on_request() -> None:
    peft_model, _ = adapted("llava", allow_unused=True)
    peft_model(input_ids=torch.tensor([[1, 9, 11]]))


def test_layerdrop_in_training_is_no_false_alarm() -> None:
    config = tf.BartConfig(
        vocab_size=61,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        encoder_ffn_dim=20,
        decoder_ffn_dim=20,
        encoder_layerdrop=0.9,
        decoder_layerdrop=0.9,
    )
    peft_model = get_peft_model(tf.BartModel(config), CoeffConfig()).train()
    peft_model(input_ids=torch.tensor([[4, 5, 6]]))
