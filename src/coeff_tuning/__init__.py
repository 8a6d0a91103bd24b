"""Fine-tune attention models with a few hundred numbers: learn how their attention heads combine."""

from __future__ import annotations

__version__ = "0.1.0"
