"""Weights of adapters, under the names that LoRA's have: diffusers calls them on every adapter layer of a pipeline."""

from __future__ import annotations

from typing import Any


class Scaled:
    """An adapter layer whose adapters have weights, in `scaling`: 1 is what was trained, 0 the base model."""

    scaling: dict[str, float]
    adapters: Any
    active_adapters: Any

    @property
    def r(self) -> Any:
        """The adapters by name; diffusers counts them to name the next one."""
        return self.adapters

    def set_scale(self, adapter_name: str, scale: float) -> None:
        """Weigh an adapter: `coeff = I + scale * coeff_delta`.

        Args:
            adapter_name: its name; nothing is done where this layer does not hold it.
            scale: its weight.
        """
        if adapter_name in self.scaling:
            self.scaling[adapter_name] = scale

    def scale_layer(self, scale: float) -> None:
        """Multiply the weights of the active adapters.

        Args:
            scale: the factor.
        """
        for name in self._active():
            self.scaling[name] *= scale

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer`.

        Args:
            scale: its factor. None: the weights of the active adapters are 1 again.
        """
        for name in self._active():
            self.scaling[name] = 1.0 if scale is None else self.scaling[name] / scale

    def _active(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.scaling]
