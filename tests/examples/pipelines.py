"""A tiny random SDXL pipeline with its tokenizers, and photographs, all made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

SIZE = 32

# `unet/config.json` of stabilityai/stable-diffusion-xl-base-1.0, what decides shapes.
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


def tokenizer() -> Any:
    """One token for each letter."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=24)


def text_config() -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=11,
        max_position_embeddings=24,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )


def tiny_unet(is_xl: bool) -> Any:
    from diffusers import UNet2DConditionModel

    of_xl = {
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 11 + 6 * 4,
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": 32,
    }
    return UNet2DConditionModel(
        sample_size=SIZE // 2,
        layers_per_block=1,
        block_out_channels=(12, 24),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=3,
        **(of_xl if is_xl else {"cross_attention_dim": 16}),
    )


def tiny_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    )


def make_pipeline(folder: Path, is_xl: bool = True) -> Path:
    """Save a random pipeline."""
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    noise = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    parts = {"unet": tiny_unet(is_xl), "vae": tiny_vae(), "text_encoder": CLIPTextModel(text_config())}
    if is_xl:
        second = {"text_encoder_2": CLIPTextModelWithProjection(text_config()), "tokenizer_2": tokenizer()}
        scheduler = EulerDiscreteScheduler(timestep_spacing="leading", **noise)
        pipe = StableDiffusionXLPipeline(**parts, **second, tokenizer=tokenizer(), scheduler=scheduler)
    else:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **noise)
        pipe = StableDiffusionPipeline(**parts, **none, tokenizer=tokenizer(), scheduler=scheduler)
    pipe.save_pretrained(folder)
    return folder


def make_photographs(folder: Path) -> Path:
    """Four images of other sizes than the one trained on: a bright square on noise."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 60, (40 + number, 53, 3), dtype=np.uint8)
        pixels[10:30, 15 + number : 35 + number, number % 3] += 180
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder
