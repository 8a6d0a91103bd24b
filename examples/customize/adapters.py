"""What is trained in the UNet: coefficients on self- and cross-attention, LoRA on its projections, or both."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from coeff_tuning import CoeffConfig, add_coeff, load_coeff
from coeff_tuning.errors import RunError

METHODS = ("coeff", "lora", "coeff+lora")
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # those of diffusers' DreamBooth recipe


def attach(unet: nn.Module, method: str, lora_r: int, coeff_dropout: float) -> PeftModel:
    """Freeze a UNet and add what the method trains; its outputs stay the same.

    Args:
        unet: changed in place.
        method: one of `METHODS`.
        lora_r: rank, and scale, of LoRA.
        coeff_dropout: of the coefficients.

    Returns:
        The PeftModel around it.
    """
    coefficients = CoeffConfig(coeff_dropout=coeff_dropout)
    if method == "coeff":
        return get_peft_model(unet, coefficients)
    lora = LoraConfig(r=lora_r, lora_alpha=lora_r, init_lora_weights="gaussian", target_modules=LORA_TARGETS)
    model = get_peft_model(unet, lora)
    return add_coeff(model, coefficients) if method == "coeff+lora" else model


def load(unet: nn.Module, folder: str | Path, method: str) -> PeftModel:
    """Put what a run trained into a UNet, that of a pipeline for instance, which then draws with it.

    Args:
        unet: changed in place.
        folder: a finished run.
        method: its method.

    Returns:
        The PeftModel around it; its `disable_adapter()` gives the base model.
    """
    if method == "lora":
        return PeftModel.from_pretrained(unet, str(folder)).eval()
    return load_coeff(unet, folder).eval()


def save_for_pipeline(model: PeftModel, folder: str | Path) -> None:
    """Write LoRA, if there is one, once more: as `pipe.load_lora_weights` reads it.

    Args:
        model: of `attach`.
        folder: gets `pytorch_lora_weights.safetensors`.
    """
    from diffusers import StableDiffusionPipeline

    config = model.peft_config["default"]
    if not isinstance(config, LoraConfig):
        return
    layers = {key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(model).items()}
    StableDiffusionPipeline.save_lora_weights(str(folder), unet_lora_layers=layers)  # alpha is the rank: its default


def groups(model: nn.Module, learning_rate: float, coeff_learning_rate: float) -> list[dict[str, Any]]:
    """Parameter groups: the coefficients want a rate of their own and no weight decay."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    coefficients = [p for name, p in named if "coeff_delta" in name]
    others = [p for name, p in named if "coeff_delta" not in name]
    made = [
        {"params": coefficients, "lr": coeff_learning_rate, "weight_decay": 0.0},
        {"params": others, "lr": learning_rate, "weight_decay": 1e-2},
    ]
    return [group for group in made if group["params"]]


def load_pipeline(name: str, dtype: Any) -> Any:
    """A pipeline of Stable Diffusion 1.x, 2.x or XL.

    Args:
        name: folder or hub id.
        dtype: of its weights.

    Returns:
        The pipeline, silent.

    Raises:
        RunError: it cannot be loaded, or is of another kind.
    """
    from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline, StableDiffusionXLPipeline

    try:
        pipe = AutoPipelineForText2Image.from_pretrained(name, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        raise RunError(f"the pipeline {name} cannot be loaded: {error}") from error
    if not isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        raise RunError(f"{name} must be a pipeline of Stable Diffusion 1.5, 2 or XL; it is a {type(pipe).__name__}")
    if getattr(pipe.vae.config, "latents_mean", None) is not None:
        raise RunError(f"the VAE of {name} shifts its latents by a mean, which is not served; use SD 1.5 or SDXL")
    pipe.set_progress_bar_config(disable=True)
    return pipe
