"""No speed without a correct result: outputs and all gradients of a backend, before it is timed.

Inputs, coefficients (signed, not symmetric) and the upstream gradient are random. An error is the largest deviation of
a tensor over its largest entry.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from coeff_tuning.bench.calls import Inputs, make_inputs, results
from coeff_tuning.bench.shapes import Shape

TRUSTED = "chunked"
# Ten times what float32 sums in another order come to. For half types see `_check_small` and `check`.
_LIMITS = {torch.float64: 1e-10, torch.float32: 2e-5}


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes:
        reason: empty if the backend is right, else the first tensor that is off.
        errors: error of each tensor, by "small out", "full query" and so on.
    """

    reason: str = ""
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the backend may be timed."""
        return not self.reason


def check(shape: Shape, backend: str, inputs: Inputs, trusted: dict[str, Tensor] | None) -> Verdict:
    """Compare a backend with the float64 reference on a scaled-down copy, then with another backend at full size.

    Args:
        shape: the call.
        backend: which one.
        inputs: tensors of the call.
        trusted: results of the backend `TRUSTED` on these inputs; None leaves the full size out.

    Returns:
        The verdict.
    """
    small = _check_small(shape.scaled_down(), backend)
    if not small.passed or trusted is None or backend == TRUSTED:
        return small
    # Both results of half types are rounded once, and may differ within the kernel by as much again.
    limit = _LIMITS.get(shape.torch_dtype, 2 * torch.finfo(shape.torch_dtype).eps)
    actual = results(shape, inputs, backend)
    full = _verdict("full", actual, trusted, dict.fromkeys(actual, limit))
    return Verdict(full.reason, {**small.errors, **full.errors})


def _check_small(shape: Shape, backend: str) -> Verdict:
    inputs = make_inputs(shape, seed=1)
    exact = results(shape, inputs.to(torch.float64), "reference")
    if shape.torch_dtype in _LIMITS:
        limits = dict.fromkeys(exact, _LIMITS[shape.torch_dtype])
    else:  # at most twice the error of the reference in the same dtype, and float32 sums in another order
        plain = results(shape, inputs, "reference")
        summation = 8 * torch.finfo(torch.float32).eps
        limits = {name: 2 * _error(plain[name], tensor) + summation for name, tensor in exact.items()}
    return _verdict("small", results(shape, inputs, backend), exact, limits)


def _verdict(size: str, actual: dict[str, Tensor], expected: dict[str, Tensor], limits: dict[str, float]) -> Verdict:
    errors = {name: _error(actual[name], tensor) for name, tensor in expected.items()}
    reason = ""
    for name, error in errors.items():
        if not error <= limits[name]:  # NaN is an error too
            what = "output" if name == "out" else f"gradient of {name}"
            reason = (
                f"{what} off by {error:.1e} of its largest entry at {size} size, at most {limits[name]:.1e} allowed"
            )
            break
    return Verdict(reason, {f"{size} {name}": error for name, error in errors.items()})


def _error(actual: Tensor, expected: Tensor) -> float:
    largest = float(expected.double().abs().max())
    return float((actual.double() - expected.double()).abs().max()) / (largest or 1.0)
