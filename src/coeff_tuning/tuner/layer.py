"""CoeffLayer: the trained numbers of one attention layer, and the (H, H) matrix they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from coeff_tuning.tuner.groups import same_value_head

if TYPE_CHECKING:
    from coeff_tuning.tuner.config import CoeffConfig

DELTA_NAME = "coeff_delta"
# Matrices of direct adapters have a key of their own, so that a file of one kind never loads into the other.
DIRECT_NAME = "coeff_delta_direct"
# Name of the child that an adapted attention module gets. PEFT sorts saved keys by adapter name, so "coeff" would claim
# the keys of every adapter beside one called "coeff"; and it passes over modules with "coeff_" in their names.
CHILD_NAME = "coefficients"
# PEFT's name for "this sample uses no adapter" in a mixed batch.
BASE_ADAPTER = "__base__"


class CoeffLayer(nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """Coefficients of one attention layer with H heads, for any number of named adapters.

        coeff = I + sum over active adapters a of dropout(coeff_delta[a])        # (H, H), float32

    For an adapter with `parameterization="direct"`, `coeff_delta_direct[a]` is the whole matrix and its `I` is left
    out. The layer is a child of the attention module that it serves (`attention.coefficients`); it holds no copy of
    and no reference to that module.

    Args:
        num_heads: number H of attention heads.
        device: where new coefficients are put.
        dtype: dtype of the attention module's weights; coefficients are float32 whatever it is.

    Attributes:
        coeff_delta: the trained `(H, H)` matrix of each residual adapter, by adapter name.
        coeff_delta_direct: the trained `(H, H)` matrix of each direct adapter, by adapter name.
        kv_heads: number of value heads, for each adapter of `mixing="group"`; its entries between heads of different
            value heads are zero.
        sample_adapters: adapter name of each sample while a mixed batch runs, else `None`.
        was_applied: whether a forward pass of the attention module has reached this layer.

    Cost: `H * H` numbers per adapter.
    """

    adapter_layer_names = (DELTA_NAME, DIRECT_NAME)
    other_param_names = ("coeff_dropout", "kv_heads")

    host_marker: Tensor
    active_adapters: list[str]
    set_adapter: Callable[..., None]

    def __init__(self, num_heads: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.coeff_delta = nn.ParameterDict()
        self.coeff_delta_direct = nn.ParameterDict()
        self.coeff_dropout: dict[str, float] = {}
        self.kv_heads: dict[str, int] = {}
        self.merged_adapters: list[str] = []
        self.sample_adapters: Sequence[str] | None = None
        self.was_applied = False
        # Follows the attention module through .to(), so that a later adapter lands on the right device.
        self.register_buffer("host_marker", torch.empty(0, device=device, dtype=dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        """Not there: PEFT would take it for the weight of a wrapped linear layer."""
        raise AttributeError("CoeffLayer has no weight; see coeff_delta.")

    @property
    def bias(self) -> Tensor:
        """Not there, for the same reason as `weight`."""
        raise AttributeError("CoeffLayer has no bias; see coeff_delta.")

    @property
    def adapters(self) -> dict[str, nn.Parameter]:
        """The trained matrix of every adapter that this layer holds, residual or direct, by name."""
        return {**self.coeff_delta, **self.coeff_delta_direct}

    @property
    def is_active(self) -> bool:
        """Whether this layer changes its attention module now: enabled, with an active adapter that it holds."""
        if self.disable_adapters:
            return False
        names = self.active_adapters if self.sample_adapters is None else self.sample_adapters
        return any(name in self.adapters for name in names)

    def update_layer(self, adapter_name: str, config: CoeffConfig, kv_heads: int | None = None) -> None:
        """Add an adapter.

        Args:
            adapter_name: its name.
            config: its start, dropout and parameterization.
            kv_heads: number of value heads if only heads that share one are mixed. None: all are.
        """
        shape = (self.num_heads, self.num_heads)
        device = self.host_marker.device
        if config.init == "random":
            delta = torch.randn(shape, device=device) * config.init_scale
        elif config.init == "identity":
            delta = torch.eye(self.num_heads, device=device)
        else:
            delta = torch.zeros(shape, device=device)
        holder = self.coeff_delta_direct if config.parameterization == "direct" else self.coeff_delta
        if kv_heads is not None:
            self.kv_heads[adapter_name] = kv_heads
            delta = delta * self.mixed_entries(adapter_name)
        holder[adapter_name] = nn.Parameter(delta)
        self.coeff_dropout[adapter_name] = config.coeff_dropout
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def coeff(self) -> Tensor:
        """The matrix applied now: all active adapters, with dropout in training mode.

        Returns:
            `(H, H)`, or `(B, H, H)` while a mixed batch runs. Row h is the mixture used by output head h. The identity
            where no adapter is active.
        """
        if self.sample_adapters is not None:
            return self._coeff_per_sample(self.sample_adapters)
        return self._coeff_of([] if self.disable_adapters else self.active_adapters, self.training)

    @torch.no_grad()
    def coeff_in_eval(self, adapter_names: Sequence[str] | None = None) -> Tensor:
        """The matrix of some adapters without dropout, whatever mode the layer is in.

        Args:
            adapter_names: names of adapters. None: the active ones.

        Returns:
            `(H, H)`.
        """
        return self._coeff_of(self.active_adapters if adapter_names is None else adapter_names, False)

    def mixed_entries(self, adapter_name: str) -> Tensor:
        """Which entries an adapter of `mixing="group"` trains: those between heads that share one value head.

        Args:
            adapter_name: its name, a key of `kv_heads`.

        Returns:
            `(H, H)` bool.
        """
        return same_value_head(self.num_heads, self.kv_heads[adapter_name], self.host_marker.device)

    def _matrix(self, adapter_name: str) -> Tensor:
        matrix = self.adapters[adapter_name]
        return matrix * self.mixed_entries(adapter_name) if adapter_name in self.kv_heads else matrix

    def _coeff_of(self, adapter_names: Sequence[str], training: bool) -> Tensor:
        identity = torch.eye(self.num_heads, device=self.host_marker.device)
        adapters = self.adapters
        names = [name for name in adapter_names if name in adapters]
        deltas = [F.dropout(self._matrix(name), self.coeff_dropout[name], training) for name in names]
        direct = sum(name in self.coeff_delta_direct for name in names)
        coeff = identity if direct == 0 else (1 - direct) * identity
        return sum(deltas, start=coeff)

    def _coeff_per_sample(self, adapter_names: Sequence[str]) -> Tensor:
        unique = list(dict.fromkeys(adapter_names))
        matrices = torch.stack([self._coeff_of([name], self.training) for name in unique])  # (adapters, H, H)
        index = torch.tensor([unique.index(name) for name in adapter_names], device=matrices.device)
        return matrices[index]  # (B, H, H)

    def set_weighted_sum(self, adapter_name: str, weights: dict[str, float]) -> None:
        """Set an adapter to `coeff = I + sum_a weights[a] * (coeff_a - I)`; adapters not held here count as `I`.

        Args:
            adapter_name: an adapter that this layer holds.
            weights: weight of each adapter in the sum; all of the same parameterization.
        """
        adapters = self.adapters
        held = {name: weight for name, weight in weights.items() if name in adapters}
        zero = torch.zeros_like(adapters[adapter_name].data)
        total = sum((weight * adapters[name].data for name, weight in held.items()), start=zero)
        if adapter_name in self.coeff_delta_direct:
            rest = 1.0 - sum(held.values())
            if rest:  # a single weight of 1.0 copies the adapter bit for bit
                total = total + rest * torch.eye(self.num_heads, device=self.host_marker.device)
        adapters[adapter_name].data.copy_(total)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Do nothing: LoRA's own merge visits every adapter layer, and coefficients stay active beside it.

        Args:
            safe_merge: not used.
            adapter_names: not used.
        """

    def unmerge(self) -> None:
        """Do nothing, as `merge`."""

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether the adapter can be written as a LoRA: never.

        Args:
            adapter_name: not used.

        Returns:
            False.
        """
        return False

    def _get_base_layer_device_and_dtype(self, base_layer: Any) -> tuple[torch.device, None]:
        """Device of the attention module; no dtype, so that PEFT leaves the coefficients in float32."""
        return self.host_marker.device, None

    def extra_repr(self) -> str:
        """The number of heads and the adapters, for `print(model)`."""
        return f"num_heads={self.num_heads}, adapters={list(self.adapters)}"


@torch.no_grad()
def set_weighted_module(wrapper: Any, adapter_name: str, weights: dict[str, float]) -> None:
    """Set a saved module to `original + sum_a weights[a] * (module_a - original)`.

    Args:
        wrapper: PEFT's `ModulesToSaveWrapper`.
        adapter_name: the adapter whose module is set.
        weights: weight of each adapter in the sum.
    """
    rest = 1.0 - sum(weights.values())
    for name, target in wrapper.modules_to_save[adapter_name].named_parameters():
        parts = [w * wrapper.modules_to_save[a].get_parameter(name) for a, w in weights.items()]
        if rest:  # a single weight of 1.0 copies the module bit for bit
            parts.append(rest * wrapper.original_module.get_parameter(name))
        target.copy_(sum(parts[1:], start=parts[0]))
