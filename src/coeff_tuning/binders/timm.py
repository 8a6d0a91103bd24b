"""timm's attention classes, as data: which call `scaled_dot_product_attention`, with what layout, and which do not.

A test compares the lists with the source of the installed timm. Classes without maps of several heads (squeeze and
excitation, split attention, linear attention) are in neither list.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from coeff_tuning.binders.layouts import Layout
from coeff_tuning.binders.projections import Place, Projections, unwrapped
from coeff_tuning.errors import MergeError

_PLAIN = (
    "layers.attention.Attention",
    "layers.attention.AttentionRope",
    "layers.attention2d.Attention2d",
    "layers.attention2d.MultiQueryAttention2d",
    "layers.attention_pool.AttentionPoolLatent",
    "layers.attention_pool.AttentionPoolPrr",
    "layers.attention_pool2d.AttentionPool2d",
    "layers.attention_pool2d.RotAttentionPool2d",
    "models.beit.Attention",
    "models.cait.ClassAttn",
    "models.cpubone.ConvAttention",
    "models.davit.WindowAttention",
    "models.eva.EvaAttention",
    "models.fastvit.Attention",
    "models.gemma4_vit.Gemma4Attention",
    "models.hieradet_sam2.MultiScaleAttention",
    "models.lowformer.ConvAttention",
    "models.maxxvit.Attention2d",
    "models.maxxvit.AttentionCl",
    "models.metaformer.Attention",
    "models.nextvit.EfficientAttention",
    "models.pvt_v2.Attention",
    "models.swin_transformer.WindowAttention",
    "models.tiny_vit.Attention",
    "models.twins.GlobalSubSampleAttn",
    "models.twins.LocallyGroupedAttn",
    "models.vision_transformer.Attention",
    "models.vision_transformer.ParallelScalingBlock",
    "models.vision_transformer_relpos.RelPosAttention",
    "models.visformer.Attention",
    "models.volo.Attention",
    "models.xcit.XCA",
)


def _why_not_pool(module: Any) -> str | None:
    return None if module.gamma is None else "with gamma it takes a root of its output, which mixing can make negative"


LAYOUTS = {
    **{f"timm.{name}": Layout() for name in _PLAIN},
    "timm.layers.other_pool.SimPool1d": Layout(why_not=_why_not_pool),
    "timm.layers.other_pool.SimPool2d": Layout(why_not=_why_not_pool),
    "timm.layers.diff_attention.DiffAttention": Layout(calls=2),
    "timm.models.vision_transformer.DiffParallelScalingBlock": Layout(calls=2),
    "timm.models.hiera.MaskUnitAttention": Layout(num_heads="heads", head_axis=1),
    "timm.models.nest.Attention": Layout(head_axis=1),
    "timm.models.vision_transformer_sam.Attention": Layout(head_axis=None),
}
# Classes whose `proj` reads the heads' outputs, heads outer, and nothing else; and the layers that make their values.
_PROJECTED = {
    "layers.attention.Attention": ("qkv",),
    "layers.attention.AttentionRope": ("qkv", "v_proj"),
    "layers.attention_pool.AttentionPoolLatent": ("kv",),
    "models.beit.Attention": ("qkv",),
    "models.cait.ClassAttn": ("v",),
    "models.eva.EvaAttention": ("qkv", "v_proj"),
    "models.metaformer.Attention": ("qkv",),
    "models.pvt_v2.Attention": ("kv",),
    "models.swin_transformer.WindowAttention": ("qkv",),
    "models.twins.GlobalSubSampleAttn": ("kv",),
    "models.twins.LocallyGroupedAttn": ("qkv",),
    "models.vision_transformer_relpos.RelPosAttention": ("qkv",),
    "models.vision_transformer_sam.Attention": ("qkv",),
}
# Those that may have a norm or a gate between the heads and `proj`.
_BETWEEN = ("layers.attention.Attention", "layers.attention.AttentionRope", "models.eva.EvaAttention")


def _projections(module: Any, value_names: tuple[str, ...], may_change: bool) -> Projections:
    norm, gate = getattr(module, "norm", None), getattr(module, "gate", None)
    if may_change and not (gate is None and (norm is None or isinstance(norm, nn.Identity))):
        raise MergeError(
            f"Nothing may stand between the heads and their output projection to merge into it; this "
            f"{type(module).__name__} has a norm or a gate there. Keep the adapter attached, or leave the module out "
            "with exclude_modules."
        )
    layer = next(found for name in value_names if (found := getattr(module, name, None)) is not None)
    value: Place | str = Place(layer)
    if layer is not getattr(module, "v_proj", None) and layer is not getattr(module, "v", None):
        parts = 2 if layer is getattr(module, "kv", None) else 3
        width = int(unwrapped(layer).out_features) // parts
        value = Place(layer, (parts - 1) * width, parts * width)
    if getattr(module, "v_bias", None) is not None:
        value = "its value bias is apart from its value weight"
    return Projections((Place(module.proj),), getattr(module, "num_kv_heads", module.num_heads), value)


for _name, _values in _PROJECTED.items():
    _find = partial(_projections, value_names=_values, may_change=_name in _BETWEEN)
    LAYOUTS[f"timm.{_name}"] = replace(LAYOUTS[f"timm.{_name}"], projections=_find)
_BY_HAND = (
    "layers.attention2d.MultiQueryAttentionV2",
    "layers.bottleneck_attn.BottleneckAttn",
    "layers.halo_attn.HaloAttn",
    "layers.lambda_layer.LambdaLayer",
    "models.cait.TalkingHeadAttn",
    "models.coat.FactorAttnConvRelPosEnc",
    "models.convit.GPSA",
    "models.convit.MHSA",
    "models.crossvit.CrossAttention",
    "models.csatv2.SpatialTransformerBlock",
    "models.davit.ChannelAttention",
    "models.davit.ChannelAttentionV2",
    "models.edgenext.CrossCovarianceAttn",
    "models.efficientformer.Attention",
    "models.efficientformer_v2.Attention2d",
    "models.efficientformer_v2.Attention2dDownsample",
    "models.efficientvit_msra.CascadedGroupAttention",
    "models.gcvit.WindowAttentionGlobal",
    "models.levit.Attention",
    "models.levit.AttentionDownsample",
    "models.mobilevit.LinearSelfAttention",
    "models.mvitv2.MultiScaleAttention",
    "models.mvitv2.MultiScaleAttentionPoolFirst",
    "models.shvit.SHSA",
    "models.swin_transformer_v2.WindowAttention",
    "models.swin_transformer_v2_cr.WindowMultiHeadAttention",
    "models.tnt.Attention",
    "models.volo.ClassAttention",
    "models.volo.OutlookAttention",
)
REFUSED = {
    **{f"timm.{name}": "computes its attention by hand" for name in _BY_HAND},
    "timm.models.iformer.SHMA": "has a single head, so there is nothing to mix",
}
