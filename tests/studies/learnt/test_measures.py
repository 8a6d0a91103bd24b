from __future__ import annotations

import numpy as np
import pytest

from coeff_tuning.studies.learnt import measures

H = 5


def test_off_diagonal_by_hand() -> None:
    assert measures.off_diagonal(np.array([[3.0, 0.0], [-4.0, 0.0]])) == pytest.approx(16 / 25)
    assert measures.off_diagonal(np.diag([1.0, -2.0])) == 0
    assert measures.off_diagonal(np.zeros((H, H))) == 0


def test_constant_rows_by_hand() -> None:
    assert measures.constant_rows(np.array([[2.0, 2.0], [-1.0, -1.0]])) == pytest.approx(1)
    assert measures.constant_rows(np.array([[1.0, -1.0], [0.0, 0.0]])) == 0
    assert measures.constant_rows(np.array([[1.0, 0.0], [0.0, 0.0]])) == pytest.approx(1 / 2)
    assert measures.constant_rows(np.zeros((H, H))) == 0


def test_effective_rank_of_known_spectra() -> None:
    generator = np.random.default_rng(1)
    left, right = (np.linalg.qr(generator.standard_normal((H, H)))[0] for _ in range(2))
    assert measures.effective_rank(3 * left) == pytest.approx(H)
    assert measures.effective_rank(np.outer(left[0], right[0])) == pytest.approx(1)
    assert measures.effective_rank(left @ np.diag([2.0, 2, 0, 0, 0]) @ right) == pytest.approx(2)
    shares = np.array([0.7, 0.3])
    entropy = -(shares * np.log(shares)).sum()
    assert measures.effective_rank(left @ np.diag([7.0, 3, 0, 0, 0]) @ right) == pytest.approx(np.exp(entropy))
    assert measures.effective_rank(np.zeros((H, H))) == 0
    assert 1 < measures.random_effective_rank(H) < H


def test_cosines() -> None:
    generator = np.random.default_rng(2)
    first = [generator.standard_normal((H, H)) for _ in range(3)]
    assert measures.cosine(first, [2 * matrix for matrix in first]) == pytest.approx(1)
    assert measures.cosine(first, [-matrix for matrix in first]) == pytest.approx(-1)
    by_hand = ([np.array([[1.0, 0], [0, 0]])], [np.array([[1.0, 1], [0, 0]])])
    assert measures.cosine(*by_hand) == pytest.approx(1 / np.sqrt(2))
    draws = measures.permuted_cosines(first, first)
    assert (np.diff(draws) >= 0).all()
    assert abs(draws.mean()) < 0.2
    assert np.quantile(draws, 0.975) < 0.6


def test_renumbering_keeps_agreement_of_all_heads() -> None:
    shrunk = [-0.1 * np.eye(H), -0.2 * np.eye(H)]
    assert measures.permuted_cosines(shrunk, shrunk).min() == pytest.approx(1)
