"""Which classes call `scaled_dot_product_attention` in their forward, and how; filled by each library, and by you."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from coeff_tuning.binders.bound import class_of
from coeff_tuning.binders.projections import Projections


@dataclass(frozen=True)
class Layout:
    """How a class calls `scaled_dot_product_attention`.

    Attributes:
        num_heads: name of the attribute that holds the number of heads.
        head_axis: the dimension of query, key and value that counts heads. None: heads and batch share the first
            dimension, heads inside.
        calls: how many calls one forward pass makes; all are mixed with the same matrix.
        why_not: the reason if a module, though of this class, is set up in a way that cannot be served.
        projections: the linear maps around the attention, None where they are not known.
    """

    num_heads: str = "num_heads"
    head_axis: int | None = -3
    calls: int = 1
    why_not: Callable[[Any], str | None] | None = None
    projections: Callable[[Any], Projections] | None = None


_layouts: dict[str, Layout] = {}
_refused: dict[str, str] = {}


def register_library(layouts: dict[str, Layout], refused: dict[str, str]) -> None:
    """Make the classes of a library known, by full name (`module.Class`), so that it need not be imported.

    Args:
        layouts: how each class calls attention.
        refused: attention classes that cannot be served, with the reason.
    """
    _layouts.update(layouts)
    _refused.update(refused)


def register_attention(
    attention_class: type[nn.Module], num_heads: str = "num_heads", head_axis: int | None = -3, calls: int = 1
) -> None:
    """Let modules of a class of your own get coefficients, by `get_peft_model(model, CoeffConfig())` and all else.

    Its forward must call `torch.nn.functional.scaled_dot_product_attention`. A subclass is served too unless it
    has a forward of its own. A forward pass that makes another number of calls raises `AdapterNotAppliedError`.

    Args:
        attention_class: the class of the attention modules.
        num_heads: name of the attribute that holds their number of heads.
        head_axis: the dimension of query, key and value that counts heads; -3 is torch's own `(..., H, L, E)`. None:
            the first dimension is `batch * heads`.
        calls: how many calls one forward pass makes. All are mixed with the same matrix.

    Raises:
        TypeError: it is not a class of modules with a forward of its own.

    Example:
        >>> from peft import get_peft_model
        >>> from coeff_tuning import CoeffConfig
        >>> class MyAttention(nn.Module):
        ...     num_heads = 3
        ...     def forward(self, heads):  # (B, H, L, E)
        ...         return nn.functional.scaled_dot_product_attention(heads, heads, heads)
        >>> register_attention(MyAttention)
        >>> get_peft_model(nn.Sequential(MyAttention()), CoeffConfig()).get_nb_trainable_parameters()[0]
        9
    """
    if not (isinstance(attention_class, type) and issubclass(attention_class, nn.Module)):
        raise TypeError(f"attention_class must be a class of torch modules; got {attention_class!r}.")
    if "forward" not in vars(attention_class):
        raise TypeError(f"{attention_class.__name__} must have a forward of its own; register the class that has it.")
    register_library({_full_name(attention_class): Layout(num_heads, head_axis, calls)}, {})


def layout_of(module: nn.Module) -> Layout | None:
    """How a module calls attention.

    Args:
        module: any module, bound or not.

    Returns:
        The layout of the class that its forward comes from, or None if that class is not known.
    """
    return _layouts.get(_forward_owner(module))


def refuses(module: nn.Module) -> str | None:
    """The reason if a module is of a class that is known not to be served, else None."""
    return _refused.get(_forward_owner(module))


def _forward_owner(module: nn.Module) -> str:
    return _full_name(next((c for c in class_of(module).__mro__ if "forward" in vars(c)), nn.Module))


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
