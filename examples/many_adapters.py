"""Each sample of a batch under its own adapter, or under none.

    python examples/many_adapters.py

The model is a tiny random ViT so that the example runs anywhere in seconds; put any transformers model in its place.
"""

import torch
from peft import get_peft_model
from transformers import ViTConfig, ViTModel

from coeff_tuning import CoeffConfig


def main() -> None:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32)
    start = CoeffConfig(init="random", init_scale=0.3)  # stands for three trained adapters
    model = get_peft_model(ViTModel(config), start, adapter_name="cats").eval()
    model.add_adapter("dogs", start)
    model.add_weighted_adapter(["cats", "dogs"], [0.5, 0.5], "between")

    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        mixed = model(images, adapter_names=["cats", "dogs", "between", "__base__"]).pooler_output
        model.set_adapter("dogs")
        single = model(images[1:2]).pooler_output
    print(f"one batch, four behaviours; 'dogs' alone differs by {(mixed[1:2] - single).abs().max():.0e}")


if __name__ == "__main__":
    main()
