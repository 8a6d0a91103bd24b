"""The toy study: the same targets for three ways to train one attention layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coeff_tuning.studies.hull.geometry import Hull, Points
from coeff_tuning.studies.hull.layer import HullLayer

HEADS = 4
TOKENS = 8
LEARNING_RATE = 0.02
# Trained parameters by method.
METHODS: dict[str, tuple[str, ...]] = {
    "Wq, Wk": ("wq", "wk"),
    "coefficients": ("coeff_delta",),
    "both": ("wq", "wk", "coeff_delta"),
}
# Where targets are: from the centre of the hull (0) to its border (1) and beyond.
PLACEMENTS: dict[str, tuple[float, float]] = {"inside": (0.2, 0.8), "outside": (1.2, 1.8)}


@dataclass
class Outcome:
    """One trained layer.

    Attributes:
        row: what is stored.
        track: `(frames, H, N, 2)`, outputs during training; for the animation.
    """

    row: dict[str, Any]
    track: Points


def draw_targets(hulls: list[Hull], placement: str, generator: torch.Generator) -> Tensor:
    """One target for each head and token, in a random direction from the centre of that head's hull.

    Args:
        hulls: hull of the values of each head.
        placement: one of `PLACEMENTS`.
        generator: draws directions and distances.

    Returns:
        `(H, N, 2)`.
    """
    low, high = PLACEMENTS[placement]
    targets = []
    for hull in hulls:
        angle = 2 * torch.pi * torch.rand(TOKENS, generator=generator, dtype=torch.float64)
        factor = low + (high - low) * torch.rand(TOKENS, 1, generator=generator, dtype=torch.float64)
        border = torch.from_numpy(hull.border(torch.stack([angle.cos(), angle.sin()], dim=1).numpy()))
        centre = torch.from_numpy(hull.centre)
        targets.append(centre + factor * (border - centre))
    return torch.stack(targets)


def run(seed: int, method: str, placement: str, steps: int, frames: Iterable[int] = ()) -> Outcome:
    """Train one layer with Adam on the mean squared distance of all outputs to their targets.

    Args:
        seed: draws tokens, weights and targets; the same for every method.
        method: one of `METHODS`.
        placement: one of `PLACEMENTS`.
        steps: training steps.
        frames: steps before which outputs are kept for the animation.

    Returns:
        The row and the kept outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    layer = HullLayer(HEADS, TOKENS, generator)
    hulls = [Hull(value.numpy()) for value in layer.value]
    targets = draw_targets(hulls, placement, generator)
    layer.requires_grad_(False)
    trained = [getattr(layer, name).requires_grad_() for name in METHODS[method]]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)
    kept, track, losses = set(frames), [], []
    for step in range(steps):
        outputs = layer()
        loss = (outputs - targets).square().sum(-1).mean()
        losses.append(loss.item())
        if step in kept:
            track.append(outputs.detach().numpy().copy())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        measured = _measure(hulls, targets.numpy(), layer().numpy(), layer.mixed_maps().numpy())
    row = {
        "study": "hull",
        "seed": seed,
        "method": method,
        "placement": placement,
        "heads": HEADS,
        "tokens": TOKENS,
        "steps": steps,
        "learning_rate": LEARNING_RATE,
        "trained_numbers": sum(p.numel() for p in trained),
        "loss_start": losses[0],
        **measured,
        "values": layer.value.numpy().round(5).tolist(),
        "targets": targets.numpy().round(5).tolist(),
    }
    return Outcome(row, np.array(track))


def _measure(hulls: list[Hull], targets: Points, outputs: Points, maps: Points) -> dict[str, Any]:
    """What came out. `loss_floor` is the least that any rows of weights of a mean can reach."""
    distance = np.linalg.norm(outputs - targets, axis=-1)
    to_hull = np.stack([hull.distance(points) for hull, points in zip(hulls, targets, strict=True)])
    outside = np.stack([hull.is_outside(points) for hull, points in zip(hulls, outputs, strict=True)])
    sums = maps.sum(-1)
    return {
        "loss_end": float((distance**2).mean()),
        "loss_floor": float((to_hull**2).mean()),
        "mean_distance": float(distance.mean()),
        "share_outside": float(outside.mean()),
        "smallest_entry": float(maps.min()),
        "largest_entry": float(maps.max()),
        "smallest_row_sum": float(sums.min()),
        "largest_row_sum": float(sums.max()),
        "outputs": outputs.round(5).tolist(),
    }


def run_all(seeds: list[int], steps: int, frames: Iterable[int]) -> Iterator[Outcome]:
    """Every seed, placement and method.

    Args:
        seeds: seeds.
        steps: training steps.
        frames: as for `run`; of the first seed.

    Yields:
        One outcome after the other.
    """
    for seed in seeds:
        for placement in PLACEMENTS:
            for method in METHODS:
                yield run(seed, method, placement, steps, frames if seed == seeds[0] else ())
