"""Attention classes whose forward calls `scaled_dot_product_attention` itself: those of timm and open_clip, and yours.

A bound module runs its own forward under a mode that answers that one call, in this thread and during this forward
only. Each class is listed with the place of its heads; none is guessed from shapes.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from coeff_tuning.binders.base import Binder, coeff_for
from coeff_tuning.binders.bound import Bound, bind_class, require_class_forward, unbind_class
from coeff_tuning.binders.layouts import Layout, layout_of, refuses
from coeff_tuning.binders.projections import Projections, unknown_projections
from coeff_tuning.errors import AdapterNotAppliedError, UnsupportedModelError
from coeff_tuning.functional import coeff_attention


class Mixing(TorchFunctionMode):
    """Answers `scaled_dot_product_attention` with mixed maps.

    Args:
        module: the attention module, for messages.
        coeff: `(H, H)` or `(samples, H, H)`.
        head_axis: as in `Layout`.

    Attributes:
        calls: how many calls were answered.
    """

    def __init__(self, module: nn.Module, coeff: Tensor, head_axis: int | None) -> None:
        super().__init__()
        self.module, self.coeff, self.head_axis = module, coeff, head_axis
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Pass every other function on.

        Args:
            func: the function that was called.
            types: not used.
            args: its arguments.
            kwargs: its keywords.

        Returns:
            Its result.
        """
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        return self._mixed(*args, **(kwargs or {}))

    def _mixed(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        axis, heads = self.head_axis, self.coeff.shape[-1]
        if axis is None:
            query, key, value = (x.unflatten(0, (-1, heads)) for x in (query, key, value))
            if attn_mask is not None and attn_mask.dim() == 3 and attn_mask.shape[0] != 1:
                attn_mask = attn_mask.unflatten(0, (-1, heads))
        elif axis != -3:
            if attn_mask is not None:
                raise UnsupportedModelError(f"{type(self.module).__name__} must not pass a mask with its heads apart.")
            query, key, value = (x.movedim(axis, -3) for x in (query, key, value))
        batch = query.shape[:-3]
        coeff = coeff_for(self.module, self.coeff, query.shape[-3], math.prod(batch))
        if coeff.dim() == 3:
            coeff = coeff.reshape(*batch, heads, heads)
        out = coeff_attention(query, key, value, coeff, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        if axis is None:
            return out.flatten(0, 1)
        return out if axis == -3 else out.movedim(-3, axis)


class MixedSdpa(Bound):
    """A module whose own forward calls `scaled_dot_product_attention`, with mixed maps.

    `fused_attn` (timm) and `use_fsdpa` (open_clip) read as True while coefficients are active: where they are False the
    same attention is computed by hand, out of reach.
    """

    advice: ClassVar[str] = "Leave it out with exclude_modules."

    @property
    def fused_attn(self) -> bool:
        """Whether the forward takes the branch that calls `scaled_dot_product_attention`."""
        return self._switch("fused_attn")

    @fused_attn.setter
    def fused_attn(self, value: bool) -> None:
        vars(self)["fused_attn"] = value

    @property
    def use_fsdpa(self) -> bool:
        """The same, under open_clip's name."""
        return self._switch("use_fsdpa")

    @use_fsdpa.setter
    def use_fsdpa(self, value: bool) -> None:
        vars(self)["use_fsdpa"] = value

    def _switch(self, name: str) -> bool:
        own = vars(self).get(name, getattr(self.base_class, name, None))
        if own is None:
            raise AttributeError(name)
        return bool(own) or self.coefficients.is_active

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward, its attention mixed.

        Args:
            *args: those of the module's class.
            **kwargs: the same.

        Returns:
            The result of the module's class.

        Raises:
            AdapterNotAppliedError: it did not call `scaled_dot_product_attention` as often as it should.
        """
        layer = self.active_layer()
        if layer is None:
            return super().forward(*args, **kwargs)
        layout = self.layout()
        mode = Mixing(self, layer.coeff(), layout.head_axis)
        with mode:
            out = super().forward(*args, **kwargs)
        if mode.calls != layout.calls:
            raise AdapterNotAppliedError(
                f"{type(self).__name__} must call scaled_dot_product_attention {layout.calls} time(s) in a forward "
                f"pass, where its coefficients are applied; it did {mode.calls} time(s). {self.advice}"
            )
        return out

    def layout(self) -> Layout:
        """How the module's class calls attention."""
        layout = layout_of(self)
        assert layout is not None
        return layout


def serves(module: nn.Module) -> bool:
    """Whether the module's class is known."""
    return layout_of(module) is not None


def num_heads(module: nn.Module) -> int:
    """Number of heads, from the attribute that the layout names."""
    require_class_forward(module)
    layout = layout_of(module)
    assert layout is not None
    reason = layout.why_not(module) if layout.why_not is not None else None
    if reason is not None:
        raise UnsupportedModelError(
            f"{type(module).__name__} must be set up so that its maps can be mixed; {reason}. Name the modules to "
            "adapt with target_modules, or leave this one out with exclude_modules."
        )
    heads = getattr(module, layout.num_heads, None)
    if not isinstance(heads, int) or heads < 1:
        raise UnsupportedModelError(
            f"{type(module).__name__} must have its number of heads in the attribute {layout.num_heads!r}; got "
            f"{heads!r}."
        )
    return heads


def bind(module: nn.Module) -> None:
    """Make the module's forward answer its attention call."""
    bind_class(module, MixedSdpa)


def projections(module: nn.Module, parent: nn.Module, heads: int) -> Projections:
    """The linear maps around the attention, if its library's list has them."""
    layout = layout_of(module)
    assert layout is not None
    return unknown_projections(module, parent, heads) if layout.projections is None else layout.projections(module)


BINDER = Binder("scaled_dot_product_attention", serves, num_heads, bind, unbind_class, refuses, projections)
