"""`adapter_names=[...]` where coefficients stand beside another method: each sample as if it ran alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from coeff_tuning import CoeffConfig, CoeffLayer, add_coeff, load_coeff
from coeff_tuning.errors import CombinationError
from tests import tiny

TARGETS = {
    "bert": ["query", "value"],
    "vit": ["query", "v_proj", "value", "q_proj"],
    "llama": ["q_proj", "v_proj"],
    "bart": ["q_proj", "v_proj"],
}
TASKS = {"bert": "SEQ_CLS", "llama": "CAUSAL_LM", "bart": "SEQ_2_SEQ_LM"}
ENTRIES: list[Any] = [("lora_a", "coeff_a"), "lora_b", "coeff_b", "__base__", ("coeff_b", "lora_a"), ("coeff_a",)]


def base(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "bert":
        model: nn.Module = tf.BertForSequenceClassification(tf.BertConfig(**tiny.TEXT, num_labels=5))
    elif family == "vit":
        model = tf.ViTForImageClassification(tf.ViTConfig(**tiny.VISION, num_labels=5))
    else:
        model, _ = tiny.build(family)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # large enough that every adapter changes the output
            parameter.data.mul_(6)
    return model.eval()


def inputs(family: str) -> dict[str, Any]:
    torch.manual_seed(5)
    count = len(ENTRIES)
    if family == "vit":
        return {"pixel_values": torch.randn(count, 3, 14, 14)}
    ids = torch.randint(3, 61, (count, 7))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def other_config(family: str, **settings: Any) -> Any:
    head = {"modules_to_save": ["classifier"]} if family == "vit" else {}
    if settings.pop("method", "lora") == "road":
        return peft.RoadConfig(target_modules=TARGETS[family], group_size=8, init_weights=False, **head)
    return LoraConfig(
        task_type=TASKS.get(family), r=2, target_modules=TARGETS[family], init_lora_weights=False, **head, **settings
    )


def combined(family: str, **settings: Any) -> PeftModel:
    """A model with the adapters lora_a, lora_b, coeff_a and coeff_b, heads too, all different from zero."""
    torch.manual_seed(1)
    model = get_peft_model(base(family), other_config(family, **settings), adapter_name="lora_a")
    model.add_adapter("lora_b", other_config(family, **settings))
    for name in ("coeff_a", "coeff_b"):
        add_coeff(model, CoeffConfig(init="random", init_scale=0.5), name)
    for name, parameter in model.named_parameters():
        if "classifier.modules_to_save" in name:
            parameter.data.normal_()
    return model.eval()


def alone(family: str, entry: Any, root: Path) -> PeftModel | nn.Module:
    """A fresh model that holds what an entry names and nothing else, from the files."""
    names = [entry] if isinstance(entry, str) else list(entry)
    model: Any = base(family)
    for name in sorted(names, reverse=True):  # LoRA first
        if name.startswith("lora"):
            model = PeftModel.from_pretrained(model, root / name)
        elif name.startswith("coeff"):
            model = load_coeff(model, root / name)
    return model.eval()


def scrub(model: nn.Module) -> None:
    """What must hold after a mixed batch, also one that raised: no trace of it."""
    assert all(m.sample_adapters is None and m.sample_coeff is None for m in model.modules() if type(m) is CoeffLayer)
    # PEFT's own, left on layers after an error, would tell every later batch of the names of this one.
    hooks = [hook for m in model.modules() for hook in m._forward_pre_hooks.values()]
    assert {hook.__name__ for hook in hooks} <= {"_before_pass"}


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 3e-6 * expected.abs().max())


@torch.no_grad()
def run(model: nn.Module, batch: dict[str, Any], **kwargs: Any) -> torch.Tensor:
    return model(**batch, **kwargs).logits


@pytest.mark.parametrize(("family", "method"), [("bert", "lora"), ("vit", "lora"), ("llama", "lora"), ("vit", "road")])
def test_each_sample_as_if_alone(family: str, method: str, tmp_path: Path) -> None:
    model, batch = combined(family, method=method), inputs(family)
    before = run(model, batch)
    model.save_pretrained(tmp_path)
    mixed = run(model, batch, adapter_names=ENTRIES)
    singles = [run(alone(family, entry, tmp_path), batch) for entry in ENTRIES]
    for row, single in enumerate(singles):
        assert close(mixed[row], single[row]), ENTRIES[row]
    for row in range(len(ENTRIES)):  # no two entries do the same to one sample
        others = [single[0] for single in singles[:row]]
        assert all(not torch.allclose(singles[row][0], other, atol=1e-3) for other in others)
    scrub(model)
    assert torch.equal(run(model, batch), before)


GENERATION = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams-returned": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 0, "temperature": 2.0},
    "sampling-returned": {"do_sample": True, "top_k": 0, "num_return_sequences": 3},
}


@pytest.mark.parametrize("kind", GENERATION)
@pytest.mark.parametrize("family", ["llama", "bart"])
def test_generation(family: str, kind: str, tmp_path: Path) -> None:
    model, batch = combined(family), inputs(family)
    model.save_pretrained(tmp_path)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0, **GENERATION[kind]}
    copies = settings.get("num_return_sequences", 1)

    def write(writer: Any, **kwargs: Any) -> torch.Tensor:
        torch.manual_seed(7)  # the draws of a row do not depend on the other rows
        return writer.generate(**batch, **settings, **kwargs).reshape(len(ENTRIES), copies, -1)

    mixed = write(model, adapter_names=ENTRIES)
    singles = [write(alone(family, entry, tmp_path)) for entry in ENTRIES]
    for row, single in enumerate(singles):
        assert torch.equal(mixed[row], single[row]), ENTRIES[row]
    assert any(not torch.equal(single, singles[0]) for single in singles)
    scrub(model)


def test_beams_from_a_generation_config(tmp_path: Path) -> None:
    model, batch = combined("llama"), inputs("llama")
    config = tf.GenerationConfig(max_new_tokens=4, min_new_tokens=4, num_beams=2, pad_token_id=0)
    in_config = model.generate(**batch, generation_config=config, adapter_names=ENTRIES)
    as_keywords = model.generate(
        **batch, max_new_tokens=4, min_new_tokens=4, num_beams=2, pad_token_id=0, adapter_names=ENTRIES
    )
    assert torch.equal(in_config, as_keywords)


def test_an_adapter_without_a_head_gets_the_head_of_the_base(tmp_path: Path) -> None:
    model = combined("vit")
    bare = LoraConfig(r=2, target_modules=TARGETS["vit"], init_lora_weights=False)
    model.add_adapter("lora_bare", bare)
    model.save_pretrained(tmp_path)
    batch = {name: x[:2] for name, x in inputs("vit").items()}
    for active in ("lora_bare", "lora_a"):  # whichever is active
        model.set_adapter(active)
        mixed = run(model.eval(), batch, adapter_names=["lora_bare", ("lora_a", "coeff_b")])
        for row, entry in enumerate(["lora_bare", ("lora_a", "coeff_b")]):
            single = run(alone("vit", entry, tmp_path), batch)
            assert close(mixed[row], single[row])


# Methods that run a whole batch under one adapter


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=TARGETS["bert"], use_dora=True, init_lora_weights=False),
        peft.IA3Config(target_modules=["key"], feedforward_modules=[], init_ia3_weights=False),
        peft.AdaLoraConfig(target_r=2, init_r=3, total_step=10, target_modules=TARGETS["bert"]),
        peft.OFTConfig(oft_block_size=4, target_modules=TARGETS["bert"], init_weights=False),
    ],
    ids=["dora", "ia3", "adalora", "oft"],
)
def test_one_adapter_of_the_other_method_for_all_samples(config: Any) -> None:
    model = get_peft_model(base("bert"), config, adapter_name="other")
    for name, scale in (("coeff_a", 0.5), ("coeff_b", 0.7)):
        add_coeff(model, CoeffConfig(init="random", init_scale=scale), name)
    batch = {name: x[:3] for name, x in inputs("bert").items()}
    mixed = run(model.eval(), batch, adapter_names=[("other", "coeff_b"), "other", ("other", "coeff_a")])
    for row, name in ((0, "coeff_b"), (2, "coeff_a")):
        model.set_adapter(name)
        single = run(model, batch)
        assert close(mixed[row], single[row])
    with pytest.raises(ValueError, match=r"DoRA is enabled|\['other'\] beside the coefficients of every"):
        run(model, batch, adapter_names=[("other", "coeff_b"), "coeff_b", "__base__"])
    scrub(model)
    assert torch.equal(run(model, batch), single)


# Misuse


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["nope"] * 6, ValueError, r"\['coeff_a', 'coeff_b'\] or \['lora_a', 'lora_b'\].*'nope'"),
        ([("lora_a", "nope")] * 6, ValueError, r"'coeff_b'.*\('lora_a', 'nope'\)"),
        ([("lora_a", "lora_b")] * 6, ValueError, r"\['lora_a', 'lora_b'\] of one"),
        ([("coeff_a", "lora_a", "coeff_b")] * 6, ValueError, r"\['coeff_a', 'coeff_b'\] of one"),
        ([("lora_a", "__base__")] * 6, ValueError, r"'__base__' alone.*\('lora_a', '__base__'\)"),
        ([()] * 6, TypeError, r"got \(\)"),
        ([None] * 6, TypeError, "got None"),
        ([("lora_a", 3)] * 6, TypeError, r"got \('lora_a', 3\)"),
        ("lora_a", TypeError, "'lora_a'"),
        (["lora_a"] * 5, ValueError, "5 names for a batch of 6"),
        ([("lora_b", "coeff_a")] * 12, ValueError, "12 names for a batch of 6"),
    ],
)
def test_misuse_raises_and_leaves_no_trace(names: Any, error: type[Exception], message: str) -> None:
    model, batch = combined("llama"), inputs("llama")
    before, mixed = run(model, batch), run(model, batch, adapter_names=ENTRIES)
    with pytest.raises(error, match=message):
        model(**batch, adapter_names=names)
    with pytest.raises(error, match=message):
        model.generate(**batch, max_new_tokens=2, pad_token_id=0, adapter_names=names)
    scrub(model)
    assert torch.equal(run(model, batch), before)
    assert torch.equal(run(model, batch, adapter_names=ENTRIES), mixed)


def test_an_error_within_the_model_leaves_no_trace() -> None:
    model, batch = combined("llama"), inputs("llama")
    before = run(model, batch)
    with pytest.raises(IndexError):
        model(input_ids=batch["input_ids"] + 1000, adapter_names=ENTRIES)
    scrub(model)
    assert torch.equal(run(model, batch), before)


def test_training_mode_raises() -> None:
    model, batch = combined("llama"), inputs("llama")
    with pytest.raises(ValueError, match=r"eval\(\)"):
        model.train()(**batch, adapter_names=ENTRIES)


def test_disabled_adapters_stay_off() -> None:
    model, batch = combined("llama"), inputs("llama")
    expected = run(base("llama"), batch)
    with model.disable_adapter():
        assert torch.equal(run(model, batch, adapter_names=ENTRIES), expected)


def test_activated_lora_is_refused() -> None:
    model, batch = combined("llama", alora_invocation_tokens=[5]), inputs("llama")
    with pytest.raises(CombinationError, match="aLoRA"):
        model(**batch, adapter_names=ENTRIES)
