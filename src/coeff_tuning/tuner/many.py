"""Many saved adapters into one model, fast: every file is checked, then all of them are put in place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, load_peft_weights
from peft.utils import CONFIG_NAME
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from coeff_tuning.binders import find_binder
from coeff_tuning.errors import AdapterFileError, AdapterMismatchError
from coeff_tuning.tuner import checks, fit
from coeff_tuning.tuner import merge as merging
from coeff_tuning.tuner.combine import add_coeff, check_joining
from coeff_tuning.tuner.config import PEFT_TYPE, CoeffConfig, peft_type_of
from coeff_tuning.tuner.groups import require_zeros, same_value_head
from coeff_tuning.tuner.layer import CHILD_NAME, DELTA_NAME, DIRECT_NAME
from coeff_tuning.tuner.model import CoeffModel
from coeff_tuning.tuner.targets import find_targets

PREFIX = "base_model.model."
# Settings that decide which tensors an adapter has.
_PLACE = ("target_modules", "exclude_modules", "layers_to_transform", "modules_to_save", "parameterization", "mixing")


def load_adapters(model: nn.Module, folders: Mapping[str, str | os.PathLike[str]]) -> PeftModel:
    """Load many saved coefficient adapters, to serve them side by side with `adapter_names=[...]`.

    They are ordinary adapters afterwards, frozen, in a model set to evaluation; those that were active stay active. A
    model without coefficients gets the first as its active one. Every file is read and checked before the model is
    touched, so an error leaves it as it was.

    Args:
        model: the base model, or a PeftModel with coefficients, another method or both.
        folders: folder of each adapter, by the name that it gets in the model.

    Returns:
        The PeftModel: `model` itself if it is one.

    Raises:
        AdapterFileError: a folder does not hold coefficients, or a file cannot be read; the message names it.
        AdapterMismatchError: coefficients or a saved head do not fit the model; the message names the folder.
        CombinationError: the adapters on the model cannot be combined with coefficients.
        UnsupportedModelError: no attention module of the model can get coefficients.
        ValueError: there are no folders, a name is taken or cannot be one, or a config names modules that the model
            does not have.

    Cost: one pass over each file; `H * H` numbers per adapter and layer in memory. `load_adapter`, once for each,
    walks through all adapters loaded so far every time.

    Example:
        >>> import tempfile
        >>> from transformers import ViTConfig, ViTModel
        >>> vit = lambda: ViTModel(ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     get_peft_model(vit(), CoeffConfig()).save_pretrained(folder)
        ...     model = load_adapters(vit(), {"cats": folder, "dogs": folder})
        >>> list(model.peft_config)
        ['cats', 'dogs']
    """
    _check(model, folders)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    configs = {name: _read_config(Path(folder)) for name, folder in folders.items()}
    kinds = _kinds(configs)
    weights: dict[str, dict[str, Tensor]] = {}
    for names in kinds:
        try:
            if isinstance(model, PeftModel) and not isinstance(model.base_model, CoeffModel):
                check_joining(model, configs[names[0]], names[0])
            expected, mixed = _expected(base, configs[names[0]])
        except ValueError as error:
            raise type(error)(f"{folders[names[0]]}: {error}") from None
        weights |= {name: _read_weights(Path(folders[name]), expected, mixed) for name in names}
    first = next(iter(folders))
    peft_model: Any = model
    if not isinstance(model, PeftModel):
        peft_model = get_peft_model(model, configs[first], adapter_name=first)
    with _kept(base, first):
        for names in kinds:
            if names[0] not in peft_model.peft_config:
                _attach(peft_model, configs[names[0]], names[0])
            peft_model.peft_config.update({name: configs[name] for name in names})
            _put(base, configs, {name: weights[name] for name in names})
    return peft_model.eval()


def _check(model: nn.Module, folders: Mapping[str, Any]) -> None:
    if not folders:
        raise ValueError("folders must name at least one saved adapter, as {name: folder}; got none.")
    taken: Mapping[str, Any] = getattr(model, "peft_config", {})
    for name in folders:
        checks.require_name(name)
        if name in taken:
            raise ValueError(
                f"Names must be new; {name!r} exists. Swap its numbers with load_adapter(folder, {name!r})."
            )


def _read_config(folder: Path) -> CoeffConfig:
    file = folder / CONFIG_NAME
    kind = peft_type_of(file) if file.is_file() else None
    if kind != PEFT_TYPE:
        raise AdapterFileError(
            f"{file} must be the config of saved coefficients; {f'it is of {kind}' if kind else 'there is none'}. Name "
            "the folder of the coefficients: beside another method, the one inside the folder of the combination."
        )
    config = CoeffConfig.from_pretrained(folder)
    config.inference_mode = True
    return config


def _kinds(configs: Mapping[str, CoeffConfig]) -> list[list[str]]:
    """Names of adapters that sit on the same modules in the same way, together."""
    kinds: dict[str, list[str]] = {}
    for name, config in configs.items():
        place = [getattr(config, setting) for setting in _PLACE]
        kinds.setdefault(str(place), []).append(name)
    return list(kinds.values())


def _expected(base: nn.Module, config: CoeffConfig) -> tuple[dict[str, torch.Size], dict[str, Tensor]]:
    """Key and shape of every tensor that an adapter's file must hold, and the entries of `mixing="group"`."""
    expected, mixed = {}, {}
    holder = DIRECT_NAME if config.parameterization == "direct" else DELTA_NAME
    for name in find_targets(base, config):
        module = base.get_submodule(name)
        heads = find_binder(module).num_heads(module)  # type: ignore[union-attr]
        key = f"{PREFIX}{name}.{CHILD_NAME}.{holder}"
        expected[key] = torch.Size((heads, heads))
        kv_heads = merging.mixed_kv_heads(config, base, name, heads)
        if kv_heads is not None:
            mixed[key] = same_value_head(heads, kv_heads)
    for name, module in base.named_modules():
        if name.endswith(tuple(config.modules_to_save or ())) and ".modules_to_save." not in name:
            saved = getattr(module, "original_module", module)
            expected |= {f"{PREFIX}{name}.{key}": value.shape for key, value in saved.state_dict().items()}
    return expected, mixed


def _read_weights(folder: Path, expected: Mapping[str, torch.Size], mixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = load_peft_weights(str(folder), device="cpu")
    matrices = {key: value for key, value in weights.items() if fit.SAVED_KEY.search(key)}
    try:
        fit.require_match({key: shape for key, shape in expected.items() if fit.SAVED_KEY.search(key)}, matrices)
        for key, entries in mixed.items():
            require_zeros(key, matrices[key], entries)
    except AdapterMismatchError as error:
        raise AdapterMismatchError(f"{folder}: {error}") from None
    heads = {key: shape for key, shape in expected.items() if key not in matrices}
    found = {key: value.shape for key, value in weights.items() if key not in matrices}
    if heads != found:
        raise AdapterMismatchError(
            f"{folder}: a saved head must have the tensors of the model's, {_shapes(heads)}; the file has "
            f"{_shapes(found)}. Make the model as it was in training, for example with the same num_labels."
        )
    return weights


def _shapes(tensors: Mapping[str, torch.Size]) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(PREFIX): tuple(shape) for key, shape in sorted(tensors.items())}


@contextmanager
def _kept(base: nn.Module, first: str) -> Iterator[None]:
    """Keep what is trainable, and which coefficients are active; `first` where there were none."""
    trainable = {parameter: parameter.requires_grad for parameter in base.parameters()}
    active = next((list(layer.active_adapters) for _, layer in checks.coeff_layers(base)), [first])
    yield
    for _, layer in checks.coeff_layers(base):
        layer._active_adapter = active  # type: ignore[assignment]
    for parameter, requires_grad in trainable.items():
        parameter.requires_grad = requires_grad


def _attach(peft_model: PeftModel, config: CoeffConfig, name: str) -> None:
    """Add the first adapter of a kind, which makes the layers and heads that it needs."""
    if isinstance(peft_model.base_model, CoeffModel):
        peft_model.add_adapter(name, config)
    else:
        add_coeff(peft_model, config, name)


@torch.no_grad()
def _put(base: nn.Module, configs: Mapping[str, CoeffConfig], weights: Mapping[str, dict[str, Tensor]]) -> None:
    """Put the tensors of adapters of one kind, of which the first is attached, in place."""
    first = next(iter(weights))
    for path, layer in checks.coeff_layers(base):
        if layer.holds(first):
            holder = DIRECT_NAME if first in layer.coeff_delta_direct else DELTA_NAME
            for name, tensors in weights.items():
                matrix = tensors[f"{PREFIX}{path}.{holder}"].to(layer.host_marker.device, torch.float32, copy=True)
                parameter = nn.Parameter(matrix, requires_grad=False)
                layer.put(name, parameter, configs[name], layer.kv_heads.get(first))
    for path, module in base.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and first in module.modules_to_save:
            for name, tensors in weights.items():
                module.update(name)
                head = module.modules_to_save[name].requires_grad_(False)
                head.load_state_dict({key: tensors[f"{PREFIX}{path}.{key}"] for key in head.state_dict()})
