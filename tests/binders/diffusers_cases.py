"""Tiny random diffusers models of six families, with inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn


def _unet(**options: Any) -> tuple[nn.Module, dict[str, Any]]:
    import diffusers

    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(12, 24),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=20,
        attention_head_dim=3,
        **options,
    )
    inputs = {"sample": torch.randn(2, 4, 8, 8), "timestep": 5, "encoder_hidden_states": torch.randn(2, 7, 20)}
    return model, inputs


def sd15() -> tuple[nn.Module, dict[str, Any]]:
    return _unet()


def sdxl() -> tuple[nn.Module, dict[str, Any]]:
    model, inputs = _unet(
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=11 + 6 * 4,
        transformer_layers_per_block=(1, 2),
    )
    extra = {"text_embeds": torch.randn(2, 11), "time_ids": torch.rand(2, 6)}
    return model, {**inputs, "added_cond_kwargs": extra}


def sd3() -> tuple[nn.Module, dict[str, Any]]:
    import diffusers

    model = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=20,
        caption_projection_dim=24,
        pooled_projection_dim=11,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 20),
        "pooled_projections": torch.randn(2, 11),
        "timestep": torch.tensor([5.0, 7.0]),
    }


def flux() -> tuple[nn.Module, dict[str, Any]]:
    import diffusers

    model = diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=20,
        pooled_projection_dim=11,
        axes_dims_rope=(4, 4, 8),
    )
    return model, {
        "hidden_states": torch.randn(2, 16, 4),
        "encoder_hidden_states": torch.randn(2, 7, 20),
        "pooled_projections": torch.randn(2, 11),
        "timestep": torch.tensor([0.5, 0.7]),
        "img_ids": torch.randint(0, 4, (16, 3)).float(),
        "txt_ids": torch.zeros(7, 3),
    }


def pixart() -> tuple[nn.Module, dict[str, Any]]:
    import diffusers

    model = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        caption_channels=20,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    mask = torch.ones(2, 7)
    mask[0, 5:] = 0
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 20),
        "encoder_attention_mask": mask,
        "timestep": torch.tensor([5, 7]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def wan(**options: Any) -> tuple[nn.Module, dict[str, Any]]:
    import diffusers

    model = diffusers.WanTransformer3DModel(
        num_attention_heads=3,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=20,
        freq_dim=8,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=16,
        **options,
    )
    return model, {
        "hidden_states": torch.randn(2, 4, 2, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 20),
        "timestep": torch.tensor([5, 7]),
    }


def qwen() -> tuple[nn.Module, dict[str, Any]]:
    import diffusers

    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=20,
        axes_dims_rope=(8, 4, 4),
    )
    return model, {
        "hidden_states": torch.randn(2, 16, 16),
        "encoder_hidden_states": torch.randn(2, 7, 20),
        "encoder_hidden_states_mask": torch.ones(2, 7, dtype=torch.long),
        "timestep": torch.tensor([0.5, 0.7]),
        "img_shapes": [(1, 4, 4)] * 2,
    }


FAMILIES = {
    "unet-sd15": sd15,
    "unet-sdxl": sdxl,
    "sd3": sd3,
    "flux": flux,
    "pixart": pixart,
    "wan": wan,
    "qwenimage": qwen,
}


def build(family: str) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny model with weights large enough that attention matters, and its inputs."""
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model, inputs = FAMILIES[family]()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval(), inputs


def output(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    return model(**inputs, return_dict=False)[0]
