"""What a run ran on, and what it cost."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "triton", "transformers", "peft", "datasets", "scikit-learn", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of what it stands on."""
    import coeff_tuning

    found = {"python": platform.python_version(), "coeff-tuning": coeff_tuning.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, or None for an installed package."""
    folder = Path(__file__).parent
    for command in (["ls-files", "--error-unmatch", Path(__file__).name], ["rev-parse", "HEAD"]):
        try:
            done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True)
        except OSError:
            return None
        if done.returncode != 0:
            return None
    return done.stdout.strip()


def cpu_name() -> str:
    """The processor, by the name the system has for it, else by its architecture."""
    info = Path("/proc/cpuinfo")
    rows = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    name = next((row.partition(":")[2].strip() for row in rows if row.startswith("model name")), "")
    return f"{name} ({platform.machine()})" if name else f"{platform.machine()} CPU"


def device_name() -> str:
    """The accelerator, else the processor with the number of threads torch uses."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def peak_memory_mib() -> float:
    """Most memory in use so far, in MiB: on the GPU where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 2**20)
    return resident_peak_mib()


def resident_peak_mib() -> float:
    """Most memory of this process so far that was resident, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, this does not start at the peak of the parent process
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (2**20 if sys.platform == "darwin" else 2**10)


def summary() -> dict[str, Any]:
    """Device, peak memory, versions and commit, as `metrics.json` holds them."""
    return {
        "device": device_name(),
        "peak_memory_mib": round(peak_memory_mib(), 1),
        "versions": versions(),
        "git_commit": git_commit(),
    }
