"""Whether saved coefficients fit a model: what must hold before any of them is copied."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from coeff_tuning.errors import AdapterMismatchError
from coeff_tuning.tuner.checks import coeff_layers
from coeff_tuning.tuner.groups import require_groups
from coeff_tuning.tuner.layer import CHILD_NAME, DELTA_NAME, DIRECT_NAME

# Keys of saved coefficients; those that fit no module may lack the adapter's name.
SAVED_KEY = re.compile(rf"{CHILD_NAME}\.({DELTA_NAME}|{DIRECT_NAME})(\.|$)")


def require_fit(model: nn.Module, state_dict: Mapping[str, Tensor], adapter_name: str | None = None) -> None:
    """Raise unless saved coefficients fit a model's layers one to one.

    Args:
        model: model with the adapters attached.
        state_dict: tensors with keys as in the model's own state dict; those of other parameters do not matter.
        adapter_name: the adapter that is being loaded. None: those that the keys name, which may be none.

    Raises:
        AdapterMismatchError: a layer has no saved coefficients, saved coefficients have no layer, or sizes differ.
    """
    saved = {key: value for key, value in state_dict.items() if SAVED_KEY.search(key)}
    if adapter_name is None and not saved:
        return
    names = {key.rpartition(".")[2] for key in saved} if adapter_name is None else {adapter_name}
    expected = {
        f"{name}.{holder}.{adapter}": parameter.shape
        for name, layer in coeff_layers(model)
        for holder in (DELTA_NAME, DIRECT_NAME)
        for adapter, parameter in getattr(layer, holder).items()
        if adapter in names
    }
    require_match(expected, saved)
    require_groups(coeff_layers(model), saved, names)


def require_match(expected: Mapping[str, torch.Size], saved: Mapping[str, Tensor]) -> None:
    """Raise unless saved matrices are those that a model expects.

    Args:
        expected: their shapes by key.
        saved: the matrices.

    Raises:
        AdapterMismatchError: a key is missing or in excess, a shape differs, or a matrix is not finite.
    """
    missing, foreign = sorted(set(expected) - set(saved)), sorted(set(saved) - set(expected))
    if missing and _hosts(missing) == _hosts(foreign):
        raise AdapterMismatchError(
            "Saved coefficients must have the parameterization of the adapter that they are loaded into; one of the "
            f"two is 'direct' and the other 'residual' {_first(foreign)}. Load them under a new adapter name."
        )
    if missing or foreign:
        raise AdapterMismatchError(
            f"Saved coefficients must fit the model's {len(expected)} adapted attention modules one to one; "
            f"{len(missing)} modules have none saved {_first(missing)} and {len(foreign)} saved matrices have no "
            f"module {_first(foreign)}. Load the adapter into the model that it was trained on."
        )
    sizes = [key for key in expected if expected[key] != saved[key].shape]
    if sizes:
        raise AdapterMismatchError(
            f"Saved coefficients must be (H, H) for the heads of their module; {sizes[0]} is "
            f"{tuple(saved[sizes[0]].shape)} in the file and {tuple(expected[sizes[0]])} in the model. "
            "Load the adapter into the model that it was trained on."
        )
    for key, value in saved.items():
        if not (value.is_floating_point() and value.isfinite().all()):
            raise AdapterMismatchError(
                f"Saved coefficients must be finite floating-point numbers; {key} holds {value.dtype} "
                "values that are not. Save the adapter again from a run that did not diverge."
            )


def require_same_shapes(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Raise before anything is copied if a tensor of an adapter, such as a saved head, has another shape.

    Args:
        model: model with the adapter attached.
        state_dict: tensors with keys as in the model's own state dict.

    Raises:
        AdapterMismatchError: shapes differ; the first is named.
    """
    parameters = dict(model.named_parameters())
    for key, value in state_dict.items():
        if key in parameters and parameters[key].shape != value.shape:
            raise AdapterMismatchError(
                f"A saved tensor must have the shape of the model's; {key} is {tuple(value.shape)} in the file and "
                f"{tuple(parameters[key].shape)} in the model. Make the model as it was in training, for example with "
                "the same num_labels."
            )


def _hosts(keys: list[str]) -> list[str]:
    return [key.rpartition(f".{CHILD_NAME}.")[0] for key in keys]


def _first(keys: list[str]) -> str:
    return f"(first: {keys[0]})" if keys else "(none)"
