"""Sums that layers are refitted from, and the refit: it finds what is there to find and never makes things worse."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.refit import moments
from onnxprune.refit.moments import Moments, refit, refit_safely

RIDGES = (1e-4, 1e-2, 1.0)


def rows(
    rng: np.random.Generator, n: int, features: int = 6, outputs: int = 3, groups: int = 1
) -> tuple[np.ndarray, ...]:
    p = rng.standard_normal((groups, n, features)) @ rng.standard_normal((groups, features, features)) + 1
    w = rng.standard_normal((groups, outputs, features))
    return p.astype(np.float32), (p @ w.transpose(0, 2, 1) + 0.5).astype(np.float32), w


def of(p: np.ndarray, t: np.ndarray) -> Moments:
    m = Moments.empty(len(p), p.shape[2], t.shape[2])
    m += Moments.seen(p, t)
    return m


def test_moments_merge_and_come_apart() -> None:
    p, t, _ = rows(np.random.default_rng(0), 100)
    first, second, both = of(p[:, :30], t[:, :30]), of(p[:, 30:], t[:, 30:]), of(p, t)
    merged = first + second
    for name in ("n", "p", "t", "pp", "tp", "tt"):
        np.testing.assert_allclose(getattr(merged, name), getattr(both, name), rtol=1e-5)
    first += second
    first -= second
    np.testing.assert_allclose(first.pp, of(p[:, :30], t[:, :30]).pp, rtol=1e-9)
    assert first.n == 30


def test_some_features_are_as_if_only_they_were_seen() -> None:
    p, t, _ = rows(np.random.default_rng(1), 50, groups=2)
    keep = np.array([[0, 2, 5], [1, 2, 3]])
    few = of(np.take_along_axis(p, keep[:, None, :], 2), t)
    np.testing.assert_allclose(of(p, t).of(keep).pp, few.pp, rtol=1e-5)
    np.testing.assert_allclose(of(p, t).of(keep).tp, few.tp, rtol=1e-5)


@pytest.mark.parametrize("wide", [2048, 4])
def test_a_refit_finds_the_weights(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "WIDE", wide)  # sums in float64 and in float32
    p, t, w = rows(np.random.default_rng(2), 400)
    found, b = refit(of(p, t), np.zeros_like(w), np.ones((1, 6), bool), 1e-7)
    np.testing.assert_allclose(found, w, atol=0.02)
    np.testing.assert_allclose(b, 0.5, atol=0.02)


def test_the_loss_is_the_squared_error() -> None:
    p, t, w = rows(np.random.default_rng(3), 80)
    b = np.full((1, 3), -0.2)
    wanted = np.square(t - (p @ w.transpose(0, 2, 1) + b)).sum(axis=1)
    np.testing.assert_allclose(of(p, t).loss(w, b), wanted, rtol=1e-3)


def test_groups_may_keep_different_numbers() -> None:
    rng = np.random.default_rng(4)
    p, t, w = rows(rng, 300, groups=2)
    keep = np.array([[True] * 6, [True, False, False, True, False, True]])
    found, b = refit(of(p, t), w, keep, 1e-6)
    assert not found[1][:, ~keep[1]].any()
    alone, c = refit(of(p[1:], t[1:]), w[1:], keep[1:], 1e-6)
    np.testing.assert_allclose(found[1], alone[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(b[1], c[0], rtol=1e-4, atol=1e-4)


def test_a_refit_beats_old_weights_where_samples_tell() -> None:
    rng = np.random.default_rng(5)
    p, t, w = rows(rng, 500)
    keep = np.array([[True, True, False, True, True, True]])
    found, b, ridge = refit_safely(
        of(p[:, :400], t[:, :400]), of(p[:, 400:], t[:, 400:]), w, np.full((1, 3), 0.5), keep, RIDGES, np.ones((1, 3))
    )
    left = of(p, t).loss(np.where(keep[:, None], w, 0), np.full((1, 3), 0.5)).sum()
    assert ridge in RIDGES
    assert of(p, t).loss(found, b).sum() < 0.9 * left


def test_a_refit_that_does_not_hold_is_not_taken() -> None:
    rng = np.random.default_rng(6)
    p = rng.standard_normal((1, 9, 6)).astype(np.float32)
    w = rng.standard_normal((1, 3, 6))
    t = (p @ w.transpose(0, 2, 1)).astype(np.float32)
    t[:, :6] = rng.standard_normal((1, 6, 3)) * 50  # what is fitted on has nothing to do with what is held out
    fit, check = of(p[:, :6], t[:, :6]), of(p[:, 6:], t[:, 6:])
    found, b, ridge = refit_safely(fit, check, w, np.zeros((1, 3)), np.ones((1, 6), bool), RIDGES, np.ones((1, 3)))
    assert ridge is None
    np.testing.assert_array_equal(found, w)
    np.testing.assert_array_equal(b, 0)


def test_without_products_the_bias_makes_up_for_the_means() -> None:
    p, t, w = rows(np.random.default_rng(7), 60)
    fit, check = (Moments.empty(1, 6, 3, products=False) for _ in range(2))
    fit += Moments.seen(p[:, :50], t[:, :50], products=False)
    check += Moments.seen(p[:, 50:], t[:, 50:], products=False)
    keep = np.array([[True, False, True, True, True, True]])
    found, b, ridge = refit_safely(fit, check, w, np.zeros((1, 3)), keep, RIDGES, np.ones((1, 3)))
    assert ridge is None
    np.testing.assert_allclose((p @ found.transpose(0, 2, 1) + b).mean(axis=1), t.mean(axis=1), rtol=1e-3, atol=1e-3)


def test_nothing_kept_leaves_the_means() -> None:
    p, t, w = rows(np.random.default_rng(8), 60)
    found, b = refit(of(p, t), w, np.zeros((1, 6), bool), 1e-2)
    assert not found.any()
    np.testing.assert_allclose(b, t.mean(axis=1), rtol=1e-4)
