"""Weighted sums of adapters: what has a meaning, and the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from coeff_tuning.tuner.checks import coeff_layers, require_name
from coeff_tuning.tuner.config import CoeffConfig
from coeff_tuning.tuner.layer import CoeffLayer


def require_summable(
    configs: Mapping[str, PeftConfig], adapters: Sequence[str], weights: Sequence[float], adapter_name: str
) -> None:
    """Raise unless a weighted sum of adapters has a meaning.

    Args:
        configs: configs of the adapters that exist.
        adapters: names to add up.
        weights: one weight for each.
        adapter_name: name of the sum.

    Raises:
        ValueError: it has none; the message says why.
    """
    unknown = [name for name in adapters if not isinstance(configs.get(name), CoeffConfig)]
    if unknown or not adapters:
        raise ValueError(f"adapters must name coefficient adapters among {list(configs)}; got {list(adapters)}.")
    if len(adapters) != len(weights) or len(set(adapters)) != len(adapters):
        raise ValueError(
            "There must be one weight for each adapter, and each adapter once; got "
            f"{list(adapters)} and {list(weights)}."
        )
    if adapter_name in configs:
        raise ValueError(f"adapter_name must be a new name; {adapter_name!r} exists already.")
    if not all(isinstance(weight, (int, float)) and math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights must be finite numbers; got {list(weights)}.")
    require_name(adapter_name)
    heads = {name: configs[name].modules_to_save for name in adapters}
    if len({str(modules) for modules in heads.values()}) > 1:
        raise ValueError(f"adapters must have the same modules_to_save; got {heads}.")
    kinds = {configs[name].parameterization for name in adapters}
    if len(kinds) > 1:
        raise ValueError(f"adapters must all be residual or all be direct; {list(adapters)} are {sorted(kinds)}.")


def config_of_sum(configs: Sequence[CoeffConfig], target_modules: list[str]) -> CoeffConfig:
    """Config of a weighted sum.

    Args:
        configs: those of its parts; the first gives what all of them need not share.
        target_modules: the modules that any of them adapts.

    Returns:
        The config.
    """
    first = configs[0]
    return CoeffConfig(
        task_type=first.task_type,
        target_modules=target_modules,
        coeff_dropout=first.coeff_dropout,
        parameterization=first.parameterization,
        mixing="group" if all(config.mixing == "group" for config in configs) else "full",
        inference_mode=first.inference_mode,
        base_model_name_or_path=first.base_model_name_or_path,
        allow_unused=first.allow_unused,
        modules_to_save=first.modules_to_save,
    )


@torch.no_grad()
def set_sum(model: nn.Module, adapter_name: str, weights: Mapping[str, float]) -> None:
    """Set an adapter, its saved modules included, to a weighted sum of others.

    Args:
        model: the adapted model.
        adapter_name: the adapter, attached already.
        weights: weight of each adapter in the sum; all of the same parameterization.
    """
    for _, layer in coeff_layers(model):
        if layer.holds(adapter_name):
            _set_matrix(layer, adapter_name, weights)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            _set_module(module, adapter_name, weights)


def _set_matrix(layer: CoeffLayer, adapter_name: str, weights: Mapping[str, float]) -> None:
    """Set `coeff = I + sum_a weights[a] * (coeff_a - I)`; adapters that the layer does not hold count as `I`."""
    adapters = layer.adapters
    held = {name: weight for name, weight in weights.items() if name in adapters}
    total = sum((w * adapters[name] for name, w in held.items()), start=torch.zeros_like(adapters[adapter_name]))
    rest = 1.0 - sum(held.values())
    if rest and adapter_name in layer.coeff_delta_direct:  # a single weight of 1.0 copies the adapter bit for bit
        total = total + rest * torch.eye(layer.num_heads, device=total.device)
    adapters[adapter_name].copy_(total)


def _set_module(wrapper: Any, adapter_name: str, weights: Mapping[str, float]) -> None:
    """Set a saved module, running statistics included, to `original + sum_a weights[a] * (module_a - original)`."""
    rest = 1.0 - sum(weights.values())
    held = {name: wrapper.modules_to_save[name].state_dict() for name in weights}
    original = wrapper.original_module.state_dict()
    for key, target in wrapper.modules_to_save[adapter_name].state_dict().items():
        parts = [weight * held[name][key] for name, weight in weights.items()]
        if rest:  # a single weight of 1.0 copies the module bit for bit
            parts.append(rest * original[key])
        target.copy_(sum(parts[1:], start=parts[0]))
