"""Where an attention module's values come from and where its heads' outputs go: what merging has to change.

Each binder says it by class, from a list; nothing is guessed from names or shapes. What a list cannot know (a layer
that another adapter, a hook or quantisation has changed since) is checked here, before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from coeff_tuning.binders.bound import class_of
from coeff_tuning.errors import MergeError

PLAIN_LAYERS = (nn.Linear, NonDynamicallyQuantizableLinear, Conv1D, nn.MultiheadAttention)
PLAIN_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Place:
    """Output features of a linear layer, all of them by default.

    Attributes:
        layer: the layer.
        start: the first of its output features.
        stop: the one after the last.
        weight: name of its weight.
        bias: name of its bias, which may be None.
    """

    layer: nn.Module
    start: int = 0
    stop: int | None = None
    weight: str = "weight"
    bias: str = "bias"


@dataclass(frozen=True)
class Projections:
    """The linear maps around the attention of one module with H heads.

    Attributes:
        outputs: the linear maps that read the heads' outputs, `(D, H * Ev)`, heads outer, with nothing but dropout in
            between. Several where kinds of tokens are projected apart.
        kv_heads: number of key/value heads; query head h reads value head `h // (H // kv_heads)`.
        value: the linear map that makes the values, `(kv_heads * Ev, X)`, with nothing in between; or the reason why it
            cannot be changed.
    """

    outputs: tuple[Place, ...]
    kv_heads: int
    value: Place | str


def unknown_projections(module: nn.Module, parent: nn.Module, heads: int) -> Projections:
    """Refuse: the binder does not know where the heads' outputs go.

    Args:
        module: the attention module.
        parent: the module that holds it.
        heads: its number of heads.

    Returns:
        Nothing.

    Raises:
        MergeError: always.
    """
    name = f"{class_of(module).__module__}.{class_of(module).__qualname__}"
    raise MergeError(
        f"The output projection of an attention module must be known to merge into it, or to train only the entries "
        f"that merge; that of {name} is not, see docs/peft.md. Keep the adapter attached, or leave the module out with "
        "exclude_modules."
    )


def unwrapped(layer: Any) -> Any:
    """A layer, or the one below LoRA and other adapters.

    Args:
        layer: the layer.

    Returns:
        The library's own layer.
    """
    return getattr(layer, "base_layer", layer)


def kv_heads_of(output: nn.Module, value: nn.Module, heads: int) -> int:
    """Number of value heads, from the sizes of the projections.

    Args:
        output: reads all heads' outputs.
        value: makes the values.
        heads: number of query heads.

    Returns:
        The number.
    """
    head_size = int(unwrapped(output).in_features) // heads
    return int(unwrapped(value).out_features) // head_size


def weight_of(place: Place) -> Tensor:
    """The weight of a place.

    Args:
        place: the place.

    Returns:
        A view `(out, in)`: writing into it changes the layer.
    """
    weight: Tensor = getattr(place.layer, place.weight).detach()
    return (weight.T if isinstance(place.layer, Conv1D) else weight)[place.start : place.stop]


def bias_of(place: Place) -> Tensor | None:
    """The bias of a place.

    Args:
        place: the place.

    Returns:
        A view `(out,)`, or None.
    """
    bias = getattr(place.layer, place.bias)
    return None if bias is None else bias.detach()[place.start : place.stop]


def require_plain(place: Place) -> None:
    """Raise unless a layer is the linear map that its weight says, in numbers that can be written.

    Args:
        place: the place.

    Raises:
        MergeError: it is wrapped, quantised, sharded, offloaded or has hooks.
    """
    layer, weight = place.layer, getattr(place.layer, place.weight, None)
    kind = type(layer).__name__
    if class_of(layer) not in PLAIN_LAYERS:
        found = f"it is a {kind}. Merge or remove other adapters first, and load the weights unquantised"
    elif type(weight) is not nn.Parameter or weight.dtype not in PLAIN_DTYPES or weight.is_meta:
        found = f"that of this {kind} is a {type(weight).__name__} ({getattr(weight, 'dtype', None)}" + (
            ", without data). Load the weights unquantised, whole and in memory"
        )
    elif layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        found = f"this {kind} has hooks or a forward of its own. Remove them first"
    else:
        return
    raise MergeError(f"A projection must be a plain linear layer with a float weight to merge into it; {found}.")


def require_own(model: nn.Module, module: nn.Module, place: Place) -> None:
    """Raise if something beside an attention module uses its projection.

    Args:
        model: the model.
        module: the attention module.
        place: its projection.

    Raises:
        MergeError: the layer, or its weight, is shared.
    """
    layer, weight = place.layer, getattr(place.layer, place.weight)
    every = [m for _, m in model.named_modules(remove_duplicate=False)]
    holders = {id(m) for m in every for p in m._parameters.values() if _same_memory(p, weight)}
    if sum(m is layer for m in every) != sum(m is module for m in every) or len(holders) > 1:
        raise MergeError(
            f"A projection must belong to one attention module to merge into it; this {type(layer).__name__} or its "
            "weight is shared. Keep the adapter attached."
        )


def _same_memory(parameter: nn.Parameter | None, weight: Tensor) -> bool:
    if parameter is None or parameter.is_meta or parameter.device != weight.device:
        return False
    return type(parameter) is nn.Parameter and parameter.data_ptr() == weight.data_ptr()
