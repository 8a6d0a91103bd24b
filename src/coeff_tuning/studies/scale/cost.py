"""Cost of coefficients, from shapes alone; times are projections from measured ratios."""

from __future__ import annotations

from statistics import median
from typing import Any

from coeff_tuning.bench.rows import Row, figure
from coeff_tuning.errors import RunError
from coeff_tuning.studies.scale.shapes import Shape

_FLOAT = 4  # bytes; coefficients are trained and saved in float32
_ADAM_STATES = 2
_FORWARD = "forward"


def count(shape: Shape) -> int:
    """Coefficients: `sum of H^2` over attention layers.

    Args:
        shape: an architecture.

    Returns:
        The number.
    """
    return sum(layers * heads**2 for layers, heads, _ in shape.groups)


def flop_ratio(shape: Shape) -> float:
    """FLOPs of attention (scores and output) with coefficients, over those without: `1 + H / (2d)`.

    Args:
        shape: an architecture; of several kinds of layers, the largest ratio counts.

    Returns:
        The ratio.
    """
    return max(1 + heads / (2 * size) for _, heads, size in shape.groups)


def overheads(rows: list[Row]) -> list[float]:
    """Measured time of attention with coefficients over what FLOPs alone would give.

    Args:
        rows: of `bench op`; forward passes of a default backend with at least two queries count.

    Returns:
        One for each such row: `(time / SDPA) / (FLOP ratio)`.

    Raises:
        RunError: there is none.
    """
    found = []
    for row in rows:
        entry = figure(row, "time / SDPA") if row["status"] == "ok" and row["measured"] == _FORWARD else None
        if entry is not None and row["is_default"] and row["length"] > 1:
            found.append(entry["value"] / row["flop_ratio_limit"])
    if not found:
        raise RunError("a projection needs rows of 'bench op' with forward passes of a default backend; got none")
    return found


def describe(shape: Shape, measured: list[float]) -> dict[str, Any]:
    """A row.

    Args:
        shape: an architecture.
        measured: from `overheads`.

    Returns:
        Shape, counted cost, and projected time of attention over torch's own: median, smallest and largest.
    """
    numbers, ratio = count(shape), flop_ratio(shape)
    projected = {"median": median(measured), "low": min(measured), "high": max(measured)}
    return {
        "model": shape.name,
        "parameters": round(shape.parameters * 1e6),
        "groups": [list(group) for group in shape.groups],
        "source": shape.source,
        "coefficients": numbers,
        "adapter_bytes": _FLOAT * numbers,
        "optimiser_bytes": _ADAM_STATES * _FLOAT * numbers,
        "flop_ratio": ratio,
        "projected_time_ratio": {name: ratio * value for name, value in projected.items()},
    }
