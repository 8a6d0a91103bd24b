"""CoeffModel: attaches coefficients to the attention modules of a model, and takes them off again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner, _ExcludedModule
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from coeff_tuning.binders import find_binder
from coeff_tuning.errors import MergeError
from coeff_tuning.tuner import checks, fit, mixed_batch, weighted
from coeff_tuning.tuner import merge as merging
from coeff_tuning.tuner.config import CoeffConfig
from coeff_tuning.tuner.layer import CHILD_NAME, CoeffLayer
from coeff_tuning.tuner.targets import find_targets, is_excluded


class CoeffModel(BaseTuner):  # type: ignore[misc]
    """The tuner behind `get_peft_model(model, CoeffConfig())`.

    Each adapted attention module gets one child, a `CoeffLayer`; nothing is wrapped or replaced, so module paths and
    the state-dict keys of the model stay as they are.

    Args:
        model: the model to adapt.
        *args: `peft_config`, `adapter_name`, `low_cpu_mem_usage` and `state_dict` of PEFT's tuners.
        **kwargs: the same, by name.

    Raises:
        UnsupportedModelError: no attention module of the model can get coefficients.
        ValueError: the config names modules or layers that do not exist.

    Example:
        >>> from peft import get_peft_model
        >>> from transformers import ViTConfig, ViTModel
        >>> vit = ViTModel(ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=8))
        >>> get_peft_model(vit, CoeffConfig()).print_trainable_parameters()  # 2 layers x 3 x 3
        trainable params: 18 || all params: ...
    """

    prefix = "coeff_"
    tuner_layer_cls = CoeffLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 (the base class declares it so)

    needs_fresh_model = True

    # Attaching

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        if self.needs_fresh_model:
            checks.require_fresh(model)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            super().__init__(model, *args, **kwargs)
        if checks.has_own_adapters(model):  # diffusers may delete the dict that it finds on the model
            known: dict[str, Any] = model.peft_config  # type: ignore[assignment]
            self.peft_config = {name: config for name, config in known.items() if isinstance(config, CoeffConfig)}
            own = {parameter for _, layer in checks.coeff_layers(model) for parameter in layer.parameters()}
            for parameter in model.parameters():
                parameter.requires_grad &= parameter in own  # what we do not save must not be trained

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        *args: Any,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Attach an adapter; see `peft.tuners.tuners_utils.BaseTuner.inject_adapter`.

        Args:
            model: the model.
            adapter_name: name of the adapter.
            *args: passed on.
            state_dict: attach to the modules that these saved keys name.
            **kwargs: passed on.

        Raises:
            ValueError: the adapter name cannot be a key of the state dict.
        """
        checks.require_name(adapter_name)
        if state_dict is not None:  # PEFT finds the target as what stands before ".coeff_delta"
            state_dict = {key.replace(f".{CHILD_NAME}.", "."): value for key, value in state_dict.items()}
        super().inject_adapter(model, adapter_name, *args, state_dict=state_dict, **kwargs)
        checks.watch(model)

    def _prepare_adapter_config(self, peft_config: CoeffConfig, model_config: dict[str, Any]) -> CoeffConfig:
        return peft_config

    def _prepare_model(self, peft_config: CoeffConfig, model: nn.Module) -> None:
        names = find_targets(model, peft_config)
        for name in names:  # every refusal comes before the first change
            module = model.get_submodule(name)
            heads = find_binder(module).num_heads(module)  # type: ignore[union-attr]
            merging.mixed_kv_heads(peft_config, model, name, heads)
        self._targets = set(names)

    def _check_target_module_exists(self, peft_config: CoeffConfig, key: str) -> bool | _ExcludedModule:
        if is_excluded(peft_config, key):
            return _ExcludedModule()
        return key in self._targets

    def _create_and_replace(
        self,
        peft_config: CoeffConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        layer = getattr(target, CHILD_NAME, None)
        if layer is None:
            binder = find_binder(target)
            assert binder is not None, f"{current_key} was chosen as a target and no binder serves it"
            host = next((p for p in target.parameters() if p.is_floating_point()), torch.empty(0))
            layer = CoeffLayer(binder.num_heads(target), host.device, host.dtype)
            layer.train(target.training)
            setattr(target, CHILD_NAME, layer)
            binder.bind(target)
        kv_heads = merging.mixed_kv_heads(peft_config, self.model, current_key, layer.num_heads)
        layer.update_layer(adapter_name, peft_config, kv_heads)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep coefficients in float32; with `autocast_adapter_dtype=False`, in the dtype of their module."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for _, layer in checks.coeff_layers(self.model):
                if adapter_name in layer.adapters:
                    matrix = layer.adapters[adapter_name]
                    matrix.data = matrix.data.to(layer.host_marker.dtype)

    # Loading

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: CoeffConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        fit.require_fit(model, remapped, adapter_name)
        return remapped

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        # PEFT before 0.21 has no `_remap_adapter_state_dict_for_load`; this runs before any layer is loaded.
        own = {key.removeprefix(prefix): value for key, value in state_dict.items()}
        fit.require_fit(self, own)
        fit.require_same_shapes(self, own)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # Using

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, with its hooks; PEFT before 0.21 leaves them out.

        Args:
            *args: passed on.
            **kwargs: passed on.

        Returns:
            The model's output.
        """
        return self.model(*args, **kwargs)

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Choose the active adapter(s).

        A trained head of another PEFT method on the same model stays active; PEFT would switch off every saved module
        that has no copy under `adapter_name`, and the classifier that LoRA trained would be bypassed.

        Args:
            adapter_name: one name or several.
            inference_mode: leave the adapter frozen.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        heads = {
            wrapper: list(wrapper.active_adapters)
            for wrapper in self.model.modules()
            if isinstance(wrapper, AuxiliaryTrainingWrapper) and not set(names) & set(wrapper._adapters)
        }
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        own = {name for name, config in self.peft_config.items() if isinstance(config, CoeffConfig)}
        for wrapper, active in heads.items():
            foreign = [name for name in active if name not in own]
            if foreign:
                wrapper.set_adapter(foreign)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        if names is None:
            yield
            return
        with mixed_batch.sample_adapters(self.model, self.training, kwargs, names, names):
            yield

    def add_weighted_adapter(self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
        """Make a new adapter from a weighted sum of others: `coeff = I + sum_a weights[a] * (coeff_a - I)`.

        Args:
            adapters: names of existing adapters, all residual or all direct.
            weights: one weight for each. A single adapter with weight 1.0 is copied exactly.
            adapter_name: name of the new adapter; it is not made active.

        Raises:
            ValueError: unknown adapters, a name that exists, other numbers of names and weights, or adapters of both
                parameterizations.
        """
        weighted.require_summable(self.peft_config, adapters, weights, adapter_name)
        targets = sorted(name for name, layer in checks.coeff_layers(self.model) if any(map(layer.holds, adapters)))
        configs = [self.peft_config[name] for name in adapters]
        self.peft_config[adapter_name] = weighted.config_of_sum(
            configs, [name.removesuffix(f".{CHILD_NAME}") for name in targets]
        )
        self.inject_adapter(self.model, adapter_name)
        weighted.set_sum(self.model, adapter_name, dict(zip(adapters, weights, strict=True)))

    # Taking off

    def _check_merge_allowed(self) -> None:
        raise MergeError(
            "Coefficients cannot be merged by merge_adapter(), which unmerge_adapter() undoes: those between heads of "
            "one value head may have no inverse, and those that feed a head with another value head have no place in "
            "the weights. Use merge_and_unload(), which says what can be merged; unload() gives the base model."
        )

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        known: dict[str, Any] = getattr(self.model, "peft_config", {})
        others = [name for name, config in known.items() if not isinstance(config, CoeffConfig)]
        if merge and others:
            raise MergeError(
                f"Coefficients merge into plain weights; the model carries {others} beside them, loaded by "
                "diffusers. Merge those first (pipe.fuse_lora, then pipe.unload_lora_weights), or take them off."
            )
        if merge:
            merging.merge_exactly(self.model, adapter_names, safe_merge)
        detach(self.model)
        if others:  # they are diffusers' to take off
            for name in known.keys() - set(others):
                del known[name]
            base: nn.Module = self.model
            return base
        # Saved modules and peft_config are what is left for PEFT.
        model: nn.Module = super()._unload_and_optionally_merge(merge=False, progressbar=progressbar)
        return model


def detach(model: nn.Module) -> None:
    """Take every coefficient off a model; its modules are then as they were before.

    Args:
        model: the model, changed only if they can be taken off all of them: `checks.require_removable`.
    """
    checks.require_removable(model)
    for module in list(model.modules()):
        if isinstance(getattr(module, CHILD_NAME, None), CoeffLayer):
            find_binder(module).unbind(module)  # type: ignore[union-attr]
            delattr(module, CHILD_NAME)
    checks.unwatch(model)
