"""Coefficients beside every PEFT method: both train, both are saved and loaded, off is the base; misuse raises."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from coeff_tuning import CoeffConfig, add_coeff, load_coeff
from coeff_tuning.errors import CombinationError
from tests import tiny

# What PEFT's methods themselves warn of: no CUDA for BOFT, norms for LN tuning, sparse tensors for SHiRA, pruned ranks.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.tuners.boft"),
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]

QV = ["query", "value"]
KINDS: dict[str, tuple[type, dict[str, Any]]] = {
    "lora": (LoraConfig, {"r": 2, "target_modules": QV}),
    "rslora": (LoraConfig, {"r": 2, "target_modules": QV, "use_rslora": True}),
    "pissa": (LoraConfig, {"r": 2, "target_modules": QV, "init_lora_weights": "pissa"}),
    "dora": (LoraConfig, {"r": 2, "target_modules": QV, "use_dora": True}),
    "lora-all-linear": (LoraConfig, {"r": 2, "target_modules": "all-linear"}),
    "lora-embedding": (LoraConfig, {"r": 2, "target_modules": ["key", "dense", "word_embeddings"]}),
    "adalora": (peft.AdaLoraConfig, {"target_r": 2, "init_r": 3, "total_step": 10, "target_modules": QV}),
    "ia3": (peft.IA3Config, {"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]}),
    "loha": (peft.LoHaConfig, {"r": 2, "target_modules": QV}),
    "lokr": (peft.LoKrConfig, {"r": 2, "target_modules": QV}),
    "oft": (peft.OFTConfig, {"oft_block_size": 4, "target_modules": QV}),
    "boft": (peft.BOFTConfig, {"boft_block_size": 4, "target_modules": QV}),
    "vera": (peft.VeraConfig, {"r": 4, "target_modules": QV}),
    "randlora": (peft.RandLoraConfig, {"r": 2, "target_modules": QV}),
    "hra": (peft.HRAConfig, {"r": 2, "target_modules": QV}),
    "fourierft": (peft.FourierFTConfig, {"n_frequency": 20, "target_modules": QV}),
    "ln-tuning": (peft.LNTuningConfig, {"target_modules": ["LayerNorm"]}),
    "road": (peft.RoadConfig, {"group_size": 8, "target_modules": QV}),
    "vblora": (peft.VBLoRAConfig, {"r": 2, "num_vectors": 8, "vector_length": 4, "target_modules": QV}),
    "miss": (peft.MissConfig, {"r": 2, "target_modules": QV}),
    "shira": (peft.ShiraConfig, {"r": 1, "target_modules": QV}),
    "c3a": (peft.C3AConfig, {"block_size": 4, "target_modules": QV}),
}
METHODS = pytest.mark.parametrize("method", KINDS)
PROMPTS = {
    "prompt": (peft.PromptTuningConfig, {"num_virtual_tokens": 3}),
    "p-tuning": (peft.PromptEncoderConfig, {"num_virtual_tokens": 3, "encoder_hidden_size": 8}),
    "prefix": (peft.PrefixTuningConfig, {"num_virtual_tokens": 3}),
}
INPUTS = {"input_ids": torch.arange(3, 17).reshape(2, 7), "labels": torch.tensor([1, 4])}


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return tf.BertForSequenceClassification(tf.BertConfig(**tiny.TEXT, num_labels=5)).eval()


def config(method: str) -> Any:
    kind, settings = (KINDS | PROMPTS)[method]
    return kind(task_type="SEQ_CLS", **settings)


@torch.no_grad()
def run(model: nn.Module) -> torch.Tensor:
    return model(**INPUTS).logits


def train(model: PeftModel) -> PeftModel:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for step in range(3):
        optimizer.zero_grad()
        model.train()(**INPUTS).loss.backward()
        optimizer.step()
        if isinstance(model.base_model, peft.AdaLoraModel):
            model.base_model.update_and_allocate(step)
    return model.eval()


@cache
def base_output() -> torch.Tensor:
    return run(classifier())


# Life cycle


@METHODS
def test_both_methods_train_and_nothing_else(method: str) -> None:
    other = get_peft_model(classifier(), config(method))
    model = add_coeff(other, CoeffConfig(coeff_dropout=0.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with model.disable_adapter():
        start = run(model.eval())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    train(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trainable
    assert sum("coeff_delta" in name for name in moved) == 2
    assert any("classifier.modules_to_save.default" in name for name in moved)
    assert any("coeff_delta" not in name and "classifier" not in name for name in moved)
    on = run(model)
    with model.disable_adapter():
        assert torch.equal(run(model), start)
    assert torch.equal(start, base_output()) or method == "pissa"  # PiSSA moves a part of the weights into its adapter
    assert not torch.allclose(on, start, atol=1e-3)
    assert torch.equal(run(model), on)


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """For each method: how far the logits are off that a new process gets from the saved combination."""
    root = tmp_path_factory.mktemp("combinations")
    classifier().save_pretrained(root / "base")
    for method in KINDS:
        model = train(add_coeff(get_peft_model(classifier(), config(method)), CoeffConfig()))
        model.save_pretrained(root / method)
        torch.save(run(model), root / f"{method}.pt")
    out = subprocess.run([sys.executable, "-c", RELOAD, str(root)], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.strip().splitlines()[-1])


RELOAD = """
import json, pathlib, sys, torch, transformers
from coeff_tuning import load_coeff
root = pathlib.Path(sys.argv[1])
off = {}
for file in root.glob("*.pt"):
    base = transformers.BertForSequenceClassification.from_pretrained(root / "base")
    model = load_coeff(base, root / file.stem)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 17).reshape(2, 7)).logits
    off[file.stem] = (logits - torch.load(file)).abs().max().item()
print(json.dumps(off))
"""


@METHODS
def test_a_new_process_gives_the_same_logits(method: str, reloaded: dict[str, float]) -> None:
    assert reloaded[method] == 0.0


@pytest.mark.parametrize("method", ["lora", "adalora", "vera", "randlora"])
def test_a_second_adapter_of_the_other_method(method: str, tmp_path: Path) -> None:
    model = train(add_coeff(get_peft_model(classifier(), config(method)), CoeffConfig()))
    on = run(model)
    model.save_pretrained(tmp_path)
    other = train(get_peft_model(classifier(), config(method)))
    other.save_pretrained(tmp_path / "other")
    if method == "adalora":  # PEFT: one trainable AdaLoRA adapter at most
        model.peft_config["default"].inference_mode = True
    model.load_adapter(tmp_path / "other", "second")
    assert torch.equal(run(model), on)
    model.set_adapter("second")
    assert not torch.allclose(run(model), on, atol=1e-3)
    for name in ("second", "coeff"):
        with pytest.raises(ValueError, match=f"{name!r} too"):
            model.add_adapter(name, config(method))
    model.delete_adapter("coeff")
    assert torch.equal(run(model), run(other))


# Misuse


@METHODS
def test_coefficients_after_get_peft_model_raise_and_change_nothing(method: str) -> None:
    model = get_peft_model(classifier(), config(method)).eval()
    before = run(model)
    with pytest.warns(UserWarning), pytest.raises(CombinationError, match="add_coeff"):
        get_peft_model(model, CoeffConfig(task_type="SEQ_CLS"), adapter_name="coeff")
    assert torch.equal(run(model), before)
    assert list(model.peft_config) == ["default"]


@METHODS
def test_coefficients_first_raise_at_the_next_pass(method: str) -> None:
    model = get_peft_model(classifier(), CoeffConfig(task_type="SEQ_CLS"))
    by_peft = {"adalora": (ValueError, "only 1 trainable"), "vera": (AttributeError, "CoeffConfig")}
    by_peft["randlora"] = by_peft["vera"]
    error, message = by_peft.get(method, (CombinationError, "add_coeff"))
    with pytest.warns(UserWarning), pytest.raises(error, match=message):
        get_peft_model(model, config(method), adapter_name="other")(**INPUTS)


@pytest.mark.parametrize("method", PROMPTS)
def test_prompt_learning_is_refused(method: str) -> None:
    model = get_peft_model(classifier(), config(method)).eval()
    kind = model.peft_config["default"].peft_type.value
    with pytest.raises(CombinationError, match=rf"adapts layers.*it has \['{kind}'\]"):
        add_coeff(model, CoeffConfig())
    assert not any("coeff" in name for name, _ in model.named_parameters())


# Ways to run


def decoder(**kwargs: Any) -> tuple[PeftModel, dict[str, Any]]:
    model, inputs = tiny.build("llama")
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    combined = add_coeff(get_peft_model(model, lora), CoeffConfig(coeff_dropout=0.0, init="random", init_scale=0.3))
    return combined, {**inputs, "labels": inputs["input_ids"]}


def gradients(model: nn.Module, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    assert any("coeff_delta" in name for name in found)
    assert any("lora_" in name for name in found)
    assert all(grad.abs().max() > 0 for grad in found.values())
    return found


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    model, inputs = decoder()
    expected = gradients(model.train(), inputs)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    calls = []
    layer = next(module for name, module in model.named_modules() if name.endswith("self_attn"))
    layer.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(gradients(model, inputs), expected)
    assert len(calls) == 2  # forward, and again in backward


def test_compiled_combination() -> None:
    model, inputs = decoder()
    expected, on = gradients(model, inputs), run_decoder(model, inputs)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, inputs), {f"_orig_mod.{k}": v for k, v in expected.items()})
    torch.testing.assert_close(run_decoder(compiled, inputs), on)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_base(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    wide = {**tiny.DECODER, "hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    tf.LlamaForCausalLM(tf.LlamaConfig(**wide)).save_pretrained(tmp_path / "base")

    def quantised() -> nn.Module:
        quantisation = tf.BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
        return tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantisation).eval()

    inputs = {"input_ids": torch.arange(3, 17).reshape(2, 7)}
    base = run_decoder(quantised(), inputs)
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = add_coeff(get_peft_model(quantised(), lora), CoeffConfig(coeff_dropout=0.0))
    gradients(model, {**inputs, "labels": inputs["input_ids"]})
    tiny.randomise(model)
    on = run_decoder(model.eval(), inputs)
    model.save_pretrained(tmp_path / "both")
    assert torch.equal(run_decoder(load_coeff(quantised(), tmp_path / "both"), inputs), on)
    with model.disable_adapter():
        assert torch.equal(run_decoder(model, inputs), base)
    model.delete_adapter("coeff")
    assert not torch.allclose(run_decoder(model, inputs), on, atol=1e-3)


@torch.no_grad()
def run_decoder(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    return model(**inputs).logits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    model, inputs = decoder()
    exact, expected = run_decoder(model, inputs), gradients(model, inputs)
    with torch.autocast("cpu", dtype):
        logits = run_decoder(model, inputs)
        found = gradients(model, inputs)
    assert logits.dtype == dtype
    assert 0 < (logits - exact).abs().max() < 0.05 * exact.abs().max()
    for name, grad in found.items():
        assert grad.dtype == torch.float32
        assert (grad - expected[name]).abs().max() < 0.05 * expected[name].abs().max(), name
