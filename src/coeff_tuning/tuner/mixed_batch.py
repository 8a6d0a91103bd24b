"""Mixed batches: `adapter_names=[...]` puts each sample of a batch under its own adapter, or under none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from coeff_tuning.tuner.checks import coeff_layers
from coeff_tuning.tuner.layer import BASE_ADAPTER


@contextmanager
def sample_adapters(model: nn.Module, is_training: bool, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Run the enclosed forward passes with the adapters that `kwargs["adapter_names"]` names, sample by sample.

    Args:
        model: the adapted model.
        is_training: whether the model is in training mode, which mixed batches do not serve.
        kwargs: arguments of the forward or generate call. `num_beams` and `num_return_sequences` repeat each sample,
            except in the encoder.

    Yields:
        Nothing.

    Raises:
        ValueError: training mode, or a name that no layer holds.
        TypeError: `adapter_names` is not a sequence of strings.
    """
    names = kwargs.get("adapter_names")
    if names is None:
        yield
        return
    _check(model, is_training, names)
    copies = max(kwargs.get("num_beams") or 1, kwargs.get("num_return_sequences") or 1)
    repeated = [name for name in names for _ in range(copies)]
    in_encoder = {id(module) for module in _encoder_modules(model)}
    layers = [layer for _, layer in coeff_layers(model)]
    former = [layer.sample_adapters for layer in layers]
    handles = []
    try:
        for layer in layers:
            layer.sample_adapters = list(names) if id(layer) in in_encoder else repeated
        for module in model.modules():
            if isinstance(module, AuxiliaryTrainingWrapper):
                own = list(names) if id(module) in in_encoder else repeated
                hook = partial(_pass_names, adapter_names=own)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for layer, names_before in zip(layers, former, strict=True):
            layer.sample_adapters = names_before
        for handle in handles:
            handle.remove()


def _encoder_modules(model: Any) -> Iterable[nn.Module]:
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return model.get_encoder().modules()  # type: ignore[no-any-return]
    return ()


def _pass_names(
    module: nn.Module, args: Any, kwargs: dict[str, Any], adapter_names: list[str]
) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": adapter_names}


def _check(model: nn.Module, is_training: bool, names: Sequence[str]) -> None:
    if is_training:
        raise ValueError("adapter_names is for inference; call model.eval() first, or set_adapter() to train one.")
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"adapter_names must be a list with one adapter name for each sample; got {names!r}.")
    known = {name for _, layer in coeff_layers(model) for name in layer.coeff_delta}
    unknown = sorted(set(names) - known - {BASE_ADAPTER})
    if unknown:
        raise ValueError(
            f"adapter_names must name adapters of this model, {sorted(known)} or {BASE_ADAPTER!r} for none; "
            f"got the non-existing adapter(s) {unknown}."
        )
