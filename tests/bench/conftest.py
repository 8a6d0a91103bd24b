"""A place for backends that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from coeff_tuning.ops import Backend, Request, registry

Add = Callable[..., str]


@pytest.fixture
def add_backend(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Registers a backend for one test; it is tried last."""
    backends = dict(registry._backends)
    monkeypatch.setattr(registry, "_backends", backends)

    def add(name: str, call: Callable[[Request], Tensor], reason: str = "") -> str:
        registry.register_backend(Backend(name, priority=1, supports=lambda request: (not reason, reason), call=call))
        return name

    return add
