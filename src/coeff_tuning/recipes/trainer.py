"""A `Trainer` for models that carry coefficients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from coeff_tuning.errors import RunError


class CoeffTrainer(Trainer):  # type: ignore[misc]
    """`Trainer` with parameter groups for coefficients and LoRA, and a resume that restores every adapter.

    The stock `Trainer` reloads the adapters of a `PeftModel` with several of them through `load_adapter` and
    `set_adapter`, which leaves only the first one active and trainable.

    Args:
        *args: as for `Trainer`.
        coeff_learning_rate: learning rate of the coefficients.
        coeff_weight_decay: weight decay of the coefficients.
        lora_learning_rate: learning rate of LoRA and DoRA. None: that of everything else.
        **kwargs: as for `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        coeff_learning_rate: float,
        coeff_weight_decay: float = 0.0,
        lora_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.coeff_learning_rate = coeff_learning_rate
        self.coeff_weight_decay = coeff_weight_decay
        self.lora_learning_rate = lora_learning_rate

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Build the optimiser, then move coefficients and LoRA to groups of their own.

        Args:
            *args: as for `Trainer`.
            **kwargs: as for `Trainer`.

        Returns:
            The optimiser.
        """
        is_new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if is_new:
            _move(optimizer, coeff_parameters(self.model), self.coeff_learning_rate, self.coeff_weight_decay)
            if self.lora_learning_rate is not None:
                _move(optimizer, lora_parameters(self.model), self.lora_learning_rate, self.args.weight_decay)
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = model or self.model
        if self._is_reloaded_by_trainer(model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load_adapters(model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self._is_reloaded_by_trainer(self.model):
            super()._load_best_model()
            return
        load_adapters(self.model, Path(str(self.state.best_model_checkpoint)))

    def _is_reloaded_by_trainer(self, model: Any) -> bool:
        """Whether the stock `Trainer` restores everything: it does for one adapter, and for any number under FSDP."""
        return self.is_fsdp_enabled or len(getattr(model, "peft_config", ())) < 2


def _move(
    optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], lr: float, weight_decay: float
) -> None:
    """Give parameters of an optimiser a group of their own."""
    moved = {id(p) for p in parameters}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in moved]
    if parameters:
        optimizer.add_param_group({"params": parameters, "lr": lr, "weight_decay": weight_decay})


def coeff_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The coefficients of a model that are being trained.

    Args:
        model: any model.

    Returns:
        One `(H, H)` parameter per layer and trained adapter; empty for a model without coefficients.
    """
    from coeff_tuning import CoeffLayer

    layers = [m for m in model.modules() if isinstance(m, CoeffLayer)]
    return [p for layer in layers for p in layer.adapters.values() if p.requires_grad]


def lora_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The numbers of LoRA or DoRA in a model that are being trained.

    Args:
        model: any model.

    Returns:
        Its parameters; empty for a model without LoRA.
    """
    from peft.tuners.lora import LoraLayer

    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    own = {
        id(p): p
        for layer in layers
        for name in layer.adapter_layer_names
        for p in getattr(layer, name).parameters()
        if p.requires_grad
    }
    return list(own.values())


def load_adapters(model: Any, folder: Path) -> None:
    """Put saved weights into the adapters that a model already has; which of them are active stays as it is.

    Args:
        model: a `PeftModel`.
        folder: what `save_pretrained` wrote: `default` at the top, every other adapter in a sub-folder.

    Raises:
        RunError: an adapter was not saved there, or has other keys.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    for name in model.peft_config:
        source = folder if name == "default" else folder / name
        if not (source / "adapter_model.safetensors").is_file():
            raise RunError(f"checkpoint {folder} holds no weights for adapter {name!r}")
        weights = load_peft_weights(str(source), device="cpu")
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
        if result.unexpected_keys:
            raise RunError(f"checkpoint {source} does not fit the model: unexpected {result.unexpected_keys[:3]}")
