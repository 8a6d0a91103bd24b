"""Which attention modules of a model get coefficients. Every wish that cannot be met raises before anything changes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from coeff_tuning.binders import find_binder, why_refused
from coeff_tuning.errors import CombinationError, UnsupportedModelError
from coeff_tuning.tuner.config import ALL_ATTENTION, CoeffConfig

# The first number in a module's name is its layer, as in PEFT.
LAYER_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def find_targets(model: nn.Module, config: CoeffConfig) -> list[str]:
    """Names of the modules that get coefficients.

    Args:
        model: the model.
        config: its `target_modules`, `exclude_modules` and `layers_to_transform`.

    Returns:
        Names in the model's own order; never empty.

    Raises:
        UnsupportedModelError: the model has no attention module that a binder serves, a target names one that none
            serves, or no target is named and some are known not to be served.
        CombinationError: an attention module that is to get them is wrapped by a layer of another PEFT method.
        ValueError: a target, a layer number or the combination of all settings matches nothing.
    """
    served = [name for name, module in model.named_modules() if find_binder(module) is not None]
    if not served:
        raise UnsupportedModelError(_nothing_served(model))
    _require_all_served(model, config)
    wanted = _wanted(model, served, config.target_modules)
    _check_exclusions(model, config.exclude_modules)
    kept = [name for name in wanted if not (is_excluded(config, name) or _is_saved_whole(config, name))]
    kept = _in_layers(kept, config.layers_to_transform)
    if not kept:
        raise ValueError(
            f"At least one attention module must be left to adapt; exclude_modules={config.exclude_modules!r} and "
            f"modules_to_save={config.modules_to_save!r} remove all of {_some(wanted)}."
        )
    _require_unwrapped(model, kept)
    return kept


def is_excluded(config: CoeffConfig, name: str) -> bool:
    """Whether `exclude_modules` names this module.

    Args:
        config: the config.
        name: full name of a module.

    Returns:
        Whether it is left alone.
    """
    return config.exclude_modules is not None and _matches(name, config.exclude_modules)


def _is_saved_whole(config: CoeffConfig, name: str) -> bool:
    """Whether a module is, or lies in, one of `modules_to_save`, which is trained in full instead."""
    return any(f".{saved}." in f".{name}." for saved in config.modules_to_save or [])


def _check_exclusions(model: nn.Module, exclusions: list[str] | str | None) -> None:
    names = [name for name, _ in model.named_modules()]
    for entry in [exclusions] if isinstance(exclusions, str) else exclusions or []:
        pattern = entry if isinstance(exclusions, str) else [entry]
        if not any(_matches(name, pattern) for name in names):
            raise ValueError(
                f"exclude_modules entry {entry!r} must match a module of {type(model).__name__}; it matches none."
            )


def _matches(name: str, patterns: Iterable[str] | str) -> bool:
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def _wanted(model: nn.Module, served: list[str], targets: Iterable[str] | str | None) -> list[str]:
    if targets is None or targets == ALL_ATTENTION:
        return served
    entries = [targets] if isinstance(targets, str) else list(targets)
    wanted: set[str] = set()
    for entry in entries:
        pattern: Iterable[str] | str = entry if isinstance(targets, str) else [entry]
        matched = [name for name, _ in model.named_modules() if name and _matches(name, pattern)]
        hits = [name for name in matched if name in served]
        strangers = [name for name in matched if not _related(name, served)]
        if not matched:
            raise ValueError(
                f"target_modules entry {entry!r} must match an attention module; it matches no module at all. The "
                f"attention modules of {type(model).__name__} are {_some(served)}."
            )
        if strangers or not hits:
            _require_unwrapped(model, [s for s in served if any(s.startswith(f"{m}.") for m in matched)])
            name = (strangers or matched)[0]
            raise UnsupportedModelError(
                f"target_modules entry {entry!r} must match attention modules that can get coefficients; it matches "
                f"{name!r}, a {type(model.get_submodule(name)).__name__}. The attention modules of "
                f"{type(model).__name__} that can are {_some(served)}."
            )
        wanted.update(hits)
    return [name for name in served if name in wanted]


def _require_all_served(model: nn.Module, config: CoeffConfig) -> None:
    if config.target_modules not in (None, ALL_ATTENTION):
        return
    for name, module in model.named_modules():
        reason = None if is_excluded(config, name) else why_refused(module)
        if reason is not None:
            raise UnsupportedModelError(
                f"Every attention module of {type(model).__name__} must be one that can get coefficients; {name!r}, a "
                f"{type(module).__name__}, {reason}. Name the modules to adapt with target_modules, or leave this kind "
                "out with exclude_modules."
            )


def _require_unwrapped(model: nn.Module, names: list[str]) -> None:
    """PEFT passes over everything inside a layer of another method, so that coefficients there would be left out."""
    wrappers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name in names:
        wrapper = next((w for w in wrappers if name.startswith(f"{w}.")), None)
        if wrapper is not None:
            kind = f"{type(wrappers[wrapper]).__module__}.{type(wrappers[wrapper]).__qualname__}"
            raise CombinationError(
                f"Coefficients must sit on attention modules that no other PEFT method wraps; {wrapper!r} is a {kind} "
                "around one. Let the other method adapt other modules, or name the attention modules without it in "
                "target_modules."
            )


def _related(name: str, served: list[str]) -> bool:
    """Whether a module is served, lies inside a served one or contains one."""
    return any(name == other or name.startswith(f"{other}.") or other.startswith(f"{name}.") for other in served)


def _in_layers(names: list[str], layers: list[int] | int | None) -> list[str]:
    if layers is None:
        return names
    numbers = [layers] if isinstance(layers, int) else layers
    found = {name: int(match[1]) for name in names if (match := LAYER_NUMBER.search(name))}
    unknown = sorted(set(numbers) - set(found.values()))
    if unknown:
        raise ValueError(
            f"layers_to_transform must name layers with attention modules; {unknown} are not among "
            f"{sorted(set(found.values()))}."
        )
    return [name for name in names if found.get(name) in numbers]


def _nothing_served(model: nn.Module) -> str:
    classes = sorted({type(m).__name__ for m in model.modules() if "attention" in type(m).__name__.lower()})
    return (
        f"{type(model).__name__} must have attention modules that can get coefficients: those that look their "
        "attention up in transformers' ALL_ATTENTION_FUNCTIONS, torch.nn.MultiheadAttention, and the classes of timm, "
        f"open_clip and diffusers in docs/models.md. Its attention classes {classes or '(none found)'} are none of "
        "these, so coefficients would never be used. Use a model of another family, or make your own class known with "
        "coeff_tuning.register_attention."
    )


def _some(names: list[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
