"""What every binder offers, and the check that all of them make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from coeff_tuning.binders.projections import Projections, unknown_projections
from coeff_tuning.errors import AdapterMismatchError


def no_refusal(module: nn.Module) -> str | None:
    """Why a module, though it is attention of the binder's library, cannot be served: never.

    Args:
        module: any module.

    Returns:
        None.
    """
    return None


@dataclass(frozen=True)
class Binder:
    """How coefficients get into the attention modules of one library.

    Attributes:
        name: the library.
        serves: whether the attention of this module can be served.
        num_heads: number of attention heads of a module that is served; raises if it cannot be told or if the module
            is set up in a way that cannot be served.
        bind: make the module's attention use its child `coefficients`, which it has already.
        unbind: undo `bind`, bit for bit.
        refuses: the reason if a module is attention of the library that cannot be served. A model that has such
            modules gets coefficients only where `target_modules` names them.
        projections: the linear maps around the attention of a module, given the module that holds it and the number
            of heads; raises
            `MergeError` if they are not known.
    """

    name: str
    serves: Callable[[nn.Module], bool]
    num_heads: Callable[[nn.Module], int]
    bind: Callable[[nn.Module], None]
    unbind: Callable[[nn.Module], None]
    refuses: Callable[[nn.Module], str | None] = no_refusal
    projections: Callable[[nn.Module, nn.Module, int], Projections] = unknown_projections


def coeff_for(module: nn.Module, coeff: Tensor, heads: int, batch: int) -> Tensor:
    """Fit the matrix, or the matrix of each sample, to an attention call.

    Args:
        module: the attention module, for messages.
        coeff: `(H, H)`, or `(samples, H, H)` in a mixed batch.
        heads: number of heads of the query.
        batch: number of samples of the query: that of `coeff`, or consecutive copies of each (beams, windows).

    Returns:
        `(H, H)` or `(batch, H, H)`.

    Raises:
        AdapterMismatchError: the query has another number of heads or samples.
    """
    if coeff.shape[-1] != heads:
        raise AdapterMismatchError(
            f"{type(module).__name__} must attend with {coeff.shape[-1]} heads, the size of its coefficients; its "
            f"query has {heads} heads."
        )
    if coeff.dim() == 2 or coeff.shape[0] == batch:
        return coeff
    if batch % coeff.shape[0]:
        raise AdapterMismatchError(
            f"adapter_names must name one adapter for each sample that reaches {type(module).__name__}; there are "
            f"{coeff.shape[0]} names for a batch of {batch}."
        )
    return coeff.repeat_interleave(batch // coeff.shape[0], dim=0)
