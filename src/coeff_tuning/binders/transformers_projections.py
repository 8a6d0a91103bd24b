"""transformers: where the values of each attention class come from and where its heads' outputs go.

A list of classes, each of which a test merges. Classes change between releases, so that the code after the attention
call is read too: it must hand the heads' outputs to the projection that the list names, as they are.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import nn

from coeff_tuning.binders.projections import Place, Projections, kv_heads_of, unknown_projections, unwrapped

_O_PROJ = """
    Beit DeiT Dinov2 DINOv3ViT Gemma2 Gemma3 GptOss Granite Llama Mistral Mixtral Olmo2 Qwen2 Qwen3 Starcoder2 Swin ViT
    ViTMAE
"""
_OUT_PROJ = "Bart CLIP Hubert M2M100 MBart OPT Siglip Wav2Vec2 Whisper"
_BERTS = "Bert Camembert Data2VecText Electra Roberta XLMRoberta"
# Output and value projection of each class, by their names in it; "^" is the module that holds it.
NAMES = {
    **{f"{name}Attention": ("o_proj", "v_proj") for name in _O_PROJ.split()},
    **{f"{name}Attention": ("out_proj", "v_proj") for name in _OUT_PROJ.split()},
    **{f"{name}SelfAttention": ("^output.dense", "value") for name in [*_BERTS.split(), "Esm"]},
    **{f"{name}CrossAttention": ("^output.dense", "value") for name in _BERTS.split()},
    "AlbertAttention": ("dense", "value"),
    "DistilBertSelfAttention": ("out_lin", "v_lin"),
    "GPT2Attention": ("c_proj", "c_attn"),
    "GPTNeoXAttention": ("dense", "query_key_value"),
    "ModernBertAttention": ("Wo", "Wqkv"),
    "Phi3Attention": ("o_proj", "qkv_proj"),
    "T5Attention": ("o", "v"),
}
# The code after the attention call, without spaces and comments: the heads side by side, then the projection.
JOINED = r"attn_output=attn_output\.reshape\([^=]*-1\)\.contiguous\(\)"
PROJECTED = r"attn_output=(?:self\.out_drop\()?self\.(?P<name>\w+)\(attn_output\)"
AFTER_CALL = re.compile(rf"{JOINED}(?:return|{PROJECTED})")


def projections(module: nn.Module, parent: nn.Module, heads: int) -> Projections:
    """The linear maps around the attention of a listed class.

    Args:
        module: the attention module.
        parent: the module that holds it.
        heads: its number of heads.

    Returns:
        The maps.

    Raises:
        MergeError: the class is not listed, or its code is not that of the list.
    """
    attention_class = type(module)
    is_ours = attention_class.__module__.startswith("transformers.models.")
    names = NAMES.get(attention_class.__name__) if is_ours else None
    if names is None or _reader(attention_class) != ("" if "^" in names[0] else names[0]):
        return unknown_projections(module, parent, heads)
    output = (parent if "^" in names[0] else module).get_submodule(names[0].lstrip("^"))
    layer = module.get_submodule(names[1])
    kv_heads, value = _value(module, output, layer, heads)
    return Projections((Place(output),), kv_heads, value)


def _value(module: Any, output: nn.Module, layer: nn.Module, heads: int) -> tuple[int, Place | str]:
    name = type(module).__name__
    if name == "GptOssAttention":
        return kv_heads_of(output, layer, heads), "rows of its maps do not sum to 1, because of its sinks"
    if name == "GPTNeoXAttention":
        return heads, "its values are interleaved with queries and keys"
    if name == "Phi3Attention":
        width = module.num_key_value_heads * module.head_dim
        return module.num_key_value_heads, Place(layer, heads * module.head_dim + width)
    if name in ("GPT2Attention", "ModernBertAttention"):
        features = int(unwrapped(layer).weight.shape[1 if name == "GPT2Attention" else 0])
        parts = 2 if getattr(module, "is_cross_attention", False) else 3  # the values are the last
        return heads, Place(layer, features - features // parts)
    return kv_heads_of(output, layer, heads), Place(layer)


def _reader(attention_class: type[nn.Module]) -> str | None:
    """Name of the layer that the forward hands the heads' outputs to, "" if it returns them; None for anything else."""
    try:
        code = inspect.getsource(inspect.unwrap(attention_class.forward))
    except OSError:
        return None
    tail = re.sub(r"#.*|\s", "", code.rpartition("attention_interface(")[2])
    match = AFTER_CALL.match(tail[max(tail.find("attn_output"), 0) :])
    return None if match is None else match["name"] or ""
