"""The compiled library: where it is, and the structs that its functions take.

The kernel is plain C++ behind a C interface, without headers of torch or Python: one wheel serves every version of
both. It is built when the package is installed (`hatch_build.py`), where there is a compiler; without it, the registry
passes this backend over and says so.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "lib"
# Built for each instruction set; torch names the one that this machine has.
_NAMES = {"AVX2": "avx2", "AVX512": "avx512"}

NO_MASK, BOOL_MASK, FLOAT_MASK = range(3)


class Heads(ctypes.Structure):
    """A `(B, H, L, X)` float32 tensor whose last dimension is contiguous; steps count numbers."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("position", ctypes.c_int64),
    )

    @classmethod
    def of(cls, tensor: Tensor | None) -> Heads:
        """Look at a tensor; None: nothing to read or write.

        Args:
            tensor: the tensor, which must outlive the struct.

        Returns:
            The struct.
        """
        return cls() if tensor is None else cls(tensor.data_ptr(), *tensor.stride()[:3])


class Mask(ctypes.Structure):
    """A mask; steps count its entries, 0 along dimensions that it shares."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("kind", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("query", ctypes.c_int64),
        ("key", ctypes.c_int64),
    )


class Problem(ctypes.Structure):
    """One call; the same fields, in the same order, as `Problem` in `csrc/problem.h`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "queries", "keys")),
        *((name, ctypes.c_int64) for name in ("key_size", "value_size")),
        *((name, Heads) for name in ("query", "key", "value", "out", "dout", "dquery", "dkey", "dvalue")),
        ("coeff", ctypes.c_void_p),
        ("coeff_batch", ctypes.c_int64),
        ("stats", ctypes.c_void_p),
        ("dcoeff", ctypes.c_void_p),
        ("mask", Mask),
        ("is_causal", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("block_queries", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("workspace", ctypes.c_void_p),
        ("workspace_floats", ctypes.c_int64),
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def why_missing() -> str:
    """Why there is no library for this machine; "" where there is one."""
    return load_library()[1]


@cache
def load_library() -> tuple[Any, str]:
    """The compiled functions for this machine.

    Returns:
        The library and "", or None and the reason why there is none.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in _NAMES:
        return None, f"needs a CPU with AVX2 or AVX512, got {capability}."
    file = FOLDER / f"kernel-{_NAMES[capability]}.so"
    if not file.is_file():
        return None, "needs the compiled kernel, which was not built with this installation (no C++ compiler then)."
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        return None, f"needs the compiled kernel, which cannot be loaded here ({error})."
    if not _is_ours(library):
        return None, "needs a kernel compiled from the sources beside it; this one is older. Install the package again."
    for name in ("coeff_lanes", "coeff_forward_floats", "coeff_backward_floats"):
        getattr(library, name).restype = ctypes.c_int64
    return library, ""


def _is_ours(library: ctypes.CDLL) -> bool:
    """Whether the library was compiled with the `Problem` of this file."""
    size = getattr(library, "coeff_problem_bytes", None)
    return size is not None and size() == ctypes.sizeof(Problem)
