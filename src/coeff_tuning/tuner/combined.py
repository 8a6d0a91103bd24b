"""The class that a PeftModel takes on when coefficients join another method: PEFT's calls then mind both.

PEFT sends `set_adapter`, `delete_adapter`, `load_adapter` and `unload` to the method that came first, which does not
know coefficients. Changing the class of the one instance keeps identity, `isinstance`, deepcopy and pickle working.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel
from peft.utils import CONFIG_NAME
from torch import nn

from coeff_tuning.errors import AdapterMismatchError, CombinationError, MergeError
from coeff_tuning.tuner import mixed_batch
from coeff_tuning.tuner.checks import coeff_layers, require_removable, unwatch
from coeff_tuning.tuner.config import CoeffConfig, check_files, peft_type_of
from coeff_tuning.tuner.merge import merge_exactly
from coeff_tuning.tuner.model import detach


class _Combined:
    """Mixed into a PeftModel class by `combined_class`."""

    peft_config: dict[str, Any]
    base_model: Any
    get_base_model: Any
    training: bool
    active_adapters: list[str]
    has_active_enabled_adapter: bool

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Choose the active adapter of the method that the name belongs to; the other method stays as it is."""
        if not isinstance(self.peft_config.get(adapter_name), CoeffConfig):
            super().set_adapter(adapter_name, inference_mode=inference_mode)  # type: ignore[misc]
            return
        for _, layer in coeff_layers(self.get_base_model()):
            layer.set_adapter([adapter_name], inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; with the last coefficients gone, the model is one of the other method alone."""
        if not isinstance(self.peft_config.get(adapter_name), CoeffConfig):
            if [name for name in self.peft_config if name not in self._coeff_names()] == [adapter_name]:
                raise CombinationError(
                    f"{adapter_name!r} is the only adapter of the method that owns this PeftModel, and coefficients "
                    f"{self._coeff_names()} cannot stay without it. Use unload() for the base model, or load the saved "
                    "coefficients alone with load_coeff."
                )
            super().delete_adapter(adapter_name)  # type: ignore[misc]
            return
        if self._coeff_names() == [adapter_name]:
            require_removable(self.get_base_model())
        for _, layer in coeff_layers(self.get_base_model()):
            layer.delete_adapter(adapter_name)  # type: ignore[operator]
        del self.peft_config[adapter_name]
        if not self._coeff_names():
            self._leave()

    def add_adapter(self, adapter_name: str, peft_config: Any, *args: Any, **kwargs: Any) -> None:
        """Add an adapter of the other method, whose checks of its own configs would stumble over coefficients."""
        if adapter_name in self.peft_config:
            raise ValueError(f"adapter_name must be new; the model has {list(self.peft_config)}, {adapter_name!r} too.")
        own = {name: self.peft_config.pop(name) for name in self._coeff_names()}
        try:
            super().add_adapter(adapter_name, peft_config, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.peft_config.update(own)

    def load_adapter(self, model_id: str | os.PathLike[str], adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter; over an existing one, also the coefficients that were saved in the same folder.

        Args:
            model_id: folder or hub id.
            adapter_name: its name in the model.
            *args: as in `peft.PeftModel.load_adapter`.
            **kwargs: the same.

        Returns:
            What PEFT returns: the keys that had no match.

        Raises:
            AdapterFileError: a file cannot be read.
            AdapterMismatchError: the folder holds an adapter of another method than the one that it is loaded over.
        """
        own = self._coeff_names()
        is_replaced = adapter_name in self.peft_config and adapter_name not in own
        beside = {
            name: Path(model_id, name) for name in own if is_replaced and Path(model_id, name, CONFIG_NAME).is_file()
        }
        folder = Path(model_id, kwargs.get("subfolder") or "")
        for each in (folder, *beside.values()):
            check_files(each)  # all before the first is loaded; PEFT does not name a file that it cannot read
        self._require_kind(adapter_name, folder / CONFIG_NAME)
        result = super().load_adapter(model_id, adapter_name, *args, **kwargs)  # type: ignore[misc]
        for name, each in beside.items():
            super().load_adapter(str(each), name, *args, **kwargs)  # type: ignore[misc]
        return result

    def _require_kind(self, adapter_name: str, config: Path) -> None:
        """PEFT would load nothing, in silence."""
        held = self.peft_config.get(adapter_name)
        saved = peft_type_of(config) if config.is_file() else None
        if held is not None and saved not in (None, held.peft_type):
            raise AdapterMismatchError(
                f"{config.parent} must hold an adapter of {held.peft_type.value}, which {adapter_name!r} is; it holds "
                f"one of {saved}. Name the folder, or the adapter, of the same method."
            )

    def unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Take off both methods; gives the base model."""
        detach(self.get_base_model())
        return self.base_model.unload(*args, **kwargs)  # type: ignore[no-any-return]

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> nn.Module:
        """Merge the other method, then the coefficients if that is exact; else they stay active, with a warning."""
        configs = {name: self.peft_config[name] for name in self._coeff_names()}
        named = None if adapter_names is None else [name for name in adapter_names if name in configs]
        require_removable(self.get_base_model())
        model: Any = self.base_model.merge_and_unload(progressbar, safe_merge, adapter_names)
        try:
            if named == []:
                raise MergeError(f"adapter_names={adapter_names} names none of them.")
            merge_exactly(model, named, safe_merge)
        except MergeError as error:
            model.peft_config = configs
            warnings.warn(
                f"The coefficients {list(configs)} cannot be merged and stay active in the merged model, which needs "
                f"them beside its weights. Save them with save_pretrained before merging. {error}"
            )
        else:
            detach(model)
        return model  # type: ignore[no-any-return]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; `adapter_names=[...]` names for each sample an adapter, or a tuple of one of each method."""
        if kwargs.get("adapter_names") is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with self._samples(args, kwargs):
            return super().forward(*args, **{**kwargs, "adapter_names": None})  # type: ignore[misc]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate; `adapter_names` as in `forward`."""
        if kwargs.get("adapter_names") is None:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        with self._samples(args, kwargs):
            return super().generate(*args, **{**kwargs, "adapter_names": None})  # type: ignore[misc]

    @contextmanager
    def _samples(self, args: Any, kwargs: dict[str, Any]) -> Iterator[None]:
        """Mix the samples of a batch ourselves; PEFT knows the names of one method, and leaves hooks after an error."""
        own_names = self._coeff_names()
        other_names = [name for name in self.peft_config if name not in own_names]
        coeff, other = mixed_batch.split(kwargs["adapter_names"], own_names, other_names)
        mixed_batch.check_batch(args, kwargs, len(coeff))  # PEFT before 0.21 calls the base model without its hooks
        if not self.has_active_enabled_adapter:
            yield
            return
        base = self.get_base_model()
        told: list[str] | None = other
        if set(other) == set(self.active_adapters):  # one adapter, active already: any method can do that
            told = None
        elif (refusing := mixed_batch.refusing_layer(base)) is not None or self._is_activated():
            raise CombinationError(
                f"Samples of a batch can only differ in coefficients here: {refusing or 'aLoRA'} runs a whole batch "
                f"under one adapter. Name its active adapter {self.active_adapters} beside the coefficients of every "
                f"sample, as in [({self.active_adapters[0]!r}, {own_names[0]!r}), ...], or run a batch for each."
            )
        with mixed_batch.sample_adapters(base, self.training, kwargs, coeff, told):
            yield

    def _is_activated(self) -> bool:
        """Whether an adapter is an aLoRA, which acts from a token of its own on."""
        return any(getattr(config, "alora_invocation_tokens", None) for config in self.peft_config.values())

    def _coeff_names(self) -> list[str]:
        return [name for name, config in self.peft_config.items() if isinstance(config, CoeffConfig)]

    def _leave(self) -> None:
        detach(self.get_base_model())
        unwatch(self)  # type: ignore[arg-type]
        self.__class__ = next(cls for cls in type(self).__mro__ if issubclass(cls, PeftModel) and not _is_combined(cls))


def _is_combined(cls: type) -> bool:
    return issubclass(cls, _Combined)


def combined_class(cls: type[PeftModel]) -> type[PeftModel]:
    """The class for a model with coefficients beside another method.

    Args:
        cls: class of the PeftModel.

    Returns:
        A subclass of `cls`, or `cls` itself if it is one already.
    """
    if _is_combined(cls):
        return cls
    name = f"{cls.__name__}WithCoeff"
    if name not in globals():
        doc = f"`peft.{cls.__name__}` with coefficients beside its own method."
        globals()[name] = type(name, (_Combined, cls), {"__module__": __name__, "__doc__": doc})
    combined: type[PeftModel] = globals()[name]
    return combined


for _cls in {PeftModel, *MODEL_TYPE_TO_PEFT_MODEL_MAPPING.values()}:
    combined_class(_cls)  # now, so that a pickled model finds its class
