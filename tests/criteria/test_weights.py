"""Criteria on weights, against their definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.criteria.bn_scale import bn_scale
from onnxprune.criteria.fpgm import fpgm
from onnxprune.criteria.lamp import lamp
from onnxprune.criteria.magnitude import l1, l2
from onnxprune.criteria.random import random

ROWS = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
RNG = np.random.default_rng(0)


def test_norms() -> None:
    assert l1(np.float32([[1, -2], [0, 3]]), RNG).tolist() == [3, 3]
    assert l2(np.float32([[3, -4], [0, 3]]), RNG).tolist() == [5, 3]


def test_sums_do_not_overflow_in_half_precision() -> None:
    rows = np.full((2, 4), 6e4, np.float16)
    for rule in (l1, l2, bn_scale, lamp, fpgm):
        assert np.isfinite(rule(rows, RNG)).all()


def test_scales_count_by_their_size() -> None:
    assert bn_scale(np.float32([[-2], [0.5]]), RNG).tolist() == [2, 0.5]


def test_fpgm_sums_the_distances_to_all_others() -> None:
    expected = [sum(np.linalg.norm(a - b) for b in ROWS.astype(float)) for a in ROWS.astype(float)]
    assert np.allclose(fpgm(ROWS, RNG), expected)


def test_fpgm_is_least_in_the_middle() -> None:
    assert fpgm(np.float32([[0, 0], [9, 9], [5, 4], [9, 0], [0, 9]]), RNG).argmin() == 2


def test_lamp_divides_by_the_energy_of_all_that_are_no_smaller() -> None:
    energy = np.square(ROWS.astype(float)).sum(axis=1)
    expected = [e / sum(x for x in energy if x >= e) for e in energy]
    assert np.allclose(lamp(ROWS, RNG), expected)
    assert lamp(ROWS, RNG).max() == pytest.approx(1)


def test_lamp_treats_equals_alike() -> None:
    assert lamp(np.float32([[1], [2], [1], [-1]]), RNG).tolist() == pytest.approx([1 / 7, 1, 1 / 7, 1 / 7])


def test_random_does_not_look() -> None:
    drawn = random(ROWS, np.random.default_rng(3))
    assert np.array_equal(drawn, random(ROWS * 0, np.random.default_rng(3)))
    assert not np.array_equal(drawn, random(ROWS, np.random.default_rng(4)))
