"""A vision transformer of timm with a method on it, in the form that `Trainer` takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from coeff_tuning.errors import RunError
from coeff_tuning.recipes.extras import require
from coeff_tuning.studies.methods import adapter, fact, prompts, ssf
from coeff_tuning.studies.vtab.recipes import COEFF_DROPOUT

LORA_RANK = 8

# Methods of our own: attached to the model; they return what is trained. LoRA and DoRA are PEFT's.
_OWN: dict[str, Callable[[nn.Module, dict[str, float]], list[nn.Parameter]]] = {
    "fact": lambda model, settings: fact.attach(model, settings["scale"]),
    "ssf": lambda model, settings: ssf.attach(model),
    "adapter": lambda model, settings: adapter.attach(model),
    "vpt": lambda model, settings: prompts.attach(model, int(settings["count"])),
}


class Classifier(nn.Module):
    """A model of images, with the loss.

    Args:
        model: gives logits; may be a `PeftModel`.
        size: height and width of its images.
        head_parameters: numbers in its head.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int], head_parameters: int) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self.head_parameters = head_parameters

    @property
    def extra_parameters(self) -> int:
        """Numbers that are trained beside the head."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad) - self.head_parameters

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Classify images.

        Args:
            pixel_values: `(B, 3, height, width)`.
            labels: `(B,)`; adds the cross-entropy.

        Returns:
            `logits` `(B, classes)`, and `loss` where labels are given.
        """
        logits = self.model(pixel_values)
        loss = {} if labels is None else {"loss": F.cross_entropy(logits, labels)}
        return {**loss, "logits": logits}


def build(
    name: str, classes: int, method: str, settings: dict[str, float], drop_path: float, *, pretrained: bool
) -> Classifier:
    """Load a model, give it a new head, freeze it, and add what the method trains.

    Args:
        name: a model of timm.
        classes: outputs of the head.
        method: one of `recipes.RECIPES`.
        settings: of the method.
        drop_path: of the model.
        pretrained: load its weights; random otherwise.

    Returns:
        The classifier.

    Raises:
        RunError: the model cannot be made.
    """
    vit = _create(name, classes, drop_path, pretrained)
    vit.requires_grad_(False)
    head = list(vit.get_classifier().parameters())
    base = method.removeprefix("coeff+")
    own = _OWN[base](vit, settings) if base in _OWN else []
    model = _with_peft(vit, base, has_coefficients="coeff" in method)
    for parameter in (*own, *head):  # PEFT has frozen what is not its own
        parameter.requires_grad_(True)
    return Classifier(model, tuple(vit.patch_embed.img_size), sum(p.numel() for p in head))


def _create(name: str, classes: int, drop_path: float, pretrained: bool) -> Any:
    timm = require("timm")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=classes, drop_path_rate=drop_path)
    except Exception as error:  # timm and the hub raise many unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(f"--model {name!r} cannot be made by timm{_hint(pretrained)}: {reason}") from error


def _hint(pretrained: bool) -> str:
    return " with pretrained weights, which it downloads (--no-pretrained: random ones)" if pretrained else ""


def _with_peft(vit: nn.Module, base: str, *, has_coefficients: bool) -> nn.Module:
    import peft

    from coeff_tuning import CoeffConfig, add_coeff

    model: Any = vit
    config = CoeffConfig(coeff_dropout=COEFF_DROPOUT)
    if base in ("lora", "dora"):
        # On the fused layer, rank 8 has as many numbers as on query and value apart: 294,912 in ViT-B.
        lora = peft.LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=["qkv"], use_dora=base == "dora")
        model = peft.get_peft_model(vit, lora)
        return add_coeff(model, config) if has_coefficients else model  # type: ignore[no-any-return]
    return peft.get_peft_model(vit, config) if has_coefficients else model  # type: ignore[no-any-return]
