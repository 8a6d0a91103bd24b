"""Real pretrained weights from the package index. Run with `make network`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from coeff_tuning import CoeffConfig
from coeff_tuning.recipes.assets import resolve_model

pytestmark = [pytest.mark.network, pytest.mark.timeout(1200)]
PROMPTS = ["The capital of France is", "Once upon a time, in a small village by the sea,", "def fibonacci(n):"]


@pytest.mark.parametrize(("name", "count"), [("minilm", 864), ("dinov2-small", 432), ("smollm2-135m", 2430)])
def test_coefficient_counts(name: str, count: int) -> None:
    model = AutoModel.from_pretrained(resolve_model(name), dtype=torch.float32)
    assert get_peft_model(model, CoeffConfig()).get_nb_trainable_parameters()[0] == count


def test_smollm2_generates_as_before_and_trains(tmp_path: Path) -> None:
    folder = resolve_model("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(model: torch.nn.Module, prompts: list[str], **kwargs: object) -> list[list[int]]:
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        out = model.generate(**batch, max_new_tokens=20, min_new_tokens=20, do_sample=False, **kwargs)
        return out[:, -20:].tolist()

    base = generate(model, PROMPTS)
    peft_model = get_peft_model(model, CoeffConfig(task_type="CAUSAL_LM")).eval()
    assert generate(peft_model, PROMPTS) == base

    batch = tokenizer(["Mixed attention maps let outputs leave the hull of the values."], return_tensors="pt")
    optimizer = torch.optim.AdamW([p for p in peft_model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = peft_model.train()(**batch, labels=batch["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    peft_model.eval()

    batched = generate(peft_model, PROMPTS)
    assert batched != base
    assert generate(peft_model, PROMPTS, use_cache=False) == batched
    assert [generate(peft_model, [prompt])[0] for prompt in PROMPTS] == batched
    with peft_model.disable_adapter():
        assert generate(peft_model, PROMPTS) == base

    peft_model.save_pretrained(tmp_path)
    fresh = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert generate(PeftModel.from_pretrained(fresh, tmp_path), PROMPTS) == batched
