"""LoRA and coefficients in one model: train both, save both, load both.

    python examples/lora_and_coeff.py

The model is a tiny random BERT so that the example runs anywhere in seconds; put any transformers model in its place.
"""

import tempfile

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from coeff_tuning import CoeffConfig, add_coeff, load_coeff


def base_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=3)
    return BertForSequenceClassification(config)


def main() -> None:
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    model = add_coeff(get_peft_model(base_model(), lora), CoeffConfig())  # LoRA first: it owns the head

    batch = {"input_ids": torch.randint(0, 1000, (16, 12)), "labels": torch.randint(0, 3, (16,))}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    coefficients = [p for name, p in named if "coeff_delta" in name]
    others = [p for name, p in named if "coeff_delta" not in name]
    optimizer = torch.optim.AdamW([{"params": coefficients, "lr": 2e-2}, {"params": others, "lr": 1e-3}])
    for _ in range(20):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)  # LoRA in the folder, coefficients in folder/coeff
        loaded = load_coeff(base_model(), folder)
        difference = (loaded(**batch).logits - model(**batch).logits).abs().max().item()
    counts = [sum(p.numel() for p in group) for group in (coefficients, others)]
    print(f"{counts[0]} coefficients, {counts[1]:,} LoRA and head numbers, difference after reloading {difference}")


if __name__ == "__main__":
    main()
