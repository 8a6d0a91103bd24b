"""Coefficients beside another PEFT method in one PeftModel: add them, and load them back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import CONFIG_NAME
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from coeff_tuning.errors import AdapterFileError, CombinationError
from coeff_tuning.tuner import checks, fit
from coeff_tuning.tuner.combined import combined_class
from coeff_tuning.tuner.config import PEFT_TYPE, CoeffConfig, check_files, peft_type_of
from coeff_tuning.tuner.model import CoeffModel


class _BesideModel(CoeffModel):
    """A tuner that may join the adapters that a model has already."""

    needs_fresh_model = False


def add_coeff(peft_model: PeftModel, config: CoeffConfig, adapter_name: str = "coeff") -> PeftModel:
    """Add coefficients to a model that carries LoRA, DoRA or another PEFT method already.

    The other method keeps its adapter, its trained head and its active state; `save_pretrained(folder)` then writes
    its adapter to `folder` and the coefficients to `folder/<adapter_name>`.

    Args:
        peft_model: model with the other method, made by `get_peft_model`; changed in place.
        config: the coefficients. A head belongs to the other method: leave `modules_to_save` out.
        adapter_name: name of the coefficient adapter; must be new.

    Returns:
        `peft_model`.

    Raises:
        TypeError: the arguments are not a PeftModel and a CoeffConfig.
        CombinationError: the model has no other method, is a stack of PeftModels, uses prompt learning, has layers of
            the other method around its attention modules, or `config` asks for `modules_to_save`.
        ValueError: the name is taken, or the config names modules that do not exist.
        UnsupportedModelError: no attention module of the model can get coefficients.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> from transformers import ViTConfig, ViTModel
        >>> vit = ViTModel(ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=8))
        >>> model = add_coeff(get_peft_model(vit, LoraConfig(target_modules=["q_proj"])), CoeffConfig())
        >>> list(model.peft_config)
        ['default', 'coeff']
    """
    check_joining(peft_model, config, adapter_name)
    base: Any = peft_model.get_base_model()
    config.base_model_name_or_path = base.__dict__.get("name_or_path", None) or None
    with _kept(base):
        try:
            _BesideModel(base, config, adapter_name)
        except Exception:
            base.peft_config.pop(adapter_name, None)
            raise
    for _, layer in checks.coeff_layers(base):  # PEFT restores what was trainable before, an earlier adapter too
        layer.set_adapter([adapter_name], inference_mode=config.inference_mode)
    peft_model.__class__ = combined_class(type(peft_model))
    checks.watch(peft_model)  # PEFT before 0.21 calls the base model without its hooks
    return peft_model


def load_coeff(
    model: nn.Module, path: str | os.PathLike[str], adapter_name: str | None = None, is_trainable: bool = False
) -> PeftModel:
    """Load saved coefficients, and the PEFT method that was saved with them.

    Args:
        model: the base model, or a PeftModel that has the other method already.
        path: folder of the coefficients, or the folder of the whole combination.
        adapter_name: name in the model; default: the name of the coefficients' folder in a combination, else
            "default" for coefficients alone and "coeff" beside another method. Loading over an existing coefficient
            adapter replaces its numbers in place.
        is_trainable: leave the adapters trainable; otherwise they are frozen and the model is set to evaluation.

    Returns:
        The PeftModel: `model` itself if it is one.

    Raises:
        AdapterFileError: `path` holds no coefficients, several, or a file that cannot be read.
        AdapterMismatchError: the coefficients do not fit the model.
        CombinationError: the adapters on the model cannot be combined with them.
        ValueError: `adapter_name` is an adapter of another method.
    """
    root, folder = Path(path), _find_coeff_folder(Path(path))
    peft_model: Any = model
    if not isinstance(model, PeftModel):
        first_name = adapter_name or "default" if folder == root else "default"
        peft_model = PeftModel.from_pretrained(model, str(root), adapter_name=first_name, is_trainable=is_trainable)
        if folder == root:
            return peft_model
    name = adapter_name or ("coeff" if folder == root else folder.name)
    _require_room(peft_model, name, root, folder)
    if name in peft_model.peft_config or isinstance(peft_model.base_model, CoeffModel):
        check_files(folder)  # PEFT does not name a file that it cannot read
        peft_model.load_adapter(str(folder), name, is_trainable=is_trainable)
        return peft_model
    config = CoeffConfig.from_pretrained(str(folder))
    config.inference_mode = not is_trainable
    add_coeff(peft_model, config, name)
    weights = load_peft_weights(str(folder), device="cpu")
    try:
        fit.require_fit(peft_model, {f"{key}.{name}": value for key, value in weights.items()}, name)
    except Exception:
        peft_model.delete_adapter(name)
        raise
    set_peft_model_state_dict(peft_model, weights, adapter_name=name)
    if not is_trainable:
        peft_model.eval()
    return peft_model


def _require_room(peft_model: Any, name: str, root: Path, folder: Path) -> None:
    """Raise unless all that a folder holds can be loaded beside, or over, what a model has."""
    held = peft_model.peft_config.get(name)
    if held is not None and not isinstance(held, CoeffConfig):
        raise ValueError(
            f"adapter_name must be new, or that of coefficients; {name!r} is the {held.peft_type.value} adapter of "
            "this model, which coefficients would be loaded over without effect."
        )
    if isinstance(peft_model.base_model, CoeffModel) and folder != root and (root / CONFIG_NAME).is_file():
        raise CombinationError(
            f"{root} holds coefficients and an adapter of {peft_type_of(root / CONFIG_NAME)}, which cannot join a "
            f"model of coefficients alone. Pass the base model for both, or {folder} for the coefficients."
        )


def check_joining(peft_model: Any, config: Any, adapter_name: str) -> None:
    """Raise unless coefficients can join another method.

    Args:
        peft_model: the model with the other method.
        config: the coefficients.
        adapter_name: their name.

    Raises:
        TypeError: the arguments are not a PeftModel and a CoeffConfig.
        CombinationError: the model has no other method that adapts layers, is a stack of PeftModels, or `config` asks
            for `modules_to_save`.
        ValueError: the name is taken.
    """
    if not isinstance(peft_model, PeftModel):
        raise TypeError(
            f"add_coeff needs a PeftModel with another method; got {type(peft_model).__name__}. For coefficients alone "
            "use peft.get_peft_model(model, CoeffConfig(...))."
        )
    if not isinstance(config, CoeffConfig):
        raise TypeError(f"config must be a CoeffConfig; got {type(config).__name__}.")
    tuner = peft_model.base_model
    if not isinstance(tuner, BaseTuner) or isinstance(tuner, CoeffModel):
        raise CombinationError(
            f"add_coeff needs a method that adapts layers, such as LoRA, on the model; it has "
            f"{[str(c.peft_type.value) for c in peft_model.peft_config.values()]}. "
            "For a further coefficient adapter use peft_model.add_adapter(name, config)."
        )
    if isinstance(peft_model.get_base_model(), PeftModel):
        raise CombinationError(
            f"add_coeff needs one PeftModel; this is a PeftModel in a PeftModel. {checks.ORDER_ADVICE}"
        )
    if config.modules_to_save:
        raise CombinationError(
            f"modules_to_save={config.modules_to_save} must be given to the method that was attached first, which owns "
            "the trained head; leave it out of CoeffConfig."
        )
    if adapter_name in peft_model.peft_config:
        raise ValueError(f"adapter_name must be new; the model has {list(peft_model.peft_config)}.")


@contextmanager
def _kept(model: nn.Module) -> Iterator[None]:
    """Keep what is trainable, and which saved head is active, as it was."""
    coefficients = {parameter for _, layer in checks.coeff_layers(model) for parameter in layer.parameters()}
    trainable = {p: p.requires_grad for p in model.parameters() if p not in coefficients}
    heads = {m: m._active_adapter for m in model.modules() if isinstance(m, AuxiliaryTrainingWrapper)}
    try:
        yield
    finally:
        for wrapper, active in heads.items():
            wrapper._active_adapter = active
        for parameter, requires_grad in trainable.items():
            parameter.requires_grad = requires_grad


def _find_coeff_folder(path: Path) -> Path:
    """The folder at or directly below `path` that holds coefficients."""
    found: list[Path] = [
        config.parent
        for config in [path / CONFIG_NAME, *sorted(path.glob(f"*/{CONFIG_NAME}"))]
        if config.is_file() and peft_type_of(config) == PEFT_TYPE
    ]
    if path in found:
        return path
    if len(found) != 1:
        raise AdapterFileError(
            f"{path} must hold saved coefficients, in {CONFIG_NAME} of it or of one folder in it; it holds "
            f"{[str(f.name) for f in found] or 'none'}. Name the folder that holds them."
        )
    return found[0]
