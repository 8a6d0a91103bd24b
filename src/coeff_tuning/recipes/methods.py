"""What is trained: the head always, and coefficients, LoRA, DoRA or everything beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coeff_tuning.errors import AdapterFileError, RunError
from coeff_tuning.recipes.arguments import MethodArguments
from coeff_tuning.recipes.models import PEFT_TASK_TYPES, LoadedModel

HEAD_FILE = "head.safetensors"
_COEFF_NAME = "coeff"  # adapter name, and sub-folder, of coefficients that sit beside LoRA or DoRA


def apply_method(task: str, loaded: LoadedModel, arguments: MethodArguments) -> Any:
    """Freeze the model and add what the method trains.

    Args:
        task: one of `arguments.TASKS`.
        loaded: model and head.
        arguments: the method and its settings.

    Returns:
        The model itself for `full` and `linear`, else a `PeftModel`.
    """
    import peft

    method, model = arguments.method, loaded.model
    if method == "full":
        return model.requires_grad_(True)
    if method == "linear":
        return model.requires_grad_(False)
    base = method.removeprefix("coeff+")
    head = loaded.head or None
    if base == "coeff":
        return peft.get_peft_model(model, _coeff_config(task, arguments, head))
    config = peft.LoraConfig(
        task_type=PEFT_TASK_TYPES[task],
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=arguments.lora_target_modules or query_and_value(model),
        use_dora=base == "dora",
        modules_to_save=head,
    )
    adapted = peft.get_peft_model(model, config)
    if base != method:
        from coeff_tuning import add_coeff

        adapted = add_coeff(adapted, _coeff_config(task, arguments, None), adapter_name=_COEFF_NAME)
    return adapted


def query_and_value(model: Any) -> list[str] | str:
    """The linear layers that LoRA usually changes.

    Args:
        model: a transformers model.

    Returns:
        PEFT's own choice for this architecture where it has one, else the names of query and value projections.

    Raises:
        RunError: there are none under a known name.
    """
    from peft.utils import constants

    known = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    leaves = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    candidates = (known.get(model.config.model_type, []), ["query", "value"], ["q_proj", "v_proj"], ["qkv"])
    for names in candidates:
        if names and (isinstance(names, str) or set(names) <= leaves):
            return names if isinstance(names, str) else list(names)
    raise RunError(
        f"no query and value projections are known for {model.config.model_type!r}; name linear layers with "
        "--lora_target_modules"
    )


def load_trained(loaded: LoadedModel, method: str, folder: Path) -> Any:
    """Put what a run trained back onto its pretrained model.

    Args:
        loaded: the pretrained model; for `full`, already the trained one.
        method: the run's method.
        folder: the run folder.

    Returns:
        The model, in eval mode.

    Raises:
        AdapterFileError: a file is missing, truncated or corrupt.
    """
    import peft
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = loaded.model
    try:
        if method == "linear":
            model.load_state_dict(load_file(folder / HEAD_FILE), strict=False)
        elif method != "full":
            import coeff_tuning  # registers the method with PEFT

            load = coeff_tuning.load_coeff if "+" in method else peft.PeftModel.from_pretrained
            model = load(model, str(folder))
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"what {folder} holds cannot be read: {error}") from error
    return model.eval()


def save_trained(model: Any, loaded: LoadedModel, method: str, folder: Path) -> None:
    """Write what a run trained.

    Args:
        model: what `apply_method` returned, trained.
        loaded: the pretrained model it came from.
        method: the run's method.
        folder: existing folder to write into.
    """
    from safetensors.torch import save_file

    if method == "linear":
        state = model.state_dict()
        prefixes = tuple(f"{name}." for name in loaded.head)
        head = {k: v.detach().contiguous() for k, v in state.items() if k.startswith(prefixes)}
        save_file(head, folder / HEAD_FILE, metadata={"format": "pt"})
        return
    model.save_pretrained(str(folder))


def _coeff_config(task: str, arguments: MethodArguments, head: list[str] | None) -> Any:
    from coeff_tuning import CoeffConfig

    try:
        return CoeffConfig(
            task_type=PEFT_TASK_TYPES[task],
            coeff_dropout=arguments.coeff_dropout,
            layers_to_transform=arguments.coeff_layers,
            parameterization=arguments.coeff_parameterization,
            init=arguments.coeff_init,
            modules_to_save=head,
        )
    except ValueError as error:
        raise RunError(f"these coefficients cannot be made: {error}") from None
