"""`--align auto`: kept counts at multiples of blocks, within the budget."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hostile import model_of, tensor
from onnx import helper
from test_latency import network, units_of

import onnxprune
from onnxprune.allocation import alignment
from onnxprune.allocation.alignment import MOST_MOVED, MOST_TO_BEST, Blocks, aligned, blocks_of
from onnxprune.allocation.knapsack import Counts
from onnxprune.allocation.tally import Tally
from onnxprune.engine.units import Units

CPU = ("CPUExecutionProvider",)


class Case:
    """A network, half of its MACs as the budget, and counts that hold it."""

    def __init__(self, seed: int, *widths: int) -> None:
        self.units: Units = units_of(network(*widths))
        self.tally = Tally(self.units)
        self.sizes = [len(g) for g in self.units.groups]
        self.full = self.tally.macs((0,) * len(self.sizes))
        self.most = tuple(n - 1 for n in self.sizes)
        lean = np.random.default_rng(seed).uniform(0.6, 1.4, len(self.sizes))
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.excess(self._at(middle, lean)) <= 0 else (middle, high)
        self.wished = self._at(high, lean)

    def _at(self, ratio: float, lean: np.ndarray) -> Counts:
        return tuple(min(int(ratio * r * n), n - 1) for r, n in zip(lean, self.sizes, strict=True))

    def excess(self, counts: Counts) -> float:
        return self.tally.macs(counts) / self.full / 0.5 - 1

    def kept(self, counts: Counts) -> list[int]:
        return [n - c for n, c in zip(self.sizes, counts, strict=True)]


@pytest.mark.parametrize("seed", range(6))
def test_wide_layers_end_at_multiples_of_sixteen_with_the_budget_used_up(seed: int) -> None:
    case = Case(seed, 192, 256, 256, 384, 384)
    found = aligned(case.units, case.wished, case.excess, blocks_of(case.units, CPU), case.most)
    assert -0.01 <= case.excess(found) <= 0
    kept = case.kept(found)
    assert sum(k % 16 == 0 for k in kept) >= len(kept) - 1  # one may have taken what no block fitted in
    assert all(abs(a - b) <= max(16, 0.15 * b) for a, b in zip(kept, case.kept(case.wished), strict=True))


def test_counts_that_are_multiples_already_stay() -> None:
    case = Case(0, 64, 128, 128)
    counts = (16, 32, 48)
    case.full = 2 * case.tally.macs(counts)  # so that they hold the budget to the last unit
    assert aligned(case.units, counts, case.excess, blocks_of(case.units, CPU), case.most) == counts


def test_a_count_that_a_block_would_move_too_far_takes_a_smaller_one() -> None:
    case = Case(0, 16, 32, 64, 256)
    blocks = blocks_of(case.units, CPU)
    assert blocks == (Blocks((16, 8, 4)),) * 4
    wished = tuple(n - k for n, k in zip(case.sizes, (13, 23, 43, 169), strict=True))
    found = aligned(case.units, wished, lambda _: 0.0, blocks, case.most)
    assert case.kept(found) == [12, 24, 40, 176]
    assert abs(16 - 13) > MOST_MOVED * 13


def test_layers_whose_time_is_all_arithmetic_go_further_to_the_best_block(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(0, 64, 64)
    monkeypatch.setattr(alignment, "LARGE", case.full / 2)
    blocks = blocks_of(case.units, CPU)
    assert [b.far for b in blocks] == [MOST_TO_BEST, MOST_TO_BEST]
    wished = tuple(n - k for n, k in zip(case.sizes, (43, 20), strict=True))
    found = aligned(case.units, wished, lambda _: 0.0, blocks, case.most)
    assert case.kept(found) == [48, 16]
    assert Blocks((16, 8, 4)).rounded(43, 64) == 40 and Blocks((16, 8, 4)).rounded(20, 64) == 20


def test_caps_are_kept() -> None:
    case = Case(1, 64, 128, 128)
    most = tuple(min(c + 3, m) for c, m in zip(case.wished, case.most, strict=True))
    found = aligned(case.units, case.wished, case.excess, blocks_of(case.units, CPU), most)
    assert all(c <= m for c, m in zip(found, most, strict=True))
    assert case.excess(found) <= 0
    frozen = (0, *case.most[1:])
    again = aligned(case.units, (0, 70, 70), lambda c: case.excess(c) - 1, blocks_of(case.units, CPU), frozen)
    assert again[0] == 0


def test_matrix_products_have_no_blocks_on_the_cpu_and_eight_on_tensor_cores() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], "first"),
        helper.make_node("Gemm", ["h", "w2"], ["y"], "second"),
    ]
    units = units_of(model_of(nodes, [tensor("w1", 8, 64), tensor("w2", 64, 4)]))
    assert [b.steps for b in blocks_of(units, CPU)] == [()]
    assert blocks_of(units, ("CUDAExecutionProvider", *CPU)) == (Blocks((8,)),)
    assert blocks_of(units, ("NobodyKnows",)) == (Blocks(),)
    assert aligned(units, (27,), lambda _: 0.0, blocks_of(units, CPU), (63,)) == (27,)


def test_where_steps_do_not_reach_the_wish_stands() -> None:
    case = Case(0, 16, 16)
    never = aligned(case.units, (3, 3), lambda _: 1.0, blocks_of(case.units, CPU), case.most)
    assert never == (3, 3)


def kept_by(model: onnx.ModelProto, **options: object) -> list[int]:
    found = onnxprune.prune(
        model,
        criterion="l1",
        compensate="none",
        allocation="uniform",
        validate=False,
        **options,  # type: ignore[arg-type]
    )
    return [row.units - row.cut for row in found.report.groups]


def test_a_target_is_aligned_unless_told_otherwise_and_a_ratio_is_not() -> None:
    model = network(100, 200, 200)
    assert kept_by(model, ratio=0.3) == [70, 140, 140]
    by_target = kept_by(model, target={"macs": 0.5})
    assert sum(k % 8 == 0 for k in by_target) >= 2
    assert kept_by(model, target={"macs": 0.5}, align=1) != by_target
    assert all(k % 10 == 0 for k in kept_by(model, target={"macs": 0.5}, align=10))
