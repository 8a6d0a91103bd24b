"""Peak memory of a piece of work above what was there before it, each figure from a process of its own.

On the CPU that is resident memory: what the process really touched, libraries' work space and freed blocks that the
allocator keeps included. On Linux the high-water mark is reset before the work; elsewhere it cannot be, and work
below an earlier peak of the process reads as 0. On CUDA it is what torch allocated.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from coeff_tuning.recipes.environment import resident_peak_mib

Prepare = Callable[..., tuple[Callable[[], object], str]]

_RESET = Path("/proc/self/clear_refs")
_PRELOAD = ["coeff_tuning.bench.op", "coeff_tuning.bench.training"]


def peak_in_child(prepare: Prepare, *arguments: object) -> tuple[float | None, str]:
    """Measure work in a new process, with as many threads as this one.

    Args:
        prepare: a function of a module; called there, it returns the work and its device, "cpu" or "cuda".
        *arguments: of `prepare`.

    Returns:
        Peak of the work in MiB and "", or None and the reason.
    """
    # A server that has imported the packages, and has run nothing, is forked: imports take seconds.
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(_PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, prepare, arguments, torch.get_num_threads()))
    child.start()
    sender.close()
    try:
        peak, reason = receiver.recv()
    except EOFError:
        child.join()
        peak, reason = None, f"its process ended with code {child.exitcode} (-9: out of memory)"
    child.join()
    return peak, f"memory was not measured: {reason}" if reason else ""


def _child(sender: Connection, prepare: Prepare, arguments: tuple[Any, ...], threads: int) -> None:
    torch.set_num_threads(threads)
    try:
        work, device = prepare(*arguments)
        sender.send((round(peak_above(work, device), 2), ""))
    except Exception as error:  # goes to the parent, which says it
        sender.send((None, f"{type(error).__name__}: {error}"))


def peak_above(work: Callable[[], object], device: str) -> float:
    """Peak memory of this process during `work`, in MiB above what it holds before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    if _RESET.exists():
        _RESET.write_text("5")
    resident = resident_peak_mib()
    work()
    return resident_peak_mib() - resident
