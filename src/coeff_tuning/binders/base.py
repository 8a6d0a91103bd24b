"""What every binder offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


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
    """

    name: str
    serves: Callable[[nn.Module], bool]
    num_heads: Callable[[nn.Module], int]
    bind: Callable[[nn.Module], None]
    unbind: Callable[[nn.Module], None]
