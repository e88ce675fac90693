"""How many units of each group go: by measurement and by importance, within budgets of which the truth is known."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.allocation.counts import by_importance, by_sensitivity
from onnxprune.allocation.knapsack import Counts, solve
from onnxprune.allocation.sensitivity import Sensitivity
from onnxprune.engine.coupling import couple
from onnxprune.engine.units import Units, find_units
from onnxprune.graph.trace import trace
from onnxprune.reports.report import SensitivityRow

SIZES = (6, 10, 8)
ONES, MOST = (1, 1, 1), (5, 9, 7)
# what three layers in a row cost with so many units left in each group: 4 inputs, 3 outputs
FULL = 4 * 6 + 6 * 10 + 10 * 8 + 8 * 3


def left(counts: Counts) -> float:
    """Returns the share of the multiply-accumulates of a chain of layers that counts leave."""
    a, b, c = (n - k for n, k in zip(SIZES, counts, strict=True))
    return (4 * a + a * b + b * c + c * 3) / FULL


def curves(*shapes: tuple[float, float]) -> Sensitivity:
    """Returns measurements: scale x share ** power for each group."""
    rows = []
    for n, (scale, power) in zip(SIZES, shapes, strict=True):
        counts = tuple(range(n))
        rows.append(SensitivityRow(f"g{n}", n, counts, tuple(scale * (c / n) ** power for c in counts)))
    return Sensitivity(tuple(rows), 64)


def loss(found: Sensitivity, counts: Counts) -> float:
    return sum(c.divergence[k] for c, k in zip(found.curves, counts, strict=True))


@pytest.mark.parametrize("target", [0.8, 0.6, 0.4, 0.25])
@pytest.mark.parametrize("shapes", [((1, 2), (1, 2), (1, 2)), ((5, 1), (0.1, 3), (1, 2)), ((1, 4), (9, 1.5), (0.3, 1))])
def test_the_choice_is_near_to_the_best_there_is(target: float, shapes: tuple[tuple[float, float], ...]) -> None:
    measured = curves(*shapes)
    found = by_sensitivity(measured, lambda c: left(c) / target - 1, steps=ONES, most=MOST)
    assert found is not None
    assert left(found) <= target
    best = min(loss(measured, c) for c in product(*map(range, SIZES)) if left(c) <= target)
    assert loss(measured, found) <= 1.15 * best


@pytest.mark.parametrize("target", [0.8, 0.6, 0.4])
def test_no_unit_more_than_needed_goes(target: float) -> None:
    found = by_sensitivity(curves((5, 1), (0.1, 3), (1, 2)), lambda c: left(c) / target - 1, steps=ONES, most=MOST)
    assert found is not None
    for g in range(3):
        if found[g]:
            assert left((*found[:g], found[g] - 1, *found[g + 1 :])) > target


def test_a_group_that_costs_nothing_goes_first() -> None:
    found = by_sensitivity(curves((1, 1), (0, 1), (1, 1)), lambda c: left(c) / 0.7 - 1, steps=ONES, most=MOST)
    assert found is not None
    assert found[0] == found[2] == 0
    assert found[1] > 0


def test_a_group_that_was_not_measured_stays() -> None:
    measured = curves((1, 1), (1, 1), (1, 1))
    measured = Sensitivity((*measured.curves[:2], SensitivityRow("g8", 8, (0,), (0.0,))), 64)
    found = by_sensitivity(measured, lambda c: left(c) / 0.7 - 1, steps=ONES, most=MOST)
    assert found is not None
    assert found[2] == 0
    assert left(found) <= 0.7


def test_bounds_and_steps_are_respected() -> None:
    found = by_sensitivity(curves((1, 2), (0, 1), (1, 2)), lambda c: left(c) / 0.5 - 1, steps=(2, 4, 3), most=(5, 6, 7))
    assert found is not None
    assert found[1] <= 6
    assert all(k == 0 or (n - k) % s == 0 for n, k, s in zip(SIZES, found, (2, 4, 3), strict=True))
    assert left(found) <= 0.5


def test_a_budget_out_of_reach_has_no_counts() -> None:
    assert by_sensitivity(curves((1, 1), (1, 1), (1, 1)), lambda c: left(c) / 0.01 - 1, steps=ONES, most=MOST) is None
    assert (
        by_sensitivity(curves((1, 1), (1, 1), (1, 1)), lambda c: left(c) / 0.9 - 1, steps=ONES, most=(0, 0, 0)) is None
    )


def test_a_budget_that_holds_already_cuts_nothing() -> None:
    found = by_sensitivity(curves((1, 1), (1, 1), (1, 1)), lambda c: left(c) - 1, steps=ONES, most=MOST)
    assert found == (0, 0, 0)


def test_noise_in_a_measurement_never_makes_a_deeper_cut_look_cheaper() -> None:
    dip = SensitivityRow("a", 4, (0, 1, 2, 3), (0.0, 0.5, 0.1, 0.6))
    flat = SensitivityRow("b", 4, (0, 1, 2, 3), (0.0, 0.2, 0.4, 0.6))
    found = by_sensitivity(Sensitivity((dip, flat), 64), lambda c: 2.0 - sum(c), steps=(1, 1), most=(3, 3))
    assert found == (0, 2)


def test_stairs_in_the_cost_are_found() -> None:
    allowed = [np.arange(8), np.arange(8)]
    losses = [np.arange(8.0), 3 * np.arange(8.0)]

    def stairs(counts: Counts) -> float:  # only whole blocks of 4 of the first group save anything
        return 16 - 6 * (counts[0] // 4) - counts[1] - 10

    found = solve(allowed, losses, stairs)
    assert found == (4, 0)


# ---------------------------------------------------------------- by importance
PAIR = """<ir_version: 8, opset_import: ["" : 17]> g (float[n, 3] x) => (float[n, 2] y) {
    h = Gemm(x, w1) r = Relu(h) k = Gemm(r, w2) s = Relu(k) y = Gemm(s, w3)
}"""


@pytest.fixture(scope="module")
def pair() -> Units:
    """Returns a network with groups of 4 and 6 units."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(PAIR)
    for name, shape in {"w1": (3, 4), "w2": (4, 6), "w3": (6, 2)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    graph = ir.from_proto(model)
    found = find_units(couple(graph, trace(graph)))
    assert [len(g) for g in found.groups] == [4, 6]
    return found


SCORES = (np.array([0.1, 0.9, 0.2, 0.8]), np.array([0.3, 0.4, 0.5, 0.6, 0.7, 0.05]))


def test_all_units_are_compared_with_one_another(pair: Units) -> None:
    for gone, expected in enumerate([(0, 0), (0, 1), (1, 1), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5)]):
        assert by_importance(pair, SCORES, ratio=gone / 10, steps=(1, 1), most=(3, 5)) == expected


def test_a_ratio_counts_the_units_that_may_go(pair: Units) -> None:
    assert by_importance(pair, SCORES, ratio=0.49, steps=(1, 1), most=(0, 5)) == (0, 2)
    assert by_importance(pair, SCORES, ratio=0.5, steps=(1, 1), most=(0, 5)) == (0, 3)
    assert by_importance(pair, SCORES, ratio=0.99, steps=(1, 1), most=(0, 5)) == (0, 5)


def test_importance_is_weighed_against_cost(pair: Units) -> None:
    assert by_importance(pair, SCORES, ratio=0.4, steps=(1, 1), most=(3, 5), costs=(100, 1)) == (3, 1)
    assert by_importance(pair, SCORES, ratio=0.4, steps=(1, 1), most=(3, 5), costs=(1, 100)) == (0, 4)


def test_as_few_go_as_a_budget_asks_for(pair: Units) -> None:
    found = by_importance(pair, SCORES, excess=lambda c: 3.5 - sum(c), steps=(1, 1), most=(3, 5))
    assert found == (2, 2)
    assert by_importance(pair, SCORES, excess=lambda c: 8.5 - sum(c), steps=(1, 1), most=(3, 5)) is None
    assert by_importance(pair, SCORES, excess=lambda _: -1.0, steps=(1, 1), most=(3, 5)) == (0, 0)


def test_kept_counts_are_multiples(pair: Units) -> None:
    found = by_importance(pair, SCORES, ratio=0.7, steps=(2, 4), most=(3, 5))
    assert found == (2, 2)
