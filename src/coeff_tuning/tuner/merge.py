"""Merge coefficients into the output projections of a model, where that is exact.

With `Wo[h]` the part of the output projection that reads head h, and `g(h)` its value head,

    sum_h O[h] Wo[h] = sum_i F[i] X (sum_h coeff[h, i] Wv[g(h)] Wo[h])

so that entries between heads that share one value head, the diagonal among them, move into `Wo`:

    Wo'[i] = sum_h coeff[h, i] Wo[h]

Any other entry asks for a value head of its own, and `approximate` is the place for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coeff_tuning.binders import find_binder
from coeff_tuning.binders.projections import Place, Projections, require_own, require_plain, weight_of
from coeff_tuning.errors import MergeError
from coeff_tuning.tuner.checks import coeff_layers, require_removable
from coeff_tuning.tuner.config import CoeffConfig
from coeff_tuning.tuner.groups import same_value_head
from coeff_tuning.tuner.layer import CHILD_NAME


@dataclass(frozen=True)
class Merge:
    """What is to happen to one attention module.

    Attributes:
        name: its full name.
        coeff: the matrix to merge, `(H, H)`, float64 on the CPU.
        projections: its linear maps, checked.
    """

    name: str
    coeff: Tensor
    projections: Projections

    @property
    def inexact(self) -> Tensor:
        """Where coeff has entries between heads of different value heads, `(H, H)` bool."""
        return (self.coeff != 0) & ~same_value_head(len(self.coeff), self.projections.kv_heads)


def merge_exactly(model: nn.Module, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
    """Merge coefficients into the weights of a model. The coefficients stay attached: take them off afterwards.

    Args:
        model: model with coefficients, changed only if all of it can be merged.
        adapter_names: adapters to merge. None: the active ones.
        safe_merge: raise, before anything is changed, if a merged weight is not finite.

    Raises:
        MergeError: an entry cannot be merged exactly, a projection is not known or not plain, coefficients are not
            finite or switched off, or `safe_merge` found a number that is not finite.
        ValueError: `adapter_names` names adapters that do not exist.
        TypeError: `adapter_names` is a string.
    """
    merges = plan_merges(model, adapter_names)
    _require_exact(merges)
    places = [(merge, place) for merge in merges for place in merge.projections.outputs]
    for merge, place in places if safe_merge else []:
        if not fold(merge.coeff, weight_of(place)).isfinite().all():
            raise MergeError(
                f"Merged weights must be finite; those of {merge.name!r} are not. Nothing was changed; train the "
                "adapter again from before it diverged, or load the model in a dtype of more range."
            )
    for merge, place in places:
        weight_of(place).copy_(fold(merge.coeff, weight_of(place)))


def plan_merges(model: nn.Module, adapter_names: Sequence[str] | None = None) -> list[Merge]:
    """What merging has to change; modules whose matrix is the identity are left out.

    Args:
        model: model with coefficients.
        adapter_names: adapters to merge. None: the active ones.

    Returns:
        One plan for each attention module.
    """
    _require_names(model, adapter_names)
    require_removable(model)
    plans = []
    for layer_name, layer in coeff_layers(model):
        name = layer_name.removesuffix(f".{CHILD_NAME}")
        if layer.disable_adapters:
            raise MergeError("Adapters must be enabled to be merged; these are disabled. Merge outside of disabling.")
        coeff = layer.coeff_in_eval(adapter_names).cpu().double()
        if not coeff.isfinite().all():
            raise MergeError(f"Coefficients must be finite to be merged; those of {name!r} are not.")
        if not torch.equal(coeff, torch.eye(len(coeff), dtype=coeff.dtype)):
            try:
                projections = find_projections(model, name, layer.num_heads)
                for place in projections.outputs:
                    require_place(model, name, place)
                    _require_heads(place, len(coeff), projections.kv_heads)
            except MergeError as error:
                raise MergeError(f"{name!r} cannot be merged. {error}") from None
            plans.append(Merge(name, coeff, projections))
    return plans


def find_projections(model: nn.Module, name: str, heads: int) -> Projections:
    """The linear maps around an attention module, as its binder says.

    Args:
        model: the model.
        name: full name of the module.
        heads: its number of heads.

    Returns:
        The maps, not checked yet.

    Raises:
        MergeError: they are not known.
    """
    module, parent = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
    binder = find_binder(module)
    assert binder is not None, f"{name} has coefficients and no binder serves it"
    return binder.projections(module, parent, heads)


def mixed_kv_heads(config: CoeffConfig, model: nn.Module, name: str, heads: int) -> int | None:
    """Number of value heads of an attention module whose adapter mixes only heads that share one.

    Args:
        config: config of the adapter.
        model: the model.
        name: full name of the module.
        heads: its number of heads.

    Returns:
        The number; None with `mixing="full"`, which does not need it.

    Raises:
        MergeError: it is not known.
    """
    return find_projections(model, name, heads).kv_heads if config.mixing == "group" else None


def require_place(model: nn.Module, name: str, place: Place) -> None:
    """Raise unless a projection can be written: a plain layer that belongs to this module alone.

    Args:
        model: the model.
        name: full name of the attention module.
        place: its projection.
    """
    require_plain(place)
    require_own(model, model.get_submodule(name), place)


def fold(coeff: Tensor, weight: Tensor) -> Tensor:
    """The output projection with coefficients merged into it: `Wo'[i] = sum_h coeff[h, i] Wo[h]`.

    Args:
        coeff: `(H, H)`.
        weight: `(D, H * Ev)`, heads outer.

    Returns:
        As `weight`, computed in float32 or wider.
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    heads = weight.to(dtype).unflatten(1, (len(coeff), -1))  # (D, H, Ev)
    folded = torch.einsum("hi,ohd->oid", coeff.to(weight.device, dtype), heads)
    return folded.flatten(1).to(weight.dtype)


def _require_names(model: nn.Module, adapter_names: Sequence[str] | None) -> None:
    if isinstance(adapter_names, str):
        raise TypeError(f"adapter_names must be a list of names; got {adapter_names!r}.")
    known = {name for _, layer in coeff_layers(model) for name in layer.adapters}
    unknown = sorted(set(adapter_names or []) - known)
    if unknown:
        raise ValueError(f"adapter_names must name adapters of this model, {sorted(known)}; {unknown} are not.")


def _require_heads(place: Place, heads: int, kv_heads: int) -> None:
    width = weight_of(place).shape[1]
    if width % heads or heads % kv_heads:
        raise MergeError(
            f"An output projection must read {heads} heads of one size, which share {kv_heads} value heads evenly; it "
            f"reads {width} numbers."
        )


def _require_exact(merges: Sequence[Merge]) -> None:
    inexact = {merge.name: count for merge in merges if (count := int(merge.inexact.sum()))}
    if inexact:
        raise MergeError(
            f"Coefficients merge exactly only where they mix heads that share one value head; {sum(inexact.values())} "
            f"entries in {len(inexact)} modules feed a head that has another value head, first in "
            f"{list(inexact)[:3]}. Nothing was changed. Keep the adapter attached (save_pretrained writes a few "
            "kilobytes), merge with an error that is reported by coeff_tuning.merge_approximately, or train with "
            "CoeffConfig(mixing='group'), which merges exactly. unload() gives the base model."
        )
