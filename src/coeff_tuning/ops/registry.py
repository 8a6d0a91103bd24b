"""The ways to compute the op, and which of them serves a call.

A backend says by itself whether it can serve a request and, if not, why. The one with the highest priority
that can is taken; a caller who names one gets that one or an error. Each new choice, with the reasons of
those that were passed over, is logged once at INFO under the logger `coeff_tuning.ops`. While a model is exported only
backends of plain torch operations are taken, so that the program needs nothing of this package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from coeff_tuning.errors import UnsupportedError
from coeff_tuning.ops.request import Request, is_exporting

_logger = logging.getLogger("coeff_tuning.ops")
_backends: dict[str, Backend] = {}  # the highest priority first
_logged: set[tuple[str, tuple[str, ...]]] = set()


@dataclass(frozen=True)
class Backend:
    """One way to compute the op.

    Attributes:
        name: what a caller passes as `backend`.
        priority: the highest that supports a request is taken.
        supports: answers `(True, "")`, or `(False, reason)` with one sentence that names the actual value.
        call: computes `(B, H, L, Ev)` in the dtype of `query`. Autocast is off when it runs.
        is_exportable: whether it is plain torch operations for every size, so that `torch.export` and ONNX can hold it.
    """

    name: str
    priority: int
    supports: Callable[[Request], tuple[bool, str]]
    call: Callable[[Request], Tensor]
    is_exportable: bool = False


def register_backend(backend: Backend) -> None:
    """Make a backend available to `coeff_attention`.

    Args:
        backend: its name must be new.

    Raises:
        ValueError: a backend of this name is registered already.
    """
    if backend.name in _backends:
        raise ValueError(f"A backend must have a new name; {backend.name!r} is registered already.")
    ordered = sorted((*_backends.values(), backend), key=lambda known: -known.priority)
    _backends.clear()
    _backends.update({known.name: known for known in ordered})


def list_backends() -> list[str]:
    """Names of all backends, the one that is tried first in front."""
    return list(_backends)


def select_backend(request: Request, name: str | None = None) -> Backend:
    """Backend that serves a request.

    Args:
        request: the checked call.
        name: this backend and no other. None: the first by priority that supports the request; of the exportable ones
            while a model is exported.

    Returns:
        The backend; its `supports(request)` is true.

    Raises:
        ValueError: there is no backend of this name.
        UnsupportedError: the named backend, or every backend, refuses the request.
    """
    if name is not None:
        if name not in _backends:
            raise ValueError(f"backend must be None or one of {', '.join(list_backends())}; got {name!r}.")
        supported, reason = _backends[name].supports(request)
        if not supported:
            raise UnsupportedError(
                f"backend {name!r} cannot serve this call: {reason} Pass backend=None to use another."
            )
        return _backends[name]

    refusals: list[str] = []
    exporting = is_exporting()
    for backend in _backends.values():
        if exporting and not backend.is_exportable:
            continue  # before it can look at sizes, which would then be fixed in the program
        supported, reason = backend.supports(request)
        if supported:
            _log_once(backend.name, tuple(refusals))
            return backend
        refusals.append(f"{backend.name}: {reason}")
    raise UnsupportedError("No backend can serve this call. " + " ".join(refusals))


def _log_once(name: str, refusals: tuple[str, ...]) -> None:
    if torch.compiler.is_compiling() or (name, refusals) in _logged:
        return
    _logged.add((name, refusals))
    _logger.info("coeff_attention uses backend %r. %s", name, " ".join(f"Not {r}" for r in refusals))
