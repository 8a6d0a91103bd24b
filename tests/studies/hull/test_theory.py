"""The two statements of theory: means of the values stay in their hull, unconstrained mixtures need not."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial import Delaunay

from coeff_tuning.studies.hull.geometry import Hull
from coeff_tuning.studies.hull.layer import HullLayer

H, N = 3, 7
SEEDS = st.integers(0, 2**32)
SCALES = st.floats(0.1, 30)


def make(seed: int, scale: float) -> HullLayer:
    layer = HullLayer(H, N, torch.Generator().manual_seed(seed)).requires_grad_(False)
    layer.wq *= scale  # from flat maps to nearly one-hot ones
    return layer


def outside(layer: HullLayer) -> np.ndarray:
    """(H, N): which outputs are outside; found twice, by edges and by triangles of a hull that is 1e-6 larger."""
    found = []
    for value, out in zip(layer.value.numpy(), layer().numpy(), strict=True):
        by_edges = Hull(value).is_outside(out)
        larger = value + 1e-6 * (value - value.mean(0))
        by_triangles = Delaunay(larger).find_simplex(out) < 0
        assert (by_edges | ~by_triangles).all()  # outside the larger hull means outside the hull
        found.append(by_edges)
    return np.stack(found)


@settings(deadline=None, max_examples=60)
@given(SEEDS, SCALES, arrays(np.float64, (H, H), elements=st.floats(0.0, 1.0)))
def test_rows_of_weights_of_a_mean_stay_in_the_hull(seed: int, scale: float, weights: np.ndarray) -> None:
    layer = make(seed, scale)
    coeff = torch.from_numpy(weights) + 1e-9  # no row is zero
    layer.coeff_delta += coeff / coeff.sum(1, keepdim=True) - torch.eye(H)
    assert not outside(layer).any()
    maps = layer.mixed_maps()
    assert maps.min() >= -1e-12
    torch.testing.assert_close(maps.sum(-1), torch.ones(H, N, dtype=torch.float64))


@settings(deadline=None, max_examples=60)
@given(SEEDS, SCALES, st.integers(0, H - 1), st.integers(1, H - 1), st.integers(0, N - 1))
def test_two_different_maps_reach_any_distance(seed: int, scale: float, head: int, other: int, token: int) -> None:
    """`(1 + t) F[g] - t F[h]` has rows that sum to 1 and goes along a line that leaves every bounded set."""
    layer = make(seed, scale)
    other = (head + other) % H
    values, maps = layer.value[head], layer.mixed_maps()
    step = (maps[other] - maps[head]) @ values  # (N, 2)
    assume(step[token].norm() > 1e-3)  # the maps differ: large weights make both look at the same token
    t = 2 * torch.cdist(values, values).max() / step[token].norm()
    layer.coeff_delta[head, head] -= t
    layer.coeff_delta[head, other] += t
    assert outside(layer)[head, token]
    torch.testing.assert_close(layer.mixed_maps().sum(-1), torch.ones(H, N, dtype=torch.float64), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(SEEDS, SCALES)
def test_random_coefficients_leave_the_hull(seed: int, scale: float) -> None:
    layer = make(seed, scale)
    assert not outside(layer).any()
    generator = torch.Generator().manual_seed(seed + 1)
    layer.coeff_delta += 10 * torch.randn(H, H, generator=generator, dtype=torch.float64)
    assert outside(layer).any()


def test_by_hand() -> None:
    """Two tokens beside a third one, maps that look at one token each: 2 F[0] - F[1] mirrors one value in another."""
    layer = HullLayer(2, 4, torch.Generator().manual_seed(0)).requires_grad_(False)
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    layer.tokens.copy_(torch.cat([square, square], dim=1))
    layer.value.copy_(square.expand(2, -1, -1))
    layer.wq.zero_()
    torch.testing.assert_close(layer(), torch.full((2, 4, 2), 0.5, dtype=torch.float64))  # flat maps: the mean
    layer.coeff_delta[0] = torch.tensor([0.0, -3.0])  # (1 - 3) times the mean
    torch.testing.assert_close(layer()[0], torch.full((4, 2), -1.0, dtype=torch.float64))
    assert outside(layer)[0].all()
    assert not outside(layer)[1].any()
