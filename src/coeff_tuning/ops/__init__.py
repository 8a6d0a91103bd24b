"""How the op is computed: the backends, and the registry that picks one."""

from __future__ import annotations

from coeff_tuning.ops import chunked, decode, mqa, native, reference, sdpa, triton
from coeff_tuning.ops.registry import Backend, list_backends, register_backend, select_backend
from coeff_tuning.ops.request import Request

__all__ = ["Backend", "Request", "list_backends", "register_backend", "select_backend"]

for _module in (sdpa, mqa, native, decode, chunked, triton, reference):
    register_backend(_module.BACKEND)
