"""Ways to generate: at the identity as the base model, and equal with and without a cache when coefficients mix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from coeff_tuning import CoeffConfig
from tests import tiny

FAMILIES = ("gpt2", "opt", "llama", "mistral", "qwen2", "gemma2", "gpt_neox", "phi3", "t5", "bart", "whisper")
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "num_return_sequences": 2, "top_k": 7},
}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def generate(model: Any, inputs: dict[str, Any], way: str, **kwargs: Any) -> Any:
    inputs = {key: value for key, value in inputs.items() if key != "decoder_input_ids"}
    torch.manual_seed(3)  # the same draws each time
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0, "output_logits": True}
    return model.generate(**inputs, **options, **WAYS[way], return_dict_in_generate=True, **kwargs)


def assert_same(out: Any, expected: Any) -> None:
    assert torch.equal(out.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(out.logits), torch.stack(expected.logits), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_identity_is_the_base_and_mixing_needs_no_cache(family: str, way: str) -> None:
    model, inputs = tiny.build(family)
    base = generate(model, inputs, way)
    peft_model: PeftModel = get_peft_model(model, CoeffConfig()).eval()
    for name, parameter in peft_model.named_parameters():
        if "coeff_delta" in name:
            parameter.fill_(1e-30)  # our own kernels run, not the shortcut for a known identity
    assert_same(generate(peft_model, inputs, way), base)
    tiny.randomise(peft_model)
    mixed = generate(peft_model, inputs, way)
    assert_same(generate(peft_model, inputs, way, use_cache=False), mixed)
    assert (mixed.logits[0] - base.logits[0]).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "gemma2", "gpt_neox", "phi3"])
def test_left_padding_changes_nothing(family: str) -> None:
    model, inputs = tiny.build(family)
    peft_model = tiny.randomise(get_peft_model(model, CoeffConfig()).eval())
    batch = generate(peft_model, inputs, "greedy")
    single = generate(
        peft_model, {"input_ids": inputs["input_ids"][:1, 2:], "attention_mask": torch.ones(1, 5).long()}, "greedy"
    )
    assert torch.equal(batch.sequences[:1, 2:], single.sequences)
    torch.testing.assert_close(batch.logits[0][:1], single.logits[0], atol=5e-6, rtol=1e-5)
