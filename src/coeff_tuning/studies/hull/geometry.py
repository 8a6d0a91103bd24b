"""Points and convex hulls in the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from coeff_tuning.recipes.extras import require

Points = NDArray[np.float64]

# Of the size of the hull. A point on the border, off by rounding, is inside.
TOLERANCE = 1e-9


class Hull:
    """Convex hull of points in the plane.

    Args:
        points: `(N, 2)`, not all on one line.

    Attributes:
        vertices: `(M, 2)`, counter-clockwise.
        centre: `(2,)`, mean of the vertices, which is inside.
    """

    def __init__(self, points: Points) -> None:
        hull: Any = require("scipy.spatial").ConvexHull(points)
        self.vertices: Points = points[hull.vertices]
        self.centre: Points = self.vertices.mean(0)
        self._normals: Points = hull.equations[:, :2]  # outward, of length 1; inside is normals @ x + offsets <= 0
        self._offsets: Points = hull.equations[:, 2]
        self._slack = TOLERANCE * float(np.ptp(points, axis=0).max())

    def is_outside(self, points: Points) -> NDArray[np.bool_]:
        """Whether points lie beyond an edge, by more than rounding.

        Args:
            points: `(P, 2)`.

        Returns:
            `(P,)`.
        """
        beyond = points @ self._normals.T + self._offsets  # (P, edges)
        return np.asarray(beyond.max(1) > self._slack)

    def distance(self, points: Points) -> Points:
        """Distance to the nearest point of the hull.

        Args:
            points: `(P, 2)`.

        Returns:
            `(P,)`; 0 inside.
        """
        start, edge = self.vertices, np.roll(self.vertices, -1, axis=0) - self.vertices
        along = ((points[:, None] - start) * edge).sum(-1) / (edge**2).sum(-1)  # (P, edges)
        nearest = start + along.clip(0, 1)[..., None] * edge
        return np.where(self.is_outside(points), np.linalg.norm(points[:, None] - nearest, axis=-1).min(1), 0.0)

    def border(self, directions: Points) -> Points:
        """Where rays from `centre` leave the hull.

        Args:
            directions: `(P, 2)`, not zero.

        Returns:
            `(P, 2)`.
        """
        speed = directions @ self._normals.T  # (P, edges)
        room = -(self.centre @ self._normals.T + self._offsets)  # distance of the centre to each edge
        with np.errstate(divide="ignore"):
            reach = np.where(speed > 0, room / speed, np.inf).min(1)
        return np.asarray(self.centre + reach[:, None] * directions)
