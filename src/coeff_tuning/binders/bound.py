"""The least that makes one module call us: its class becomes a subclass of itself, and back.

Nothing outside the module changes, no other thread sees anything, and module paths, state-dict keys, hooks,
`isinstance` and the class name stay as they were. Copies and pickles of a bound module are bound too.
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar, cast

import torch
from torch import nn

from coeff_tuning.errors import AdapterNotAppliedError, UnsupportedModelError
from coeff_tuning.tuner.layer import CHILD_NAME, CoeffLayer


class Bound(nn.Module):
    """Put before the class of an attention module; a subclass decides what `forward` does with the coefficients.

    Attributes:
        bound_mixin: the subclass of `Bound` in use.
        base_class: the class that the module had.
    """

    bound_mixin: ClassVar[type[Bound]]
    base_class: ClassVar[type[nn.Module]]
    coefficients: CoeffLayer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module; a forward that was put on its instance since must still come by the coefficients.

        Args:
            *args: those of the module's class.
            **kwargs: the same.

        Returns:
            The result of its forward.

        Raises:
            AdapterNotAppliedError: it did not.
        """
        if "forward" not in vars(self) or torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        layer = self.coefficients
        layer.was_applied = False
        out = super().__call__(*args, **kwargs)
        if layer.is_active and not layer.was_applied:
            raise AdapterNotAppliedError(
                f"{type(self).__name__} must run the forward that coefficients gave it; its instance carries another "
                "one, put there since, which does not call it. Remove that one with `del module.forward`."
            )
        return out

    def active_layer(self) -> CoeffLayer | None:
        """The coefficients if they are to be applied now, else None; notes that the forward pass came by."""
        layer: CoeffLayer = getattr(self, CHILD_NAME)
        if not torch.compiler.is_compiling():
            layer.was_applied = True
        return layer if layer.is_active else None

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """For `copy` and `pickle`, which cannot find a class that was made at run time."""
        _, _, *state = cast("tuple[Any, ...]", super().__reduce_ex__(max(int(protocol), 2)))
        return (_new, (self.bound_mixin, self.base_class), *state)


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class that a module has when it is not bound.

    Args:
        module: any module, bound or not.

    Returns:
        Its library's own class.
    """
    return module.base_class if isinstance(module, Bound) else type(module)


def require_class_forward(module: nn.Module) -> None:
    """Raise unless a module can be bound; to be called before any module is.

    Args:
        module: any module; one that is bound already can.

    Raises:
        UnsupportedModelError: the instance has a `forward` of its own, which would bypass that of any class.
    """
    if "forward" in vars(module) and not isinstance(module, Bound):
        raise UnsupportedModelError(
            f"{type(module).__name__} must run the forward of its class; its instance carries another one, such as an "
            "accelerate hook or a patch puts there. Attach coefficients before that, or remove it first."
        )


def bind_class(module: nn.Module, mixin: type[Bound]) -> None:
    """Give a module the class `mixin` + its own.

    Args:
        module: the module, not bound yet: `require_class_forward`.
        mixin: what its forward is to do.
    """
    module.__class__ = _bound_class(mixin, type(module))  # type: ignore[arg-type]


def require_unchanged(module: nn.Module) -> None:
    """Raise unless a module can have its own class back.

    Args:
        module: any module; one that is not bound can.

    Raises:
        UnsupportedModelError: something was put on top since, and would be left half removed.
    """
    if not isinstance(module, Bound):
        return
    base, now = class_of(module), type(module)
    own_forward = "forward" in vars(module)
    if own_forward or now is not _bound_class(module.bound_mixin, base):  # type: ignore[arg-type]
        raise UnsupportedModelError(
            f"{base.__name__} must be as coefficients made it before they go; its class is now {now.__name__}"
            f"{' and its instance carries a forward' if own_forward else ''}. Remove the parametrization, sharding or "
            "accelerate hook that was put on it since, then unload."
        )


def unbind_class(module: nn.Module) -> None:
    """Give a module its own class back.

    Args:
        module: the module, bound by `bind_class` and unchanged since: `require_unchanged`.
    """
    module.__class__ = class_of(module)


@cache
def _bound_class(mixin: type[Bound], base: type[nn.Module]) -> type[Bound]:
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    return type(base.__name__, (mixin, base), {**names, "bound_mixin": mixin, "base_class": base})


def _new(mixin: type[Bound], base: type[nn.Module]) -> Bound:
    bound = _bound_class(mixin, base)  # type: ignore[arg-type]
    return bound.__new__(bound)
