"""Intervals of proportions, against published figures and by their own meaning."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.proof.intervals import paired, wilson


# Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I.
@pytest.mark.parametrize(
    ("hits", "samples", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_the_paper(hits: int, samples: int, low: float, high: float) -> None:
    assert wilson(hits, samples) == pytest.approx((low, high), abs=6e-5)


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def hits(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    before = np.repeat([True, True, False, False], [both, lost, won, neither])
    after = np.repeat([True, False, True, False], [both, lost, won, neither])
    return before, after


# The example of Newcombe, Statistics in Medicine 17 (1998) 2635-2650: 36, 12, 2, 0 of 50 pairs, method 10.
def test_paired_against_the_paper() -> None:
    assert paired(*hits(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=6e-5)


def test_paired_turns_its_sign_with_the_models() -> None:
    before, after = hits(40, 9, 3, 17)
    low, high = paired(before, after)
    assert paired(after, before) == pytest.approx((-high, -low))


def test_equal_models_may_still_differ_by_what_few_samples_hide() -> None:
    few, many = (paired(*hits(n, 0, 0, 0))[1] for n in (10, 1000))
    assert 0.2 < few < 0.35
    assert 0 < many < 0.005


def test_paired_of_nothing_says_nothing() -> None:
    assert paired(np.zeros(0, bool), np.zeros(0, bool)) == (-1.0, 1.0)


def test_paired_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    chances = np.array([0.82, 0.08, 0.03, 0.07])  # the true drop is 0.05
    covered = 0
    for _ in range(400):
        low, high = paired(*hits(*rng.multinomial(120, chances).tolist()))
        covered += low <= 0.05 <= high
    assert 0.93 <= covered / 400 <= 0.99
