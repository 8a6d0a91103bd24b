"""Which attention class is served by which binder. A binder makes a library's attention module call our op."""

from __future__ import annotations

from torch import nn

from coeff_tuning.binders import torch_mha, transformers
from coeff_tuning.binders.base import Binder

BINDERS: tuple[Binder, ...] = (transformers.BINDER, torch_mha.BINDER)


def find_binder(module: nn.Module) -> Binder | None:
    """The binder that serves a module.

    Args:
        module: any module.

    Returns:
        The first binder whose `serves` accepts the module, or None.
    """
    return next((binder for binder in BINDERS if binder.serves(module)), None)


__all__ = ["BINDERS", "Binder", "find_binder"]
