"""Merge coefficients that have no exact place in the weights, and say how far the result is from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from coeff_tuning.binders.projections import Place, bias_of, weight_of
from coeff_tuning.errors import MergeError
from coeff_tuning.tuner.checks import coeff_layers
from coeff_tuning.tuner.factors import merge_module
from coeff_tuning.tuner.merge import Merge, plan_merges, require_place
from coeff_tuning.tuner.model import CoeffModel, detach


@dataclass(frozen=True)
class MergeReport:
    """How far an approximate merge is from the coefficients.

    Attributes:
        modules: for each attention module, by name, the relative error of what its maps carry from value input to
            output, `sqrt(sum_i |dP[i] x|^2 / sum_i |P[i] x|^2)` over the value inputs x; without inputs, of the
            products `P[i]` themselves (see `factors`). 0 where the merge is exact.
        output: relative error of the model's output on the inputs, `|merged - unmerged| / |unmerged|`, over the
            positions that `attention_mask` keeps. None without inputs.
    """

    modules: dict[str, float]
    output: float | None


def merge_approximately(
    model: nn.Module, inputs: Sequence[Mapping[str, Any] | Tensor] | None = None
) -> tuple[nn.Module, MergeReport]:
    """Merge the active coefficients into the weights with the least error that the size of a head allows.

    Entries between heads of one value head are merged exactly, as by `merge_and_unload()`; the others need a rank that
    a head does not have. Look at the report before you use the model; `copy.deepcopy(model)` first keeps the original.

    Args:
        model: a PeftModel with coefficients, or the model that `merge_and_unload()` of another method left them
            active in; its weights are changed in place. In evaluation mode.
        inputs: batches of examples like those that the model is for: keywords of its forward, or the one tensor that it
            takes, best without padding. They decide which directions count, and give the error of the output; a few
            hundred tokens help.

    Returns:
        The base model, without coefficients, and the errors.

    Raises:
        MergeError: values or outputs of a module are projected in a way that cannot be changed: unknown, not plain,
            or a value bias without an output bias to take it up. Nothing is changed then.
        ValueError: the model is in training mode, or inputs do not reach one of its modules.
        TypeError: the model has no coefficients, or `inputs` is not a sequence of batches.

    A query with nothing to attend to, whose mixed output is 0, gets the moved value bias instead.

    Cost: for each value head that needs it, one eigendecomposition of `(X, X)` in float64 and products of
    `H * Ev * D * X` multiplications for each of its heads.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import ViTConfig, ViTModel
        >>> from coeff_tuning import CoeffConfig
        >>> vit = ViTModel(ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=8))
        >>> peft_model = get_peft_model(vit, CoeffConfig(init="random")).eval()
        >>> vit, report = merge_approximately(peft_model, [torch.randn(2, 3, 224, 224)])
        >>> list(report.modules)
        ['layers.0.attention', 'layers.1.attention']
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    _check_arguments(model, base, inputs)
    merges = plan_merges(base)
    inexact = [merge for merge in merges if merge.inexact.any()]
    for merge in inexact:
        _require_factors(base, merge)
    moments, before = _observe(base, inexact, inputs) if inputs else ({}, [])
    errors = {merge.name: merge_module(merge, moments.get(merge.name)) for merge in merges}
    if isinstance(model, PeftModel):
        base = model.unload()
    else:
        detach(base)
        vars(base).pop("peft_config", None)
    return base, MergeReport(errors, _output_error(base, before, inputs) if inputs else None)


def _check_arguments(model: nn.Module, base: nn.Module, inputs: Any) -> None:
    if not isinstance(model, nn.Module) or not list(coeff_layers(base)):
        raise TypeError(f"merge_approximately needs a model with coefficients; got {type(model).__name__}.")
    if isinstance(model, PeftModel) and not isinstance(model.base_model, CoeffModel):
        raise MergeError(
            "Another method must be merged before coefficients are; call merge_and_unload() first, which leaves the "
            "coefficients active, and pass its result."
        )
    if isinstance(inputs, (Mapping, Tensor)) or not isinstance(inputs, (Sequence, type(None))):
        raise TypeError(f"inputs must be a list of batches; got {type(inputs).__name__}. Put one batch into a list.")
    if any(module.training for module in base.modules()):
        raise ValueError(f"{type(base).__name__} must be in evaluation mode to be measured; call eval() first.")


def _require_factors(model: nn.Module, merge: Merge) -> None:
    value, outputs = merge.projections.value, merge.projections.outputs
    if isinstance(value, str) or len(outputs) > 1:
        reason = value if isinstance(value, str) else "several kinds of tokens have output projections of their own"
        raise MergeError(f"{merge.name!r} cannot be merged approximately: {reason}. Keep the adapter attached.")
    require_place(model, merge.name, value)
    head_size = weight_of(outputs[0]).shape[1] // len(merge.coeff)
    if weight_of(value).shape[0] != merge.projections.kv_heads * head_size:
        raise MergeError(
            f"{merge.name!r} cannot be merged: its value projection must make {merge.projections.kv_heads} heads of "
            f"{head_size} numbers; it makes {weight_of(value).shape[0]} numbers."
        )
    bias = bias_of(value)
    if bias is not None and bias.any() and bias_of(outputs[0]) is None:
        raise MergeError(
            f"{merge.name!r} cannot be merged: mixed values carry a part of the value bias that only an output bias "
            "can take up, and its output projection has none. Keep the adapter attached."
        )


# Watching the model at work


@torch.no_grad()
def _observe(
    model: nn.Module, merges: Sequence[Merge], inputs: Sequence[Mapping[str, Any] | Tensor]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Second moment of the value inputs of each module, `(X, X)` in float64, and the model's outputs."""
    moments: dict[str, Tensor] = {}
    with _watching(merges, moments):
        outputs = [_output(model, batch) for batch in inputs]
    missing = [merge.name for merge in merges if merge.name not in moments]
    if missing:
        raise ValueError(f"inputs must reach every attention module with coefficients; they miss {missing[:3]}.")
    broken = [name for name, moment in moments.items() if not moment.isfinite().all()]
    if broken:
        raise ValueError(f"Value inputs must be finite; those of {broken[:3]} are not.")
    return moments, outputs


@contextmanager
def _watching(merges: Sequence[Merge], moments: dict[str, Tensor]) -> Iterator[None]:
    handles = []
    for merge in merges:
        place = merge.projections.value
        assert isinstance(place, Place)

        def add(module: nn.Module, args: Any, kwargs: Any, name: str = merge.name) -> None:
            is_attention = isinstance(module, nn.MultiheadAttention)  # called with query, key, value
            x = kwargs["value"] if "value" in kwargs else args[2 if is_attention else 0]
            x = torch.nested.to_padded_tensor(x, 0.0) if x.is_nested else x
            x = x.reshape(-1, x.shape[-1]).double()
            moments[name] = moments.get(name, 0.0) + x.T @ x

        handles.append(place.layer.register_forward_pre_hook(add, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output(model: nn.Module, batch: Mapping[str, Any] | Tensor) -> Tensor:
    """The logits, or the first output that is not a single number, where the batch is no padding."""
    out: Any = model(**batch) if isinstance(batch, Mapping) else model(batch)
    if isinstance(out, Mapping):
        out = [out["logits"]] if "logits" in out else list(out.values())
    values = [out] if isinstance(out, Tensor) else out
    first: Tensor = next(value for value in values if isinstance(value, Tensor) and value.dim() > 0)
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return first[mask.bool()] if mask is not None and mask.shape == first.shape[:2] else first


@torch.no_grad()
def _output_error(model: nn.Module, before: list[Tensor], inputs: Sequence[Mapping[str, Any] | Tensor]) -> float:
    after = [_output(model, batch) for batch in inputs]
    change = sum((a.double() - b.double()).square().sum() for a, b in zip(after, before, strict=True))
    return float((change / sum(b.double().square().sum() for b in before)) ** 0.5)
