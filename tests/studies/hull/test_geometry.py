from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import Delaunay

from coeff_tuning.studies.hull.geometry import Hull

SQUARE = np.array([[0.0, 0], [2, 0], [2, 2], [0, 2], [1, 1]])


def test_square() -> None:
    hull = Hull(SQUARE)
    points = np.array([[1.0, 1], [2, 1], [2, 2], [2 + 1e-12, 1], [2.001, 1], [3, 3], [1, -5]])
    assert hull.is_outside(points).tolist() == [False, False, False, False, True, True, True]
    np.testing.assert_allclose(hull.distance(points), [0, 0, 0, 0, 0.001, 2**0.5, 5], atol=1e-12)
    np.testing.assert_allclose(hull.border(np.array([[1.0, 0], [0, -3], [2, 2]])), [[2, 1], [1, 0], [2, 2]])


@pytest.mark.parametrize("seed", range(5))
def test_against_triangles_and_a_fine_search(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(7, 2))
    points = 2 * generator.normal(size=(200, 2))
    hull = Hull(values)
    outside = Delaunay(values).find_simplex(points) < 0
    assert 0 < outside.sum() < 200
    np.testing.assert_array_equal(hull.is_outside(points), outside)
    ends = np.roll(hull.vertices, -1, axis=0)
    edges = np.concatenate(
        [a + np.linspace(0, 1, 4001)[:, None] * (b - a) for a, b in zip(hull.vertices, ends, strict=True)]
    )
    nearest = np.array([np.linalg.norm(edges - point, axis=1).min() for point in points])
    np.testing.assert_allclose(hull.distance(points), np.where(outside, nearest, 0), atol=1e-5)
    border = hull.border(generator.normal(size=(50, 2)))
    direction = border - hull.centre
    assert not hull.is_outside(hull.centre + (1 - 1e-6) * direction).any()
    assert hull.is_outside(hull.centre + (1 + 1e-6) * direction).all()
