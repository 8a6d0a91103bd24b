"""Builds the compiled CPU kernel when the package is installed from source; without a compiler, goes on without it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("src/coeff_tuning/ops/native")
# One library for each instruction set; the package picks one when it runs.
INSTRUCTION_SETS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}
# OpenMP is used and not linked: its functions are those of the library that torch has loaded.
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC"]


class KernelBuildHook(BuildHookInterface):
    """Compiles `csrc/kernel.cpp` on Linux on x86-64."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile into the source folder; a wheel takes the libraries along and is marked for its platform.

        Args:
            version: "standard" or "editable".
            build_data: what hatchling wants to know about the build.
        """
        if sys.platform != "linux" or platform.machine() != "x86_64":
            self.app.display_warning("The compiled CPU kernel is for Linux on x86-64; the package works without it.")
            return
        root = Path(self.root)
        folder = root / NATIVE / "lib"
        folder.mkdir(exist_ok=True)
        try:
            for name, flags in INSTRUCTION_SETS.items():
                compile_kernel(root / NATIVE / "csrc" / "kernel.cpp", flags, folder / f"kernel-{name}.so")
        except (OSError, subprocess.CalledProcessError) as error:
            details = getattr(error, "stderr", "") or error
            self.app.display_warning(f"The CPU kernel was not compiled; the package works without it. {details}")
            return
        build_data["artifacts"].append(f"/{NATIVE}/lib/*.so")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_kernel(source: Path, flags: list[str], target: Path) -> None:
    """Compile one library.

    Args:
        source: the C++ file.
        flags: those of the instruction set.
        target: the library to write.

    Raises:
        OSError: there is no compiler.
        subprocess.CalledProcessError: it failed.
    """
    compiler = os.environ.get("CXX", "c++")
    made = target.with_suffix(".o")
    subprocess.run([compiler, *FLAGS, *flags, "-c", source, "-o", made], check=True, capture_output=True, text=True)
    subprocess.run([compiler, "-shared", made, "-o", target], check=True, capture_output=True, text=True)
    made.unlink()
