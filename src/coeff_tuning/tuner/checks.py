"""Checks that keep coefficients from being silently unused or lost beside another PEFT method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn

from coeff_tuning.binders.bound import require_unchanged
from coeff_tuning.errors import AdapterNotAppliedError, CombinationError
from coeff_tuning.tuner.config import CoeffConfig
from coeff_tuning.tuner.layer import BASE_ADAPTER, CHILD_NAME, CoeffLayer

LAYER_DROP_NAMES = ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")
ORDER_ADVICE = (
    "Attach the other method first with get_peft_model, then the coefficients with "
    "coeff_tuning.add_coeff(peft_model, CoeffConfig(...))."
)


def coeff_layers(model: nn.Module) -> Iterable[tuple[str, CoeffLayer]]:
    """Name and layer of every `CoeffLayer` in a model.

    Args:
        model: the model.

    Returns:
        Pairs of full name and layer.
    """
    return ((name, module) for name, module in model.named_modules() if isinstance(module, CoeffLayer))


# While the model is used


def watch(model: nn.Module) -> None:
    """Check a model that coefficients were just attached to.

    The next forward passes, until one succeeds, must reach every coefficient. Every forward pass and every save must
    find the coefficients known to the model's `peft_config`, attached after any other method.

    Args:
        model: the model.
    """
    unwatch(model)
    model.register_forward_hook(_after_pass)
    model.register_forward_pre_hook(_before_pass)
    model.register_state_dict_pre_hook(_before_save)


def unwatch(model: nn.Module) -> None:
    """Remove the hooks of `watch`.

    Args:
        model: the model.
    """
    _remove(model._forward_hooks, _after_pass)
    _remove(model._forward_pre_hooks, _before_pass)
    _remove(model._state_dict_pre_hooks, _before_save)


def _remove(hooks: dict[int, Any], own: Any) -> None:
    for key in [key for key, hook in list(hooks.items()) if hook is own]:
        hooks.pop(key, None)  # another thread may have been faster


def _before_pass(model: nn.Module, args: Any) -> None:
    if not torch.compiler.is_compiling():
        _require_order(model)


def _before_save(model: nn.Module, prefix: str, keep_vars: bool) -> None:
    # diffusers reads the state dict of its model while it loads LoRA; PEFT saves it as a part of a PeftModel.
    if prefix or not hasattr(model, "load_lora_adapter"):
        _require_order(model)


def _require_order(model: nn.Module) -> None:
    if has_own_adapters(model):
        return
    configs: Mapping[str, PeftConfig] = getattr(model, "peft_config", {})
    kinds = [isinstance(config, CoeffConfig) for config in configs.values()]
    first = next((layer for _, layer in coeff_layers(model)), None)
    held = [] if first is None else list(first.adapters)
    is_orphan = any(not isinstance(configs.get(name), CoeffConfig) for name in held)
    if kinds and (is_orphan or (kinds[0] and not all(kinds))):
        raise CombinationError(
            f"Coefficients must be attached after the other PEFT method; {type(model).__name__} had coefficients first "
            f"and now holds {[str(config.peft_type.value) for config in configs.values()]}, and a save would lose the "
            f"coefficients. {ORDER_ADVICE}"
        )


def _after_pass(model: nn.Module, args: Any, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    config = getattr(model, "config", None)
    if model.training and any(getattr(config, name, 0) for name in LAYER_DROP_NAMES):
        unused = [name for name, layer in coeff_layers(model) if not layer.was_applied]
        if not unused:
            _remove(model._forward_hooks, _after_pass)
        return  # a layer skipped at random now is reached in a later pass
    configs: Mapping[str, PeftConfig] = getattr(model, "peft_config", {})
    layers = list(coeff_layers(model))
    unused = [
        name.removesuffix(f".{CHILD_NAME}")
        for name, layer in layers
        if layer.is_active
        and not layer.was_applied
        and any(not getattr(configs.get(a), "allow_unused", False) for a in layer.adapters)
    ]
    if unused:
        raise AdapterNotAppliedError(
            f"Every attention module with coefficients must take part in a forward pass; {len(unused)} of "
            f"{len(layers)} did not: {unused[:6]}. Restrict target_modules to the part of the model that you run, or "
            "accept it with CoeffConfig(allow_unused=True)."
        )
    if all(layer.is_active for _, layer in layers):  # else it was a pass with adapters off, which proves nothing
        _remove(model._forward_hooks, _after_pass)


# Before it is changed


def require_removable(model: nn.Module) -> None:
    """Raise unless coefficients can be taken off every module; to be called before the first change.

    Args:
        model: the model.

    Raises:
        UnsupportedModelError: something was put on a module since, and would be left half removed.
    """
    for name, _ in coeff_layers(model):
        require_unchanged(model.get_submodule(name.rpartition(".")[0]))


# Naming and combining


def require_name(adapter_name: str) -> None:
    """Raise unless a name can be a key of `coeff_delta`.

    Args:
        adapter_name: name of a new adapter.

    Raises:
        ValueError: it is empty, has a dot, is a method of `torch.nn.ParameterDict`, or means no adapter.
    """
    is_reserved = adapter_name == BASE_ADAPTER or hasattr(nn.ParameterDict, adapter_name)
    if not adapter_name or "." in adapter_name or is_reserved:
        raise ValueError(
            f"adapter_name must be a name without dots that torch.nn.ParameterDict does not use itself, such as "
            f"'default', and not {BASE_ADAPTER!r}; got {adapter_name!r}."
        )


def has_own_adapters(model: nn.Module) -> bool:
    """Whether diffusers put adapters into a model itself, as `pipe.load_lora_weights` does.

    They need no PeftModel: diffusers saves them and takes them off, whatever else the model carries.

    Args:
        model: a model.

    Returns:
        Whether it did.
    """
    is_wrapper = isinstance(model, PeftModel)  # which passes on what it is asked for
    return not is_wrapper and hasattr(model, "load_lora_adapter") and bool(model._hf_peft_config_loaded)


def require_fresh(model: nn.Module) -> None:
    """Raise if a model carries another PEFT method already, so that `get_peft_model` would stack two PeftModels.

    Args:
        model: the model about to get coefficients.

    Raises:
        CombinationError: it does, and diffusers did not load them itself.
    """
    if has_own_adapters(model):
        return
    configs: Any = getattr(model, "peft_config", {})
    others = [name for name, config in configs.items() if not isinstance(config, CoeffConfig)]
    if isinstance(model, PeftModel) or others:
        raise CombinationError(
            f"CoeffConfig needs a model without other adapters in get_peft_model; this {type(model).__name__} carries "
            f"{others or list(configs)}, and two stacked PeftModels cannot be saved and loaded. {ORDER_ADVICE}"
        )
