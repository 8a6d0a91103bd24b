"""One tiny module of each of timm's attention classes that is served, by class name, with inputs."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from tests.binders.libraries import library

TOKENS = (2, 7, 24)
IMAGE = (2, 24, 5, 5)


class Host(nn.Module):
    """A model with one attention module."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.attn(*args, **kwargs)


def _rope() -> Tensor:
    return torch.randn(6, 16)  # sine and cosine for 6 positions of head size 8; one prefix token has none


def _relpos() -> nn.Module:
    return import_module("timm.layers").RelPosBias(window_size=(2, 3), prefix_tokens=1, num_heads=3)


NORM = {"norm_layer": nn.LayerNorm, "qk_norm": True}
# name: (options, shape of the input, further arguments)
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], dict[str, Callable[[], Any]]]] = {
    "layers.attention.Attention": ({"num_heads": 3, **NORM}, TOKENS, {}),
    "layers.attention.Attention masked": ({"num_heads": 3}, TOKENS, {"attn_mask": lambda: torch.randn(7, 7)}),
    "layers.attention.Attention causal": ({"num_heads": 3, "gated": True}, TOKENS, {"is_causal": lambda: True}),
    "layers.attention.AttentionRope": ({"num_heads": 3}, TOKENS, {"rope": _rope}),
    "layers.attention.AttentionRope shared": (
        {"num_heads": 6, "num_kv_heads": 2, "attn_head_dim": 8, "qkv_fused": False},
        TOKENS,
        {"rope": _rope},
    ),
    "layers.attention2d.Attention2d": ({"num_heads": 3}, IMAGE, {}),
    "layers.attention2d.Attention2d heads first": ({"num_heads": 3, "head_first": True}, IMAGE, {}),
    "layers.attention2d.MultiQueryAttention2d": ({"num_heads": 3, "key_dim": 8, "value_dim": 11}, IMAGE, {}),
    "layers.attention2d.MultiQueryAttention2d strided": (
        {"num_heads": 3, "key_dim": 8, "kv_stride": 2, "padding": "same"},
        (2, 24, 6, 6),
        {},
    ),
    "layers.attention_pool.AttentionPoolLatent": ({"num_heads": 3, "latent_len": 2}, TOKENS, {}),
    "layers.attention_pool.AttentionPoolPrr": ({"num_heads": 3}, TOKENS, {}),
    "layers.attention_pool2d.AttentionPool2d": ({"feat_size": 5, "num_heads": 3, "head_dim": 8}, IMAGE, {}),
    "layers.attention_pool2d.RotAttentionPool2d": ({"ref_feat_size": 5, "num_heads": 3, "head_dim": 8}, IMAGE, {}),
    "layers.diff_attention.DiffAttention": ({"num_heads": 3}, TOKENS, {}),
    "layers.other_pool.SimPool1d": ({"num_heads": 3}, TOKENS, {}),
    "layers.other_pool.SimPool2d": ({"num_heads": 3}, IMAGE, {}),
    "models.beit.Attention": ({"num_heads": 3, "window_size": (2, 3), "qkv_bias": True}, TOKENS, {}),
    "models.cait.ClassAttn": ({"num_heads": 3}, TOKENS, {}),
    "models.cpubone.ConvAttention": ({"att_stride": 2, "att_kernel": 3}, (2, 64, 6, 6), {}),
    "models.davit.WindowAttention": ({"num_heads": 3, "window_size": (2, 2)}, (4, 4, 24), {}),
    "models.eva.EvaAttention": ({"num_heads": 3, "norm_layer": nn.LayerNorm}, TOKENS, {"rope": _rope}),
    "models.fastvit.Attention": ({"head_dim": 8}, IMAGE, {}),
    "models.gemma4_vit.Gemma4Attention": (
        {"num_heads": 3, "head_dim": 8},
        TOKENS,
        {"rope_cos": lambda: torch.randn(2, 7, 8), "rope_sin": lambda: torch.randn(2, 7, 8)},
    ),
    "models.hiera.MaskUnitAttention windows": (
        {"dim_out": 24, "heads": 3, "q_stride": 2, "window_size": 4, "use_mask_unit_attn": True},
        (2, 40, 24),
        {},
    ),
    "models.hiera.MaskUnitAttention": ({"dim_out": 24, "heads": 3, "q_stride": 2}, (2, 8, 24), {}),
    "models.hieradet_sam2.MultiScaleAttention": ({"dim_out": 24, "num_heads": 3}, (2, 5, 5, 24), {}),
    "models.lowformer.ConvAttention": ({"att_stride": 2, "att_kernel": 3, "head_dim_mul": 0.5}, (2, 64, 6, 6), {}),
    "models.maxxvit.Attention2d": ({"dim_head": 8}, IMAGE, {}),
    "models.maxxvit.AttentionCl": ({"dim_head": 8}, (2, 5, 5, 24), {}),
    "models.metaformer.Attention": ({"head_dim": 8}, TOKENS, {}),
    "models.nest.Attention": ({"num_heads": 3}, (2, 5, 7, 24), {}),
    "models.nextvit.EfficientAttention": ({"head_dim": 8}, (2, 8, 24), {}),
    "models.pvt_v2.Attention": ({"num_heads": 3, "sr_ratio": 2}, (2, 16, 24), {"feat_size": lambda: (4, 4)}),
    "models.swin_transformer.WindowAttention": (
        {"num_heads": 3, "window_size": (2, 2)},
        (10, 4, 24),
        {"mask": lambda: torch.randn(5, 4, 4)},
    ),
    "models.tiny_vit.Attention": (
        {"key_dim": 8, "num_heads": 3, "attn_ratio": 1, "resolution": (2, 3)},
        (2, 6, 24),
        {},
    ),
    "models.twins.GlobalSubSampleAttn": ({"num_heads": 3, "sr_ratio": 2}, (2, 16, 24), {"size": lambda: (4, 4)}),
    "models.twins.LocallyGroupedAttn": ({"num_heads": 3, "ws": 2}, (2, 30, 24), {"size": lambda: (5, 6)}),
    "models.visformer.Attention": ({"num_heads": 3}, IMAGE, {}),
    "models.vision_transformer.DiffParallelScalingBlock": ({"num_heads": 3}, TOKENS, {}),
    "models.vision_transformer.ParallelScalingBlock": ({"num_heads": 3}, TOKENS, {}),
    "models.vision_transformer_relpos.RelPosAttention": (
        {"num_heads": 3, "rel_pos_cls": lambda **_: _relpos()},
        TOKENS,
        {},
    ),
    "models.vision_transformer_sam.Attention": (
        {"num_heads": 3, "use_rel_pos": True, "input_size": (3, 4)},
        (2, 3, 4, 24),
        {},
    ),
    "models.volo.Attention": ({"num_heads": 3}, (2, 5, 5, 24), {}),
    "models.xcit.XCA": ({"num_heads": 3}, TOKENS, {}),
}


def build(case: str) -> tuple[Host, Tensor, dict[str, Any]]:
    """The module with random weights, its input, and further arguments."""
    library("timm")
    torch.manual_seed(0)
    options, shape, extra = CASES[case]
    module, _, name = case.split()[0].rpartition(".")
    width = shape[1] if case in IMAGE_CASES else shape[-1]
    attn = getattr(import_module(f"timm.{module}"), name)(width, **options)
    for parameter in attn.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    attn.eval()  # whose result is None in one class
    return Host(attn), torch.randn(shape), {key: make() for key, make in extra.items()}


IMAGE_CASES = {case for case, (_, shape, _) in CASES.items() if len(shape) == 4 and shape[-1] not in (24,)}
