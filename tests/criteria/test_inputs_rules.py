"""Criteria on activations, against their definitions written out, and the loss."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.criteria import Inputs
from onnxprune.criteria.activation import apoz, mean, rms, wanda
from onnxprune.criteria.correlation import correlation, unexplained
from onnxprune.criteria.loss import loss


def seen(x: np.ndarray, unit: list[int] | None = None, weights: np.ndarray | None = None) -> Inputs:
    """Returns the statistics of cells x positions."""
    return Inputs(
        np.arange(len(x)) if unit is None else np.array(unit),
        x.mean(axis=1),
        np.abs(x).mean(axis=1),
        np.square(x).mean(axis=1),
        (x == 0).mean(axis=1),
        np.ones((len(x), 1)) if weights is None else weights,
        np.cov(x, bias=True),
    )


def test_means_and_shares() -> None:
    x = np.array([[1.0, -1, 3, 0], [0, 0, 0, 2]])
    assert mean(seen(x)).tolist() == [1.25, 0.5]
    assert rms(seen(x)) == pytest.approx([np.sqrt(11 / 4), 1])
    assert apoz(seen(x)).tolist() == [0.75, 0.25]
    assert wanda(seen(x, weights=np.array([[2.0, -2], [3, 0]]))) == pytest.approx([4 * np.sqrt(11 / 4), 3])


def test_correlation_is_what_the_best_of_the_others_leaves() -> None:
    x = np.random.default_rng(0).normal(size=(5, 300)) * np.arange(1, 6)[:, None]
    r, variance = np.corrcoef(x), x.var(axis=1)
    expected = variance[:, None] * (1 - r**2)
    np.fill_diagonal(expected, variance)
    found = unexplained(np.cov(x, bias=True), np.arange(5))
    assert np.allclose(found, expected, rtol=1e-4)
    assert correlation(seen(x)).min() == pytest.approx(expected.min(), rel=1e-4)


def test_of_two_duplicates_one_goes_first_and_the_other_stays() -> None:
    rng = np.random.default_rng(1)
    a, b, c, d = rng.normal(size=(4, 500))
    x = np.array([a, b, 3 * a + 1, c * 0.2, d])
    order = np.argsort(correlation(seen(x)))
    assert order[0] == 0  # the smaller of the two
    assert order.tolist().index(2) == 4  # what it stood for is now the largest


def test_a_chain_of_duplicates_keeps_its_last() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 500))
    found = correlation(seen(np.array([a, 2 * a, 4 * a, 0.5 * b])))
    assert np.argsort(found).tolist() == [0, 1, 3, 2]


def test_units_of_several_cells_are_predicted_from_all_cells_of_another() -> None:
    rng = np.random.default_rng(3)
    head, other = rng.normal(size=(2, 3, 400))
    mixed = rng.normal(size=(3, 3)) @ head  # the same subspace in another basis: no single cell predicts it
    x = np.concatenate([head, other, mixed])
    unit = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    left = unexplained(np.cov(x, bias=True), np.array(unit))
    assert left[0, 2] < 1e-3 * left[0, 0] and left[2, 0] < 1e-3 * left[2, 2] and left[0, 1] > 0.9 * left[0, 0]
    found = correlation(seen(x, unit))
    assert found[0] == found[1] == found[2] and found.argmin() in (0, 6)


def test_loss_is_relative_and_zero_for_no_change() -> None:
    a = np.float32([[1, 2], [3, 4]])
    assert loss(a, a) == 0
    assert loss(a, a * 0) == 1
    assert loss(a * 100, a * 50) == pytest.approx(0.25)
    assert loss(a * 0, a * 0) == 0
