"""A thousand saved adapters in one model: each sample of a batch under its own, beside LoRA, or under none.

    python examples/many_adapters.py

The model is a tiny random ViT so that the example runs anywhere in seconds; put any transformers model in its place. On
one CPU core it prints (in one line)

    loaded 1000 adapters in 1.1 s; one batch of 1000 images, each under its own: 0.2 s; 'user7' alone differs by 1e-07,
    'user7' with LoRA by 6e-08
"""

import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from coeff_tuning import CoeffConfig, load_adapters

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
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)  # stands for a trained one
    model = get_peft_model(vit(), lora, adapter_name="style")
    with tempfile.TemporaryDirectory() as root:
        folders = write_adapters(Path(root), 1000)
        start = time.perf_counter()
        load_adapters(model, folders)
        loaded = time.perf_counter() - start

    images = torch.randn(1000, 3, 32, 32)
    start = time.perf_counter()
    mixed = model(images, adapter_names=list(folders)).pooler_output
    ran = time.perf_counter() - start
    alone = model(images[7:8], adapter_names=["user7"]).pooler_output

    some = model(images[:4], adapter_names=[("style", "user7"), "style", "user7", "__base__"]).pooler_output
    model.set_adapter("user7")  # LoRA's adapter stays active
    both = model(images[:1]).pooler_output
    print(
        f"loaded {len(folders)} adapters in {loaded:.1f} s; one batch of 1000 images, each under its own: {ran:.1f} s; "
        f"'user7' alone differs by {(mixed[7:8] - alone).abs().max():.0e}, "
        f"'user7' with LoRA by {(some[:1] - both).abs().max():.0e}"
    )


if __name__ == "__main__":
    main()
