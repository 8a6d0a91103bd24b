"""Heads that share one value head: the entries between them merge exactly, and `mixing="group"` trains only those."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from coeff_tuning.errors import AdapterMismatchError

if TYPE_CHECKING:
    from coeff_tuning.tuner.layer import CoeffLayer


def same_value_head(heads: int, kv_heads: int, device: torch.device | None = None) -> Tensor:
    """Which pairs of heads share one value head.

    Args:
        heads: number H of query heads.
        kv_heads: number of value heads.
        device: where the result is put.

    Returns:
        `(H, H)` bool.
    """
    group = torch.arange(heads, device=device) // (heads // kv_heads)
    return group[:, None] == group


def require_groups(
    layers: Iterable[tuple[str, CoeffLayer]], state_dict: Mapping[str, Tensor], adapter_names: Set[str]
) -> None:
    """Raise if saved coefficients would put numbers where an adapter of `mixing="group"` has none.

    Args:
        layers: names and layers of the model.
        state_dict: the saved tensors, which fit the layers.
        adapter_names: the adapters that are loaded.

    Raises:
        AdapterMismatchError: they would.
    """
    for name, layer in layers:
        for adapter in adapter_names & set(layer.kv_heads):
            key = next(k for k in state_dict if k.startswith(f"{name}.") and k.endswith(f".{adapter}"))
            require_zeros(key, state_dict[key], layer.mixed_entries(adapter))


def require_zeros(key: str, matrix: Tensor, mixed: Tensor) -> None:
    """Raise if a saved matrix has numbers outside the entries that `mixing="group"` has.

    Args:
        key: its name, for the message.
        matrix: `(H, H)`.
        mixed: `(H, H)` bool, the entries that may hold numbers.

    Raises:
        AdapterMismatchError: it has.
    """
    outside = int(matrix.cpu()[~mixed.cpu()].count_nonzero())
    if outside:
        raise AdapterMismatchError(
            f"Coefficients of mixing='group' must be zero between heads of different value heads; {outside} such "
            f"numbers of {key} are not. Load them under a new adapter name."
        )
