"""A compiled CPU kernel: its C++ in `csrc`, the bridge to it in `library` and `launch`, the torch op in `backend`."""

from __future__ import annotations

from coeff_tuning.ops.native.backend import BACKEND

__all__ = ["BACKEND"]
