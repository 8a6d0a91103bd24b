"""How the op is computed: the backends, and the registry that picks one.

- `canonical`, `request`: from a caller's arguments to the one form that backends know
- `registry`: which backend serves a request
- `reference`: the formula, ground truth of all others
- `sdpa`, `mqa`, `decode`, `chunked` (with `_blocks`, `_chunked_kernel`, `_chunked_vmap`): plain torch
- `native`, `triton`: C++ for the CPU, and kernels for the GPU
- `_call`: what `chunked` and `triton` share
"""

from __future__ import annotations

from coeff_tuning.ops import chunked, decode, mqa, native, reference, sdpa, triton
from coeff_tuning.ops.registry import Backend, list_backends, register_backend, select_backend
from coeff_tuning.ops.request import Request

__all__ = ["Backend", "Request", "list_backends", "register_backend", "select_backend"]

for _module in (sdpa, mqa, native, decode, chunked, triton, reference):
    register_backend(_module.BACKEND)
