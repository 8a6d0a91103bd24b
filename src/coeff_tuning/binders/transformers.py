"""transformers: attention modules that look their attention up in `ALL_ATTENTION_FUNCTIONS`.

A bound module gets a shallow copy of its config whose attention implementation is ours, so its own forward calls
`coeff_attention_forward` below. The model's config stays as it was: masks are built as before, and
`set_attn_implementation` still decides what runs where no coefficients are active.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from coeff_tuning.binders.base import Binder, coeff_for
from coeff_tuning.binders.eager import mixed_eager
from coeff_tuning.binders.transformers_projections import projections
from coeff_tuning.errors import UnsupportedModelError
from coeff_tuning.functional import coeff_attention
from coeff_tuning.tuner.layer import CHILD_NAME, CoeffLayer

IMPLEMENTATION = "coeff_tuning"
SERVED_BASES = ("sdpa", "eager", None)
HEAD_COUNT_NAMES = ("num_heads", "num_attention_heads", "n_heads", "n_head")
# Keywords by which a family says that its attention is not the dense softmax attention that we compute.
REFUSED_KEYWORDS = ("indices", "block_indices", "sinks", "cache")


def serves(module: nn.Module) -> bool:
    """Whether a module's own forward calls the attention interface; a class that merely accepts its name does not."""
    if not hasattr(module, "config"):
        return False
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def num_heads(module: nn.Module) -> int:
    """Number of query heads, from the module or else its config; checked against the query in each forward pass."""
    _require_served_base(module)
    for owner in (module, module.config):
        for name in HEAD_COUNT_NAMES:
            if isinstance(getattr(owner, name, None), int):
                return int(getattr(owner, name))
    raise UnsupportedModelError(
        f"The number of heads of {type(module).__name__} must be readable from one of {HEAD_COUNT_NAMES} of the "
        "module or its config; it has none of them. Set module.num_heads before attaching coefficients."
    )


def bind(module: nn.Module) -> None:
    """Point the module's own config at our attention function."""
    layer = getattr(module, CHILD_NAME)
    layer.base_config = module.config
    config: Any = copy.copy(module.config)
    # Not through the property, which would also write into the sub-configs that the copy shares with the model.
    config._attn_implementation_internal = IMPLEMENTATION
    module.config = config


def unbind(module: nn.Module) -> None:
    """Give the module its own config back."""
    module.config = getattr(module, CHILD_NAME).base_config


def coeff_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention function for `AttentionInterface`: mixed by the module's coefficients, or the base's own.

    Args:
        module: the attention module, with its `coefficients`.
        query: `(B, H, L, E)`.
        key: `(B, Hkv, S, E)`, not repeated.
        value: `(B, Hkv, S, Ev)`, not repeated.
        attention_mask: None, or bool (True takes part) or float (added), broadcastable to `(B, H, L, S)`.
        **kwargs: `dropout` on the maps (0 in evaluation), `scaling` of the scores (default `1 / sqrt(E)`), `is_causal`
            (default the module's own), and what a family adds: `position_bias`, `softcap`, `s_aux`.

    Returns:
        Output `(B, L, H, Ev)`, and the mixed maps `(B, H, L, S)` where the base implementation is "eager", else None.

    Raises:
        AdapterMismatchError: the query has another number of heads, or the batch another size than `adapter_names`.
        UnsupportedModelError: the call is for sparse or paged attention, or the mask is not a tensor.
    """
    layer: CoeffLayer = getattr(module, CHILD_NAME)
    if not torch.compiler.is_compiling():
        layer.was_applied = True
    if not layer.is_active:
        return _base_attention(module)(module, query, key, value, attention_mask, **kwargs)
    _check_call(module, attention_mask, kwargs)
    coeff = coeff_for(module, layer.coeff(), query.shape[1], query.shape[0])
    bias = _with_position_bias(attention_mask, kwargs.get("position_bias"))
    dropout, scaling = kwargs.get("dropout", 0.0), kwargs.get("scaling")
    if _base_config(module)._attn_implementation in ("eager", None):
        out, maps = mixed_eager(query, key, value, coeff, bias, dropout, scaling, **_extras(kwargs))
        return out.transpose(1, 2).contiguous(), maps
    if _extras(kwargs):
        raise UnsupportedModelError(
            f"{type(module).__name__} passes {sorted(_extras(kwargs))}, which only attn_implementation='eager' "
            "computes. Load the model with attn_implementation='eager'."
        )
    # As in transformers' own "sdpa": causality is left to the kernel only where the model built no mask.
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    causal = query.shape[2] > 1 and attention_mask is None and causal
    if causal and key.shape[2] > query.shape[2]:
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        bias = None if bias is None else bias[..., : query.shape[2]]
    if causal and bias is not None:
        above = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device).triu(1)
        bias, causal = bias.masked_fill(above, -torch.inf), False
    gqa = key.shape[1] != query.shape[1]
    out = coeff_attention(query, key, value, coeff, bias, dropout, bool(causal), scaling, enable_gqa=gqa)
    return out.transpose(1, 2).contiguous(), None


def _base_config(module: nn.Module) -> Any:
    layer = getattr(module, CHILD_NAME, None)
    return getattr(layer, "base_config", module.config)


def _base_attention(module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The function that the module would have called without us, looked up where the module looks it up."""
    home = vars(sys.modules[type(module).__module__])
    base: Callable[..., tuple[Tensor, Tensor | None]] = home["ALL_ATTENTION_FUNCTIONS"].get_interface(
        _base_config(module)._attn_implementation, home.get("eager_attention_forward")
    )
    return base


def _require_served_base(module: nn.Module) -> None:
    base = _base_config(module)._attn_implementation
    if base not in SERVED_BASES:
        raise UnsupportedModelError(
            f"{type(module).__name__} must run with attn_implementation 'sdpa' or 'eager' to get coefficients; it "
            f"runs with {base!r}. Load the model with attn_implementation='sdpa'."
        )


def _extras(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in ("softcap", "s_aux") if kwargs.get(name) is not None}


def _check_call(module: nn.Module, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    _require_served_base(module)  # set_attn_implementation may have changed it, and with it what masks mean
    refused = [name for name in REFUSED_KEYWORDS if kwargs.get(name) is not None]
    if refused:
        raise UnsupportedModelError(
            f"{type(module).__name__} passes {refused}: its attention is sparse or paged, and coefficients need every "
            "head's whole map. Remove the coefficients from this module with exclude_modules."
        )
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 4):
        raise UnsupportedModelError(
            f"{type(module).__name__} needs an attention mask (B, H or 1, L, S) or none; got "
            f"{tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__}. "
            "Load the model with attn_implementation='sdpa'."
        )


def _with_position_bias(mask: Tensor | None, position_bias: Tensor | None) -> Tensor | None:
    if position_bias is None or mask is None:
        return mask if position_bias is None else position_bias
    if mask.dtype == torch.bool:
        return position_bias.masked_fill(~mask, -torch.inf)
    return position_bias + mask


AttentionInterface.register(IMPLEMENTATION, coeff_attention_forward)
BINDER = Binder("transformers", serves, num_heads, bind, unbind, projections=projections)
