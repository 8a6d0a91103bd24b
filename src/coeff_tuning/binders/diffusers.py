"""diffusers: `Attention` and every `AttentionModuleMixin`, whose processor calls `scaled_dot_product_attention`.

Bound on the module, not on its processor, which `fuse_qkv_projections` and `set_attn_processor` replace.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from coeff_tuning.binders.base import Binder
from coeff_tuning.binders.bound import bind_class, class_of, unbind_class
from coeff_tuning.binders.layouts import Layout
from coeff_tuning.binders.sdpa import MixedSdpa
from coeff_tuning.errors import UnsupportedModelError

BASES = ("diffusers.models.attention_processor.Attention", "diffusers.models.attention.AttentionModuleMixin")
CALLS = {"scaled_dot_product_attention", "dispatch_attention_fn"}
LAYOUT = Layout(num_heads="heads")
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


BINDER = Binder("diffusers", serves, num_heads, bind, unbind_class)
