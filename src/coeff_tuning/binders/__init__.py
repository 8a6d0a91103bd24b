"""Which attention class is served by which binder. A binder makes a library's attention module call our op.

- `transformers`, `torch_mha`, `diffusers`, and `sdpa` for classes that call `scaled_dot_product_attention` themselves:
  one binder each; `timm` and `open_clip` are lists of such classes, `layouts` holds them and yours
- `base`, `bound`, `eager`: what a binder offers, the class that a module gets, attention that returns its maps
- `projections`, `transformers_projections`: the linear maps around the attention, which merging changes
"""

from __future__ import annotations

from torch import nn

from coeff_tuning.binders import diffusers, open_clip, sdpa, timm, torch_mha, transformers
from coeff_tuning.binders.base import Binder
from coeff_tuning.binders.layouts import register_attention, register_library

BINDERS: tuple[Binder, ...] = (transformers.BINDER, torch_mha.BINDER, sdpa.BINDER, diffusers.BINDER)
register_library(timm.LAYOUTS, timm.REFUSED)
register_library(open_clip.LAYOUTS, open_clip.REFUSED)


def find_binder(module: nn.Module) -> Binder | None:
    """The binder that serves a module.

    Args:
        module: any module.

    Returns:
        The first binder whose `serves` accepts the module, or None.
    """
    return next((binder for binder in BINDERS if binder.serves(module)), None)


def why_refused(module: nn.Module) -> str | None:
    """Why a module, known as attention of a library that we serve, cannot get coefficients.

    Args:
        module: any module.

    Returns:
        The reason, or None if nothing is known against it.
    """
    return next((reason for binder in BINDERS if (reason := binder.refuses(module)) is not None), None)


__all__ = ["BINDERS", "Binder", "find_binder", "register_attention", "why_refused"]
