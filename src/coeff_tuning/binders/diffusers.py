"""diffusers: `Attention` and every `AttentionModuleMixin`, whose processor calls `scaled_dot_product_attention`.

Bound on the module, not on its processor, which `fuse_qkv_projections` and `set_attn_processor` replace.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from coeff_tuning.binders.base import Binder
from coeff_tuning.binders.bound import bind_class, class_of, require_class_forward, unbind_class
from coeff_tuning.binders.layouts import Layout
from coeff_tuning.binders.projections import Place, Projections, unknown_projections
from coeff_tuning.binders.sdpa import MixedSdpa
from coeff_tuning.errors import UnsupportedModelError

BASES = ("diffusers.models.attention_processor.Attention", "diffusers.models.attention.AttentionModuleMixin")
CALLS = {"scaled_dot_product_attention", "dispatch_attention_fn"}
LAYOUT = Layout(num_heads="heads")
# Processors that hand the heads' outputs to `to_out[0]`, and those of added tokens to `to_add_out`, as they are.
PROJECTING = {
    "diffusers.models.attention_processor.AttnProcessor2_0",
    "diffusers.models.attention_processor.JointAttnProcessor2_0",
    "diffusers.models.transformers.transformer_flux.FluxAttnProcessor",
    "diffusers.models.transformers.transformer_qwenimage.QwenDoubleStreamAttnProcessor2_0",
    "diffusers.models.transformers.transformer_wan.WanAttnProcessor",
}
ADVICE = (
    "Sliced, xFormers, flash and sage attention and IP-Adapters cannot be served: use AttnProcessor2_0 or the model's "
    "own processor with the 'native' backend, or leave the module out with exclude_modules."
)


class MixedProcessorAttention(MixedSdpa):
    """A diffusers attention module, whatever its processor, with mixed maps."""

    advice = ADVICE

    def layout(self) -> Layout:
        """One call, heads before positions, as every processor makes it."""
        return LAYOUT

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward, its attention mixed.

        Args:
            *args: those of the module's class.
            **kwargs: the same.

        Returns:
            The result of the module's class.

        Raises:
            UnsupportedModelError: the processor splits its attention among devices, out of reach.
        """
        if self.coefficients.is_active and getattr(self.processor, "_parallel_config", None) is not None:
            raise UnsupportedModelError(f"{type(self).__name__} must not run in context parallelism. {ADVICE}")
        return super().forward(*args, **kwargs)


def serves(module: nn.Module) -> bool:
    """Whether a module is one of diffusers' attention modules."""
    return any(f"{c.__module__}.{c.__qualname__}" in BASES for c in class_of(module).__mro__)


def num_heads(module: Any) -> int:
    """Number of heads; the processor of the moment must be one that can be served."""
    require_class_forward(module)
    processor = type(module.processor)
    names = set(inspect.unwrap(processor.__call__).__code__.co_names)
    if not names & CALLS or "IPAdapter" in processor.__name__:
        raise UnsupportedModelError(
            f"{type(module).__name__} must attend by one scaled_dot_product_attention; its processor "
            f"{processor.__name__} does not. {ADVICE}"
        )
    return int(module.heads)


def bind(module: nn.Module) -> None:
    """Make the module's forward answer its attention call."""
    bind_class(module, MixedProcessorAttention)


def projections(module: Any, parent: nn.Module, heads: int) -> Projections:
    """The linear maps around the attention: two output projections where text and image attend together."""
    processor = type(module.processor)
    is_known = f"{processor.__module__}.{processor.__qualname__}" in PROJECTING
    if not is_known or getattr(module, "to_out", None) is None:  # a block of one stream projects it with its MLP
        return unknown_projections(module, parent, heads)
    outputs, added = [Place(module.to_out[0])], getattr(module, "to_add_out", None)
    if added is not None:
        outputs.append(Place(added))
    value: Place | str = Place(module.to_v)
    if getattr(module, "add_v_proj", None) is not None:
        value = "text and image have value projections of their own"
    elif getattr(module, "fused_projections", False):
        value = "its projections are fused"
    return Projections(tuple(outputs), module.heads, value)


BINDER = Binder("diffusers", serves, num_heads, bind, unbind_class, projections=projections)
