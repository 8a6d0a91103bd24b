"""Numbers that describe `delta = coeff - I`, a matrix (H, H), and how much those of two seeds agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_DRAWS = 1000


def off_diagonal(delta: np.ndarray) -> float:
    """Share of the squared entries that lies off the diagonal, where heads mix; `1 - 1/H` for random entries.

    Args:
        delta: `(H, H)`.

    Returns:
        In [0, 1]; 0 for a matrix of zeros.
    """
    total = float((delta**2).sum())
    return float(1 - (np.diagonal(delta) ** 2).sum() / total) if total else 0.0


def constant_rows(delta: np.ndarray) -> float:
    """Share of the squared entries that the means of the rows explain; `1/H` for random entries.

    A row of equal entries adds the same multiple of every head's map to one output head.

    Args:
        delta: `(H, H)`.

    Returns:
        In [0, 1]; 0 for a matrix of zeros.
    """
    total = float((delta**2).sum())
    return float(len(delta) * (delta.mean(-1) ** 2).sum() / total) if total else 0.0


def effective_rank(delta: np.ndarray) -> float:
    """`exp(entropy)` of the singular values divided by their sum.

    Args:
        delta: `(H, H)`.

    Returns:
        Between 1 (rank one) and H (all are equal); 0 for a matrix of zeros.
    """
    values = np.linalg.svd(delta, compute_uv=False)
    shares = values[values > 0] / max(values.sum(), 1e-300)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def random_effective_rank(heads: int) -> float:
    """Mean effective rank of matrices of independent normal numbers, to compare with.

    Args:
        heads: H.

    Returns:
        The mean of 200.
    """
    generator = np.random.default_rng(0)
    return float(np.mean([effective_rank(generator.standard_normal((heads, heads))) for _ in range(200)]))


def cosine(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    """Cosine of the angle between two adapters, each seen as one vector.

    Args:
        first: a matrix for each layer.
        second: the same of another seed.

    Returns:
        In [-1, 1].
    """
    a, b = (np.concatenate([matrix.ravel() for matrix in matrices]) for matrices in (first, second))
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def permuted_cosines(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Cosines after the heads of the second adapter were renumbered at random, in each layer anew.

    Renumbering keeps the diagonal a diagonal, so that agreement that is of any head (all shrink, say) stays.

    Args:
        first: a matrix for each layer.
        second: the same of another seed.

    Returns:
        1000 of them, sorted.
    """
    generator = np.random.default_rng(0)
    found = []
    for _ in range(_DRAWS):
        orders = [generator.permutation(len(matrix)) for matrix in second]
        found.append(cosine(first, [m[np.ix_(order, order)] for m, order in zip(second, orders, strict=True)]))
    return np.sort(found)
