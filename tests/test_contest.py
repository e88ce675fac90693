"""Ways to spend a budget, compared: what is worth a trial, and which one wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hostile import model_of, tensor
from onnx import helper
from test_latency import network, units_of

import onnxprune
from onnxprune import aim
from onnxprune.allocation import contest
from onnxprune.allocation.alignment import blocks_of, levels_of
from onnxprune.allocation.budget import Budget, Limit
from onnxprune.allocation.choosing import Way
from onnxprune.allocation.contest import Contender, promising
from onnxprune.allocation.counts import foretold
from onnxprune.allocation.mending import Chosen
from onnxprune.allocation.sensitivity import Sensitivity
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.sizes import rewrite_sizes
from onnxprune.engine.units import Units
from onnxprune.reports.report import SensitivityRow

CPU = ("CPUExecutionProvider",)
LOSSES = Sensitivity(
    (
        SensitivityRow("a", 32, (0, 16, 31), (0.0, 0.04, 1.0)),
        SensitivityRow("b", 32, (0, 16, 31), (0.0, 0.01, 1.0)),
    ),
    8,
)


def contender(units: Units, *counts: int) -> Contender:
    dead = np.concatenate([group.units[:count] for group, count in zip(units.groups, counts, strict=True)])
    cutting = Cutting(units, dead)
    chosen = Chosen(cutting, rewrite_sizes(cutting), ())
    return Contender(Way(), chosen, Budget((Limit("macs", 0.5),), {"macs": 1.0}, {"macs": lambda _: 0.5}))


@pytest.fixture
def units() -> Units:
    return units_of(network(32, 32))


def test_what_groups_cost_alone_is_added_up_and_its_roots_are_lines() -> None:
    assert foretold(LOSSES, (16, 16)) == pytest.approx(0.05)
    assert foretold(LOSSES, (8, 0)) == pytest.approx(0.01)


def test_counts_that_are_alike_are_tried_once_and_dear_ones_not_at_all(units: Units) -> None:
    counts = ((16, 0), (16, 0), (16, 1), (15, 4), (24, 0))
    first, same, alike, near, dear = (contender(units, *c) for c in counts)
    assert promising([first, same, alike, near, dear], LOSSES) == [near, first]  # the least loss foremost
    assert promising([dear], LOSSES) == [dear]


def test_counts_to_choose_from_are_those_that_rounding_leaves() -> None:
    units = units_of(network(32, 192))
    narrow, wide = levels_of(units, blocks_of(units, CPU))
    assert [k for k in wide if k >= 90] == list(range(96, 193, 16))
    assert {16, 24, 28, 32} <= set(narrow) and not {15, 17, 30, 31} & set(narrow)
    assert 1 in narrow  # as little as can stay


def model() -> onnx.ModelProto:
    """Returns a model whose first layer's units are copies of few, while those of the second are all of use."""
    first = np.repeat(np.random.default_rng(1).normal(size=(8, 4)), 8, axis=1).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("Gemm", ["r", "w2"], ["s"], "second"),
        helper.make_node("Relu", ["s"], ["t"], "act2"),
        helper.make_node("Gemm", ["t", "w3"], ["y"], "third"),
    ]
    weights = [onnx.numpy_helper.from_array(first, "w1"), tensor("w2", 32, 24, seed=2), tensor("w3", 24, 20, seed=3)]
    return model_of(nodes, weights)


def kept(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[int]:
    """Returns how many units each group keeps where trials measure these losses in turn."""
    left = iter(losses)
    monkeypatch.setattr(contest, "relative_error", lambda dense, other: next(left))
    monkeypatch.setattr(contest, "WORTH", 1e9)
    inputs = {"x": np.random.default_rng(5).normal(size=(64, 8)).astype(np.float32)}
    found = onnxprune.prune(model(), target={"macs": 0.5}, calibration=inputs, jobs=1)
    assert found.report.macs.ratio <= 0.505
    return [group.units - group.cut for group in found.report.groups]


def test_the_way_wins_whose_outputs_are_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, even = kept(monkeypatch, [1.0, 2.0]), kept(monkeypatch, [2.0, 1.0])
    assert measured != even
    assert measured[0] < even[0]  # copies cost nothing
    assert abs(even[0] / 32 - even[1] / 24) < 0.1


def test_equal_losses_leave_it_at_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kept(monkeypatch, [1.0, 1.0]) == kept(monkeypatch, [1.0, 2.0])


def test_a_trial_is_made_on_inputs_that_no_loss_is_measured_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fitted, judged = list[np.ndarray](), list[np.ndarray]()
    refit, run = aim.Study.refitted, contest.run_all

    def refitted(study: aim.Study, chosen: Chosen, batches: Any, *more: Any, **extra: Any) -> Chosen:
        fitted.extend(batch["x"] for batch in batches)
        return refit(study, chosen, batches, *more, **extra)

    def ran(subject: Any, feeds: Any, providers: Any) -> Any:
        judged.extend(feed["x"] for feed in feeds)
        return run(subject, feeds, providers)

    monkeypatch.setattr(contest, "WORTH", 1e9)
    monkeypatch.setattr(aim.Study, "refitted", refitted)
    monkeypatch.setattr(contest, "run_all", ran)
    inputs = {"x": np.random.default_rng(5).normal(size=(64, 8)).astype(np.float32)}
    onnxprune.sweep(model(), ["macs=0.5"], tmp_path, calibration=inputs, samples=64)
    a, b = ({row.tobytes() for part in parts for row in part} for parts in (fitted, judged))
    assert len(a) == 48 and len(b) == 16 and not a & b


def test_trials_at_a_time_are_told_together_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "WORTH", 1e9)
    inputs = {"x": np.random.default_rng(5).normal(size=(64, 8)).astype(np.float32)}
    told: list[str] = []
    alone, together = (
        onnxprune.prune(model(), target={"macs": 0.5}, calibration=inputs, jobs=jobs, progress=told.append)
        for jobs in (1, 3)
    )
    assert alone.report.groups == together.report.groups
    assert ir.to_proto(alone.model) == ir.to_proto(together.model)
    steps = [what.split()[1].split("/") for what in told if what.startswith("compare ")]
    assert {of for _, of in steps} == {"6"}  # two ways, three layers
    assert {int(done) for done, _ in steps} >= {1, 6} and all(1 <= int(done) <= 6 for done, _ in steps)


@pytest.mark.parametrize("why", ["made-up inputs", "too large"])
def test_without_trials_the_least_foretold_loss_decides(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "too large":
        monkeypatch.setattr(aim, "WORK", 1)
    monkeypatch.setattr(contest, "WORTH", 1e9)
    monkeypatch.setattr(aim, "winner", lambda *_, **__: pytest.fail("a trial was made"))
    inputs = {"x": np.random.default_rng(5).normal(size=(64, 8)).astype(np.float32)}
    found = onnxprune.prune(model(), target={"macs": 0.5}, calibration=inputs if why == "too large" else None, jobs=1)
    first, second, *_ = found.report.groups
    assert first.cut / first.units > second.cut / second.units  # copies cost nothing: never what uniform counts do


def test_points_of_a_sweep_share_what_trials_may_cost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = onnxprune.prune(model(), ratio=0, calibration={"x": np.zeros((8, 8), np.float32)})
    monkeypatch.setattr(aim, "WORK", 4 * found.report.macs.before * 64)
    monkeypatch.setattr(contest, "WORTH", 1e9)
    made = list[int]()
    wins = aim.winner
    monkeypatch.setattr(aim, "winner", lambda *given, **more: made.append(1) or wins(*given, **more))
    inputs = {"x": np.random.default_rng(5).normal(size=(64, 8)).astype(np.float32)}
    onnxprune.sweep(model(), ["macs=0.5"], tmp_path, calibration=inputs, samples=64)
    assert not made
    onnxprune.prune(model(), target={"macs": 0.5}, calibration=inputs, samples=64)
    assert made


def residual() -> onnx.ModelProto:
    """Returns a model with a residual stream, the first group, whose units are copies of few."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["s"], "first"),
        helper.make_node("Gemm", ["s", "w2"], ["h"], "up"),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("Gemm", ["r", "w3"], ["b"], "down"),
        helper.make_node("Add", ["s", "b"], ["t"], "add"),
        helper.make_node("Relu", ["t"], ["u"], "act2"),
        helper.make_node("Gemm", ["u", "w4"], ["y"], "last"),
    ]
    rng = np.random.default_rng(1)
    copies = {name: np.repeat(rng.normal(size=(rows, 4)), 8, axis=1) for name, rows in (("w1", 8), ("w3", 24))}
    weights = [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in copies.items()]
    return model_of(nodes, [*weights, tensor("w2", 32, 24, seed=2), tensor("w4", 32, 4, seed=3)])


def tried(monkeypatch: pytest.MonkeyPatch) -> list[Contender]:
    """Returns a list that will hold what is tried; the first that leaves streams alone wins."""
    found = list[Contender]()

    def wins(contenders: list[Contender], *_: object, **__: object) -> Contender:
        found.extend(contenders)
        return min(contenders, key=lambda c: c.way.streams)

    monkeypatch.setattr(aim, "winner", wins)
    monkeypatch.setattr(contest, "WORTH", 1e9)
    return found


def test_where_streams_are_cut_it_is_tried_without_too(monkeypatch: pytest.MonkeyPatch) -> None:
    contenders = tried(monkeypatch)
    inputs = {"x": np.random.default_rng(5).normal(size=(64, 8)).astype(np.float32)}
    found = onnxprune.prune(residual(), target={"macs": 0.6}, calibration=inputs, jobs=1)
    cut = {c.way.streams: c.chosen.counts[0] for c in contenders if c.way.spread != "even"}
    assert cut[True] > 0 and cut[False] == 0
    assert found.report.groups[0].cut == 0 and found.report.macs.ratio <= 0.605


def test_without_time_for_all_trials_streams_are_cut_in_each(monkeypatch: pytest.MonkeyPatch) -> None:
    contenders = tried(monkeypatch)
    monkeypatch.setattr(aim, "WORK", 3 * (8 * 32 + 32 * 24 * 2 + 32 * 4) * 64)
    inputs = {"x": np.random.default_rng(5).normal(size=(64, 8)).astype(np.float32)}
    onnxprune.prune(residual(), target={"macs": 0.6}, calibration=inputs, samples=64, jobs=1)
    assert len(contenders) > 1 and all(c.way.streams for c in contenders)
