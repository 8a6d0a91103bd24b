"""CoeffLayer: the trained numbers of one attention layer, and the (H, H) matrix they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.tuner.groups import same_value_head
from coeff_tuning.tuner.scaling import Scaled

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


class CoeffLayer(Scaled, nn.Module, BaseTunerLayer):  # type: ignore[misc]
    """Coefficients of one attention layer with H heads, for any number of named adapters.

        coeff = I + sum over active adapters a of scaling[a] * dropout(coeff_delta[a])        # (H, H), float32

    For an adapter with `parameterization="direct"`, `coeff_delta_direct[a]` is the whole matrix and stands for
    `I + coeff_delta[a]`. The layer is a child of the attention module that it serves (`attention.coefficients`); it
    holds no copy of and no reference to that module.

    Args:
        num_heads: number H of attention heads.
        device: where new coefficients are put.
        dtype: dtype of the attention module's weights; coefficients are float32 whatever it is.

    Attributes:
        coeff_delta: the trained `(H, H)` matrix of each residual adapter, by adapter name.
        coeff_delta_direct: the trained `(H, H)` matrix of each direct adapter, by adapter name.
        scaling: weight of each adapter, 1 unless `set_scale` was called.
        kv_heads: number of value heads, for each adapter of `mixing="group"`; its entries between heads of different
            value heads are zero.
        sample_adapters: adapter name of each sample while a mixed batch runs, else `None`.
        sample_coeff: their matrices, `(B, H, H)`; `None` where this layer holds none of the adapters.
        was_applied: whether a forward pass of the attention module has reached this layer.

    Cost: `H * H` numbers per adapter.
    """

    adapter_layer_names = (DELTA_NAME, DIRECT_NAME)
    other_param_names = ("coeff_dropout", "scaling", "kv_heads")

    host_marker: Tensor
    active_adapters: list[str]
    set_adapter: Callable[..., None]

    def __init__(self, num_heads: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.coeff_delta = nn.ParameterDict()
        self.coeff_delta_direct = nn.ParameterDict()
        self.coeff_dropout: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self.kv_heads: dict[str, int] = {}
        self.merged_adapters: list[str] = []
        self.sample_adapters: Sequence[str] | None = None
        self.sample_coeff: Tensor | None = None
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
        if self.sample_adapters is not None:
            return self.sample_coeff is not None
        return any(self.holds(name) for name in self.active_adapters)

    def holds(self, adapter_name: str) -> bool:
        """Whether this layer has a matrix of an adapter.

        Args:
            adapter_name: its name.

        Returns:
            Whether it has one.
        """
        return adapter_name in self.coeff_delta or adapter_name in self.coeff_delta_direct

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
        if kv_heads is not None:
            delta = delta * same_value_head(self.num_heads, kv_heads, device)
        self.put(adapter_name, nn.Parameter(delta), config, kv_heads)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def put(self, adapter_name: str, matrix: nn.Parameter, config: CoeffConfig, kv_heads: int | None = None) -> None:
        """Hold an adapter's matrix; which adapters are active and trainable stays as it is.

        Args:
            adapter_name: its name.
            matrix: `(H, H)`.
            config: its dropout and parameterization.
            kv_heads: as in `update_layer`.
        """
        holder = self.coeff_delta_direct if config.parameterization == "direct" else self.coeff_delta
        holder[adapter_name] = matrix
        if kv_heads is not None:
            self.kv_heads[adapter_name] = kv_heads
        self.coeff_dropout[adapter_name] = config.coeff_dropout
        self.scaling[adapter_name] = 1.0

    def set_samples(self, adapter_names: Sequence[str] | None) -> None:
        """Start a mixed batch, whose matrices are built once for all its passes, or end it.

        Args:
            adapter_names: name of the adapter of each sample. None: the active adapters serve every sample again.
        """
        names = [] if adapter_names is None else adapter_names
        self.sample_coeff = self._coeff_per_sample(names) if any(map(self.holds, names)) else None
        self.sample_adapters = adapter_names

    def coeff(self) -> Tensor:
        """The matrix applied now: all active adapters, with dropout in training mode.

        Returns:
            `(H, H)`, or `(B, H, H)` while a mixed batch runs. Row h is the mixture used by output head h. The identity
            where no adapter is active.
        """
        if self.sample_coeff is not None:
            return self.sample_coeff
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
        holder = self.coeff_delta if adapter_name in self.coeff_delta else self.coeff_delta_direct
        matrix: Tensor = holder[adapter_name]
        if hasattr(matrix, "full_tensor"):  # a DTensor, not imported here: not every torch has torch.distributed
            matrix = self._gathered(matrix)
        if adapter_name in self.kv_heads:
            matrix = matrix * self.mixed_entries(adapter_name)
        scale = self.scaling[adapter_name]
        return matrix if scale == 1 else scale * matrix

    def _gathered(self, shard: Any) -> Tensor:
        """The whole of a matrix that FSDP2 shards, outside the forward pass that makes it whole."""
        if torch.is_grad_enabled() and shard.requires_grad:
            raise UnsupportedError(
                f"Coefficients must be whole where they are trained; those of this layer are a shard on "
                f"{shard.device_mesh.size()} devices. Let FSDP2 wrap whole transformer layers, whose forward gathers "
                "them, and not CoeffLayer; coeff_in_eval() reads a shard."
            )
        return shard.full_tensor()  # type: ignore[no-any-return]

    def _coeff_of(self, adapter_names: Sequence[str], training: bool) -> Tensor:
        coeff = torch.eye(self.num_heads, device=self.host_marker.device)
        names = [name for name in adapter_names if self.holds(name)]
        if direct := sum(self.scaling[name] for name in names if name in self.coeff_delta_direct):
            coeff = (1 - direct) * coeff
        for name in names:
            matrix = self._matrix(name)
            coeff = coeff + (F.dropout(matrix, self.coeff_dropout[name]) if training else matrix)
        return coeff

    def _coeff_per_sample(self, adapter_names: Sequence[str]) -> Tensor:
        identity = torch.eye(self.num_heads, device=self.host_marker.device)
        rows = {name: row for row, name in enumerate(dict.fromkeys(adapter_names))}
        deltas = [self._matrix(name) if self.holds(name) else torch.zeros_like(identity) for name in rows]
        direct = [self.scaling[name] if name in self.coeff_delta_direct else 0.0 for name in rows]
        fixed = 1 - torch.tensor(direct, device=identity.device)
        matrices = torch.stack(deltas) + fixed[:, None, None] * identity  # (adapters, H, H)
        return matrices[torch.tensor([rows[name] for name in adapter_names], device=identity.device)]  # (B, H, H)

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
