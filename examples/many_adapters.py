"""Each sample of a batch under its own adapter, or under none; and a thousand adapters, loaded at once.

    python examples/many_adapters.py

The models are tiny random ViTs so that the example runs anywhere in seconds; put any transformers model in their place.
On one CPU core it prints

    four behaviours in one batch; 'dogs' alone differs by 6e-08
    LoRA and coefficients, sample by sample; both alone differ by 3e-08
    loaded 1000 adapters in 1.1 s
    1000 images under 1000 adapters in one batch: 0.1 s
    'user7' alone differs by 6e-08
"""

import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from coeff_tuning import CoeffConfig, add_coeff, load_adapters

START = CoeffConfig(init="random", init_scale=0.3)  # stands for a trained adapter


def vit() -> ViTModel:
    torch.manual_seed(0)
    return ViTModel(
        ViTConfig(hidden_size=48, num_hidden_layers=4, num_attention_heads=12, intermediate_size=64, image_size=32)
    )


def write_adapters(root: Path, count: int) -> dict[str, Path]:
    """Folders of `count` saved adapters, by name."""
    get_peft_model(vit(), START).save_pretrained(root / "user0")
    config, tensors = root / "user0" / "adapter_config.json", load_file(root / "user0" / "adapter_model.safetensors")
    for number in range(1, count):
        folder = root / f"user{number}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(config.read_text())
        save_file({k: 0.3 * torch.randn_like(v) for k, v in tensors.items()}, folder / "adapter_model.safetensors")
    return {f"user{number}": root / f"user{number}" for number in range(count)}


@torch.no_grad()
def main() -> None:
    model = get_peft_model(vit(), START, adapter_name="cats").eval()
    model.add_adapter("dogs", START)
    model.add_weighted_adapter(["cats", "dogs"], [0.5, 0.5], "between")
    images = torch.randn(1000, 3, 32, 32)
    mixed = model(images[:4], adapter_names=["cats", "dogs", "between", "__base__"]).pooler_output
    model.set_adapter("dogs")
    single = model(images[1:2]).pooler_output
    print(f"four behaviours in one batch; 'dogs' alone differs by {(mixed[1:2] - single).abs().max():.0e}")

    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    both = add_coeff(get_peft_model(vit(), lora, adapter_name="style"), START, "cats").eval()
    mixed = both(images[:3], adapter_names=[("style", "cats"), "style", "cats"]).pooler_output
    single = both(images[:1]).pooler_output
    print(f"LoRA and coefficients, sample by sample; both alone differ by {(mixed[:1] - single).abs().max():.0e}")

    with tempfile.TemporaryDirectory() as root:
        folders = write_adapters(Path(root), 1000)
        start = time.perf_counter()
        served = load_adapters(vit(), folders)
        print(f"loaded {len(served.peft_config)} adapters in {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    mixed = served(images, adapter_names=list(folders)).pooler_output
    print(f"1000 images under 1000 adapters in one batch: {time.perf_counter() - start:.1f} s")
    served.set_adapter("user7")
    single = served(images[7:8]).pooler_output
    print(f"'user7' alone differs by {(mixed[7:8] - single).abs().max():.0e}")


if __name__ == "__main__":
    main()
