"""Units taken apart one by one: against inverses made afresh, and against the loss that is really left."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.refit import obs
from onnxprune.refit.obs import DAMP, Problem, eliminate, invert


def moments(rng: np.random.Generator, features: int, outputs: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    p = rng.standard_normal((rows, features)) @ rng.standard_normal((features, features))
    h = p.T @ p
    return h, rng.standard_normal((outputs, features)) @ h


def damped(h: np.ndarray) -> np.ndarray:
    return h + DAMP * np.trace(h) / len(h) * np.eye(len(h))


def least(h: np.ndarray, r: np.ndarray, keep: list[int]) -> float:
    """Returns what the damped least squares over `keep` explain."""
    a, b = damped(h)[np.ix_(keep, keep)], r[:, keep]
    return float(np.sum(np.linalg.solve(a, b.T).T * b))


def afresh(h: np.ndarray, r: np.ndarray, features: np.ndarray, count: int) -> list[int]:
    """Returns the units that go, each told by a fit of all that are left."""
    left, gone = list(range(len(features))), []
    for _ in range(count):
        best = max(left, key=lambda u: least(h, r, sorted(features[[k for k in left if k != u]].ravel().tolist())))
        left.remove(best)
        gone.append(best)
    return gone


@pytest.mark.parametrize("taps", [1, 3])
def test_units_go_as_fresh_fits_say(taps: int) -> None:
    rng = np.random.default_rng(taps)
    features = rng.permutation(8 * taps).reshape(8, taps)
    h, r = moments(rng, 8 * taps, 5)
    assert eliminate([Problem.of(h.copy(), r, features, 1.0)], 8, 5).tolist() == afresh(h, r, features, 5)


def test_losses_are_the_growth_of_the_error() -> None:
    rng = np.random.default_rng(1)
    h, r = moments(rng, 12, 4)
    features = np.arange(12).reshape(6, 2)
    problem = Problem.of(h.copy(), r, features, 1.0)
    problem.eliminate(np.array([2]))
    left = [0, 1, 3, 4, 5]
    before = least(h, r, features[left].ravel().tolist())
    for unit, loss in zip(left, problem.losses(np.array(left)), strict=True):
        after = least(h, r, features[[k for k in left if k != unit]].ravel().tolist())
        assert loss == pytest.approx(before - after, rel=1e-6)


def test_a_unit_of_which_nothing_is_left_does_not_stop_the_rest() -> None:
    rng = np.random.default_rng(4)
    h, r = moments(rng, 8, 3)
    problem = Problem.of(h, r, np.arange(8).reshape(4, 2), 1.0)
    whole = problem.losses(np.arange(4))
    problem._blocks[1] = 0  # taken away to the last digit
    problem.W[[2, 3]] = 0
    losses = problem.losses(np.arange(4))
    assert losses[1] == 0
    np.testing.assert_allclose(losses[[0, 2, 3]], whole[[0, 2, 3]], rtol=1e-4)


def test_several_consumers_are_summed() -> None:
    rng = np.random.default_rng(2)
    features = np.arange(6)[:, None]
    idle = (np.eye(6), np.zeros((2, 6)))  # this consumer misses nothing
    h, r = moments(rng, 6, 3)
    both = eliminate([Problem.of(h.copy(), r, features, 1.0), Problem.of(idle[0].copy(), idle[1], features, 1.0)], 6, 3)
    assert both.tolist() == eliminate([Problem.of(h.copy(), r, features, 1.0)], 6, 3).tolist()


def test_the_inverse_is_made_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "SMALL", 5)
    h = damped(moments(np.random.default_rng(3), 37, 1)[0])
    a = h.copy()
    invert(a)
    np.testing.assert_allclose(a @ h, np.eye(37), atol=1e-8)
    np.testing.assert_allclose(a, a.T, rtol=1e-9)


@pytest.mark.parametrize("level", [0.0, np.nan, np.inf])
def test_what_tells_nothing_still_gives_an_order(level: float) -> None:
    with np.errstate(all="ignore"):
        gone = eliminate([Problem.of(np.full((4, 4), level), np.full((2, 4), level), np.arange(4)[:, None], 0.0)], 4, 3)
    assert len(set(gone.tolist())) == 3


def test_rounded_sums_of_far_apart_sizes_have_an_inverse() -> None:
    """Few directions hold nearly all; by halves of the matrix itself nothing was left of the others but rounding."""
    rng = np.random.default_rng(4)
    n = 1200
    common = rng.normal(size=(n, 2)) * 60
    h = common @ common.T + np.diag(rng.uniform(0, 0.5, n))
    h[::5] = h[:, ::5] = 0
    made = h.astype(np.float32)
    problem = Problem.of(made, np.zeros((1, n), np.float32), np.arange(n)[:, None], 1.0)
    expected = np.linalg.inv(damped(h))
    assert problem.Hinv is made
    assert np.linalg.norm(made - expected) < 0.01 * np.linalg.norm(expected)
    np.testing.assert_array_equal(made, made.T)


def test_what_rounding_has_made_indefinite_is_damped_more() -> None:
    h = -np.eye(600, dtype=np.float32)
    h[0, 0] = 700
    Problem.of(h, np.zeros((1, 600), np.float32), np.arange(600)[:, None], 1.0)
    assert np.isfinite(h).all()
    assert (np.diag(h) > 0).all()
