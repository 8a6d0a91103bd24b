"""`torchrun --nproc_per_node 2 -m coeff_tuning.cli ...`, forked from a process that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

PRELOADED = ["coeff_tuning.cli", "coeff_tuning.recipes.train", "coeff_tuning.recipes.report", "datasets", "sklearn"]


def run(argv: list[str], logs: Path, *, sharded: bool = False, killed_after: int | None = None) -> None:
    """Run a command line in two processes.

    Args:
        argv: as for `cli.main`.
        logs: existing folder; what the processes print is put into `RANK/stdout.log` and `RANK/stderr.log` below it.
        sharded: let accelerate shard on the CPU.
        killed_after: the second process kills itself after so many steps.

    Raises:
        torch.distributed.elastic.multiprocessing.errors.ChildFailedError: torchrun's own error when a process fails.
    """
    multiprocessing.set_forkserver_preload([*PRELOADED, __name__])
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        start_method="forkserver",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ALL),
    )
    elastic_launch(config, _process)(argv, sharded, killed_after)


def _process(argv: list[str], sharded: bool, killed_after: int | None) -> None:
    from coeff_tuning import cli

    if sharded:
        _shard_on_cpu()
    if killed_after is not None:
        _die_after(killed_after)
    if cli.main(argv) != 0:
        sys.exit(2)


def _shard_on_cpu() -> None:
    """Let accelerate shard, which it does not offer on the CPU; everything after that is its usual path."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    from coeff_tuning.recipes import distributed
    from coeff_tuning.recipes.trainer import CoeffTrainer

    original = CoeffTrainer.create_accelerator_and_postprocess

    def create(trainer: CoeffTrainer) -> None:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        original(trainer)
        assert trainer.is_fsdp_enabled

    CoeffTrainer.create_accelerator_and_postprocess = create
    distributed.check_sharding = lambda *_: None


def _die_after(steps: int) -> None:
    from coeff_tuning.recipes.trainer import CoeffTrainer

    original = CoeffTrainer.training_step

    def step(trainer: CoeffTrainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == steps and trainer.args.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if trainer.state.global_step == steps:
            time.sleep(
                60
            )  # as where nothing tells it that the other one is gone; else either may be seen to fail first
        return original(trainer, *args, **kwargs)

    CoeffTrainer.training_step = step
