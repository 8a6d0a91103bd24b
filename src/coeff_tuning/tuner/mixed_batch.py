"""Mixed batches: `adapter_names=[...]` puts each sample of a batch under its own adapter, or under none."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from coeff_tuning.tuner.checks import coeff_layers
from coeff_tuning.tuner.layer import BASE_ADAPTER, CoeffLayer

# How transformers calls the inputs whose first dimension is the batch (elsewhere it is the first that is no vector),
# and the language part of a model with others.
INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")
TEXT_PARTS = ("language_model", "text_model")


@contextmanager
def sample_adapters(
    model: nn.Module,
    is_training: bool,
    kwargs: Mapping[str, Any],
    names: Sequence[str],
    other_names: Sequence[str] | None,
) -> Iterator[None]:
    """Run the enclosed forward passes with adapters of their own for each sample.

    Args:
        model: the adapted model.
        is_training: whether the model is in training mode, which mixed batches do not serve.
        kwargs: arguments of the forward or generate call. Beams, windows and other consecutive copies of a sample
            stay under its adapter.
        names: the coefficients of each sample.
        other_names: what the trained heads and the layers of another PEFT method are told, sample by sample; None
            leaves them with their active adapter.

    Yields:
        Nothing.

    Raises:
        ValueError: training mode, or a name that no layer holds.
        TypeError: `names` is not a sequence of strings.
    """
    _check(model, is_training, names)
    layers = [layer for _, layer in coeff_layers(model)]
    former = [layer.sample_adapters for layer in layers]
    copies = _copies(model, kwargs)
    told = [m for m in model.modules() if takes_names(m)] if other_names is not None else []
    tell = partial(_pass_names, adapter_names=list(other_names or []), copies=copies)
    handles = [module.register_forward_pre_hook(tell, with_kwargs=True) for module in told]
    heads = {module: module._active_adapter for module in told if isinstance(module, AuxiliaryTrainingWrapper)}
    to_model = partial(_check_batch, count=len(names), copies=copies)
    handles.append(model.register_forward_pre_hook(to_model, with_kwargs=True))
    try:
        for head in heads:  # PEFT passes a head by if the adapter that is active has no copy of it
            head._active_adapter = [name for name in other_names or [] if name in head._adapters][:1]
        for layer in layers:
            layer.set_samples(list(names))
        yield
    finally:
        for layer, names_before in zip(layers, former, strict=True):
            layer.set_samples(names_before)
        for head, active in heads.items():
            head._active_adapter = active
        for handle in handles:
            handle.remove()


def split(entries: Any, coeff_names: Collection[str], other_names: Collection[str]) -> tuple[list[str], list[str]]:
    """What each sample of a combined model runs with: its coefficients, and its adapter of the other method.

    Args:
        entries: for each sample a name, or a tuple of one name of each method.
        coeff_names: the coefficient adapters of the model.
        other_names: the adapters of the other method.

    Returns:
        Names of coefficients and of the other method's adapters, `"__base__"` where a sample names none.

    Raises:
        TypeError: an entry is not a name or a tuple of names.
        ValueError: a name is not known, or an entry names two adapters of one method.
    """
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise TypeError(f"adapter_names must be a list with one entry for each sample; got {entries!r}.")
    coeff, other = [], []
    for entry in entries:
        parts = (entry,) if isinstance(entry, str) else entry
        if not (isinstance(parts, (tuple, list)) and parts and all(isinstance(part, str) for part in parts)):
            raise TypeError(f"An entry of adapter_names must be a name or a tuple of names; got {entry!r}.")
        own = [part for part in parts if part in coeff_names]
        foreign = [part for part in parts if part in other_names]
        if len(own) + len(foreign) < len(parts) and parts not in [(BASE_ADAPTER,), [BASE_ADAPTER]]:
            raise ValueError(
                f"adapter_names must name adapters of this model, coefficients {sorted(coeff_names)} or "
                f"{sorted(other_names)} of the other method, or {BASE_ADAPTER!r} alone for neither; got {entry!r}."
            )
        if len(own) > 1 or len(foreign) > 1:
            raise ValueError(
                f"An entry of adapter_names must name at most one adapter of each method; {entry!r} names "
                f"{own if len(own) > 1 else foreign} of one."
            )
        coeff.append(own[0] if own else BASE_ADAPTER)
        other.append(foreign[0] if foreign else BASE_ADAPTER)
    return coeff, other


def takes_names(module: nn.Module) -> bool:
    """Whether a PEFT layer or trained head can run the samples of a batch under different adapters.

    Args:
        module: any module.

    Returns:
        Whether its forward does.
    """
    if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        return False
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "_mixed_batch_forward" in code.co_names


def refusing_layer(model: nn.Module) -> str | None:
    """Class of a layer of another PEFT method that cannot run the samples of a batch under different adapters.

    Args:
        model: a model with coefficients and another method.

    Returns:
        Its name; None if every layer can.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, CoeffLayer) and not takes_names(module):
            return f"{type(module).__module__}.{type(module).__qualname__}"
    return None


def _copies(model: Any, kwargs: Mapping[str, Any]) -> int:
    """How many consecutive copies of each sample `generate` makes, for beams or returned sequences."""
    sources = (kwargs.get("generation_config"), getattr(model, "generation_config", None))
    found = [
        kwargs.get(name) or next((n for s in sources if (n := getattr(s, name, None))), 1)
        for name in ("num_beams", "num_return_sequences")
    ]
    return int(max(found))


def _check_batch(module: nn.Module, args: Any, kwargs: dict[str, Any], count: int, copies: int) -> None:
    check_batch(args, kwargs, count, copies)


def check_batch(args: Sequence[Any], kwargs: Mapping[str, Any], count: int, copies: int = 1) -> None:
    """Raise unless a call's batch has as many samples as there are names.

    Args:
        args: positional arguments of a forward or generate call.
        kwargs: its keywords.
        count: number of names.
        copies: consecutive copies of each sample that the batch may hold.

    Raises:
        ValueError: it has more or fewer.
    """
    known = [kwargs[name] for name in INPUTS if kwargs.get(name) is not None]
    others = [value for value in kwargs.values() if isinstance(value, Tensor) and value.dim() > 1]
    main = next(iter([*args[:1], *known, *others]), None)
    if isinstance(main, Tensor) and main.shape[0] not in (count, count * copies):
        raise ValueError(
            f"adapter_names must name one adapter for each sample; got {count} names for a batch of {main.shape[0]}."
        )


def _pass_names(
    module: nn.Module, args: Any, kwargs: dict[str, Any], adapter_names: list[str], copies: int
) -> tuple[Any, dict[str, Any]]:
    names = adapter_names
    if args and len(args[0]) == len(names) * copies:
        names = [name for name in names for _ in range(copies)]
    if isinstance(module, AuxiliaryTrainingWrapper):  # as when it runs alone, an adapter without a head has the base's
        names = [name if name in module._adapters else BASE_ADAPTER for name in names]
    return args, {**kwargs, "adapter_names": names}


def _check(model: nn.Module, is_training: bool, names: Sequence[str]) -> None:
    if is_training:
        raise ValueError("adapter_names is for inference; call model.eval() first, or set_adapter() to train one.")
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"adapter_names must be a list with one adapter name for each sample; got {names!r}.")
    config = getattr(model, "config", None)
    parts = [name for name, _ in coeff_layers(model) if not any(part in name for part in TEXT_PARTS)]
    if parts and hasattr(config, "text_config") and len(getattr(config, "sub_configs", {})) > 1:
        raise ValueError(
            f"adapter_names needs one batch for all adapted modules; {type(model).__name__} feeds images or sounds to "
            f"{parts[0]!r} that need not be one per sample. Adapt the language part alone with target_modules."
        )
    known = {name for _, layer in coeff_layers(model) for name in (*layer.coeff_delta, *layer.coeff_delta_direct)}
    unknown = sorted(set(names) - known - {BASE_ADAPTER})
    if unknown:
        raise ValueError(
            f"adapter_names must name adapters of this model, {sorted(known)} or {BASE_ADAPTER!r} for none; "
            f"got the non-existing adapter(s) {unknown}."
        )
