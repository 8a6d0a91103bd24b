"""What a run under several processes (torchrun, accelerate launch) needs beside what `Trainer` does itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from coeff_tuning.errors import RunError

if TYPE_CHECKING:
    from transformers import TrainingArguments


def require_one_process(command: str) -> None:
    """Refuse a command that every process would do again.

    Args:
        command: its name, for the message.

    Raises:
        RunError: torchrun or accelerate started several processes.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise RunError(
            f"coeff-tuning {command} must be started as one process; it was started as {processes}, and each would do "
            "the same work. Start it without torchrun or accelerate launch; only train and vl share their work"
        )


def is_sharded(training: TrainingArguments) -> bool:
    """Whether a run asks for FSDP.

    Args:
        training: how the run was started.

    Returns:
        True if its flags or accelerate launch say so.
    """
    return bool(training.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_sharding(training: TrainingArguments, method: str) -> None:
    """Refuse ways of sharding that would fail late, or that accelerate would leave out without a word.

    Args:
        training: how the run was started.
        method: what is trained.

    Raises:
        RunError: FSDP is asked for with a linear probe, in version 1, in one process or on the CPU.
    """
    from transformers.training_args import ParallelMode

    if not is_sharded(training):
        return
    version = int(training.fsdp_config.get("version", 2) if training.fsdp else os.environ.get("FSDP_VERSION", "1"))
    if method == "linear":
        raise RunError("--method linear is fitted by one process on a whole model; train it without FSDP")
    if version != 2:
        raise RunError(
            f"FSDP must be version 2, which shards each parameter by itself; got version {version}. Use --fsdp, or "
            "accelerate launch --fsdp_version 2"
        )
    if training.parallel_mode != ParallelMode.DISTRIBUTED or training.device.type == "cpu":
        raise RunError(
            f"FSDP needs processes with a GPU each, started by torchrun or accelerate launch; this run has "
            f"{training.world_size} on {training.device.type}, and accelerate would not shard it. Leave out --fsdp"
        )


def prepare_sharding(trainer: Any) -> None:
    """Say how FSDP2 shards and saves, where accelerate's defaults would fail or lose something.

    Modules that are sharded as one are those that the model does not let be split, as always, without those around the
    input embedding (BERT's): accelerate shards that by itself, and fails on a module that is sharded twice. Checkpoints
    are whole: of sharded ones, accelerate saves one adapter only.

    Args:
        trainer: the trainer of the run.
    """
    if not trainer.is_fsdp_enabled:
        return
    plugin, model = trainer.accelerator.state.fsdp_plugin, trainer.model
    plugin.state_dict_config = plugin.optim_state_dict_config = None  # else those of the other type stay
    plugin.set_state_dict_type("FULL_STATE_DICT")
    if plugin.transformer_cls_names_to_wrap is None:
        embedding = model.get_input_embeddings()
        around = {type(m).__name__ for m in model.modules() if m is not embedding and embedding in m.modules()}
        plugin.transformer_cls_names_to_wrap = [n for n in model._no_split_modules or [] if n not in around]


def send_from_first(training: TrainingArguments, modules: list[Any]) -> None:
    """Give every process the numbers of the first one.

    Args:
        training: how the run was started.
        modules: modules that every process has.
    """
    if training.world_size == 1:
        return
    from accelerate.utils import broadcast

    for module in modules:
        for parameter in module.parameters():
            parameter.data.copy_(broadcast(parameter.data.to(training.device).contiguous()))


def whole_state(trainer: Any) -> dict[str, Any] | None:
    """The state dict of a model that is sharded; every process has to call this.

    Args:
        trainer: the trainer of the run.

    Returns:
        All of it in the first process, nothing in the others. None for a model that is not sharded.
    """
    if not trainer.is_fsdp_enabled:
        return None
    return trainer.accelerator.get_state_dict(trainer.model)  # type: ignore[no-any-return]


def largest(trainer: Any, value: float) -> float:
    """The largest of the values of all processes.

    Args:
        trainer: the trainer of the run.
        value: that of this process.

    Returns:
        The same in every process.
    """
    import torch

    own = torch.tensor([value], dtype=torch.float32, device=trainer.args.device)
    return float(trainer.accelerator.gather(own).max())
