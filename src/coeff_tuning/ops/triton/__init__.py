"""The fused backend for NVIDIA GPUs, in Triton: attention maps exist in tiles only."""

from __future__ import annotations

from coeff_tuning.ops.triton.backend import BACKEND

__all__ = ["BACKEND"]
