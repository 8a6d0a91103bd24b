"""Mixed batches: `adapter_names=[...]` puts each sample of a batch under its own adapter, or under none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from coeff_tuning.tuner.checks import coeff_layers
from coeff_tuning.tuner.layer import BASE_ADAPTER

# How transformers calls the inputs whose first dimension is the batch, and the language part of a model with others.
INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_features", "input_values")
TEXT_PARTS = ("language_model", "text_model")


@contextmanager
def sample_adapters(model: nn.Module, is_training: bool, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Run the enclosed forward passes with the adapters that `kwargs["adapter_names"]` names, sample by sample.

    Args:
        model: the adapted model.
        is_training: whether the model is in training mode, which mixed batches do not serve.
        kwargs: arguments of the forward or generate call. Beams, windows and other consecutive copies of a sample
            stay under its adapter.

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
    layers = [layer for _, layer in coeff_layers(model)]
    former = [layer.sample_adapters for layer in layers]
    copies = _copies(model, kwargs)
    to_head = partial(_pass_names, adapter_names=[name for name in names for _ in range(copies)])
    heads = [module for module in model.modules() if isinstance(module, AuxiliaryTrainingWrapper)]
    handles = [head.register_forward_pre_hook(to_head, with_kwargs=True) for head in heads]
    to_model = partial(_check_batch, count=len(names), copies=copies)
    handles.append(model.register_forward_pre_hook(to_model, with_kwargs=True))
    try:
        for layer in layers:
            layer.sample_adapters = list(names)
        yield
    finally:
        for layer, names_before in zip(layers, former, strict=True):
            layer.sample_adapters = names_before
        for handle in handles:
            handle.remove()


def _copies(model: Any, kwargs: Mapping[str, Any]) -> int:
    """How many consecutive copies of each sample `generate` makes, for beams or returned sequences."""
    sources = (kwargs.get("generation_config"), getattr(model, "generation_config", None))
    found = [
        kwargs.get(name) or next((n for s in sources if (n := getattr(s, name, None))), 1)
        for name in ("num_beams", "num_return_sequences")
    ]
    return int(max(found))


def _check_batch(module: nn.Module, args: Any, kwargs: dict[str, Any], count: int, copies: int) -> None:
    main = args[0] if args else next((kwargs[name] for name in INPUTS if kwargs.get(name) is not None), None)
    if isinstance(main, Tensor) and main.shape[0] not in (count, count * copies):
        raise ValueError(
            f"adapter_names must name one adapter for each sample; got {count} names for a batch of {main.shape[0]}."
        )


def _pass_names(
    module: nn.Module, args: Any, kwargs: dict[str, Any], adapter_names: list[str]
) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": adapter_names}


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
    known = {name for _, layer in coeff_layers(model) for name in layer.adapters}
    unknown = sorted(set(names) - known - {BASE_ADAPTER})
    if unknown:
        raise ValueError(
            f"adapter_names must name adapters of this model, {sorted(known)} or {BASE_ADAPTER!r} for none; "
            f"got the non-existing adapter(s) {unknown}."
        )
