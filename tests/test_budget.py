"""Limits, costs as functions of counts, caps and floors, and targets met by what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile import floats, model_of, tensor, write
from onnx import helper

import onnxprune
from onnxprune.allocation.bounds import bounds_of, most_that_may_go, parse_bounds
from onnxprune.allocation.budget import Budget, Limit
from onnxprune.allocation.counts import at_ratio, filled, steps_of
from onnxprune.allocation.tally import Tally
from onnxprune.engine import cost
from onnxprune.engine.coupling import Coupling, couple
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.units import Units, find_units
from onnxprune.errors import TargetError, UsageError
from onnxprune.graph.flat import look_into
from onnxprune.graph.model import load
from onnxprune.graph.trace import trace

MODELS = Path(__file__).resolve().parent.parent / "models"
NETS = sorted(path.name for path in MODELS.glob("*.onnx"))
BARE = {"criterion": "l1", "compensate": "none", "allocation": "uniform", "validate": False}


def units_of(path: Path) -> Units:
    """Returns the units of a model."""
    source = load(path)
    flat, traced = look_into(source.model, lambda model: trace(model, seed=0, providers=("CPUExecutionProvider",)))
    return find_units(couple(flat.model if flat else source.model, traced, flat=flat))


def some_counts(units: Units, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(rng.integers(0, len(group))) for group in units.groups)


def cut_by(units: Units, counts: tuple[int, ...], rng: np.random.Generator) -> Cutting:
    """Returns a cut of so many units of each group, whichever they are."""
    gone = [rng.choice(group.units, count, replace=False) for group, count in zip(units.groups, counts, strict=True)]
    return Cutting(units, np.concatenate(gone))


# -------------------------------------------------------------------------------------------------- limits
@pytest.mark.parametrize(
    ("text", "at_most", "relative"),
    [
        ("macs=0.5", 0.5, True),
        (" params = 1 ", 1.0, True),
        ("size=.25", 0.25, True),
        ("size=4MB", 4e6, False),
        ("size=4 MiB", 4 * 2**20, False),
        ("size=1.5kb", 1500, False),
        ("size=900B", 900, False),
        ("latency=0.6", 0.6, True),
        ("latency=8ms", 8, False),
        ("latency=0.5s", 500, False),
    ],
)
def test_a_limit_is_read_and_written(text: str, at_most: float, relative: bool) -> None:
    limit = Limit.parse(text)
    assert (limit.at_most, limit.relative) == (pytest.approx(at_most), relative)
    assert Limit.parse(str(limit)) == limit
    assert limit.allowed(1000) == pytest.approx(at_most * (1000 if relative else 1))


@pytest.mark.parametrize(
    "text",
    ["macs", "macs=", "macs=0", "macs=1.5", "macs=-0.5", "macs=half", "macs=4MB", "size=4", "size=4XB", "latency=8MB",
     "latency=inf", "size=1e999MB", "width=0.5", "macs=0.5 0.6", "macs=nan"],
)  # fmt: skip
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="target"):
        Limit.parse(text)


def test_a_budget_holds_if_all_of_its_limits_do() -> None:
    left = {"macs": lambda counts: 100.0 - counts[0], "size": lambda counts: 50.0 - counts[0] / 10}
    budget = Budget((Limit("macs", 0.5), Limit("size", 48.0, relative=False)), {"macs": 100.0, "size": 50.0}, left)
    assert budget.excess((0,)) == pytest.approx(1.0)
    assert budget.excess((50,)) == pytest.approx(0.0)
    assert budget.excess((60,)) < 0
    heavier = budget.corrected((50,), {"size": 49.0})  # four bytes more than foretold
    assert heavier.expected("size", (50,)) == 49.0
    assert heavier.excess((50,)) == pytest.approx(49 / 48 - 1)
    assert heavier.excess_of({"macs": 40.0, "size": 40.0}) == pytest.approx(40 / 48 - 1)


# -------------------------------------------------------------------------------------------------- costs of counts
def weights_left(coupling: Coupling, cutting: Cutting) -> int:
    """Counts the weights that a cutting leaves, constant by constant (one that is copied counts once)."""
    uses = {use.name: use for use in coupling.uses if cutting.touches(use)}.values()
    gone = sum(int(np.prod(use.shape)) - int(np.prod(cutting.shape_of(use))) for use in uses)
    return cost.parameters(coupling.model) - gone


@pytest.mark.parametrize("name", NETS)
def test_costs_are_those_of_the_cut(name: str) -> None:
    units = units_of(MODELS / name)
    tally, rng = Tally(units), np.random.default_rng(7)
    for counts in [(0,) * len(units.groups), *(some_counts(units, rng) for _ in range(4))]:
        cutting = cut_by(units, counts, rng)
        assert tally.macs(counts) == cost.macs(units.coupling, cutting)
        assert tally.weights(counts) == weights_left(units.coupling, cutting)


def test_costs_of_what_is_not_linear_are_asked_for(tmp_path: Path) -> None:
    """A grouped convolution whose inputs and outputs are shuffled: units stand in no regular pattern."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["h"], "first"),
        helper.make_node("Conv", ["h", "w2"], ["g"], "grouped", group=2),
        helper.make_node("Concat", ["g", "h"], ["c"], "both", axis=1),
        helper.make_node("Conv", ["c", "w3"], ["y"], "last"),
    ]
    weights = [tensor("w1", 8, 3, 1, 1), tensor("w2", 6, 4, 1, 1, seed=1), tensor("w3", 5, 14, 1, 1, seed=2)]
    model = model_of(nodes, weights, inputs=[floats("x", 2, 3, 4, 4)], outputs=[floats("y", 2, 5, 4, 4)])
    units = units_of(write(model, tmp_path))
    assert units.groups
    tally, rng = Tally(units), np.random.default_rng(3)
    for _ in range(4):
        counts = some_counts(units, rng)
        assert tally.macs(counts) == cost.macs(units.coupling, cut_by(units, counts, rng))


# -------------------------------------------------------------------------------------------------- caps and floors
def test_bounds_by_name_go_before_those_for_all() -> None:
    assert parse_bounds("--min-units", ["conv1*=4", "2"]) == (("*", 2.0), ("conv1*", 4.0))
    assert parse_bounds("--max-ratio-per-group", ["a=b=0.3"]) == (("a=b", 0.3),)
    with pytest.raises(UsageError, match="--min-units 'many'"):
        parse_bounds("--min-units", ["many"])


@pytest.mark.parametrize(("value", "whole"), [(-0.1, False), (1.1, False), (0, True), (1.5, True)])
def test_bounds_that_make_no_sense_are_refused(value: float, whole: bool) -> None:
    with pytest.raises(UsageError, match="bound"):
        bounds_of("bound", value, whole=whole)


def test_caps_and_floors_hold_group_by_group() -> None:
    units = units_of(MODELS / "digits_mlp.onnx")
    first, second = (len(group) for group in units.groups)
    name = units.groups[1].name
    open_ = (True, True)
    assert most_that_may_go(units, open_, (), ()) == (first - 1, second - 1)
    assert most_that_may_go(units, (True, False), (), ()) == (first - 1, 0)
    assert most_that_may_go(units, open_, (("*", 0.25),), ()) == (first // 4, second // 4)
    assert most_that_may_go(units, open_, (("*", 0.25), (name, 0.5)), ()) == (first // 4, second // 2)
    assert most_that_may_go(units, open_, (), (("*", 1e6),)) == (0, 0)
    with pytest.raises(UsageError, match="matches no group"):
        most_that_may_go(units, open_, (("nothing*", 0.5),), ())


def test_what_a_budget_leaves_unused_is_given_back() -> None:
    units = units_of(MODELS / "digits_mlp.onnx")
    steps = steps_of(units, 8)
    counts = at_ratio(units, 0.9, steps=steps, most=tuple(len(g) - 1 for g in units.groups))
    assert all((len(g) - c) % 8 == 0 for g, c in zip(units.groups, counts, strict=True))
    goal = sum(counts) - 20
    back = filled(lambda now: float(goal - sum(now)), counts, units, steps)
    assert all((len(g) - c) % 8 == 0 for g, c in zip(units.groups, back, strict=True))
    assert 0 <= sum(back) - goal < 8


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("how", [{"ratio": 0.8}, {"target": {"params": 0.9}}])
def test_every_allocation_respects_them(allocation: str, how: dict[str, object]) -> None:
    plain = BARE | {"allocation": allocation} | how
    found = onnxprune.prune(MODELS / "digits_mlp.onnx", **plain, max_ratio_per_group=0.1, min_units={"*": 120})
    for row in found.report.groups:
        assert row.cut <= row.units // 10
        assert row.units - row.cut >= 120


# -------------------------------------------------------------------------------------------------- targets
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("kind", ["macs", "params", "size"])
@pytest.mark.parametrize("name", ["digits_mlp.onnx", "digits_resnet.onnx", "digits_lstm.onnx"])
def test_the_written_file_meets_its_target(name: str, kind: str, share: float, tmp_path: Path) -> None:
    """Within 1 %, as far below as the last unit forces; or no file at all."""
    out = tmp_path / "out.onnx"
    try:
        report = onnxprune.prune(MODELS / name, target={kind: share}, output=out, **BARE).report
    except TargetError as error:
        assert not out.exists()
        assert f"{kind}={share}" in str(error)
        assert "best that can be had" in str(error)
        return
    counts = {"macs": report.macs, "params": report.params, "size": report.size}
    assert out.stat().st_size == report.size.after
    assert (
        sum(int(np.prod(t.dims)) for t in onnx.load(out).graph.initializer if t.data_type == 1) == report.params.after
    )
    largest = max(group.params_per_unit / report.params.before for group in report.groups if group.cut)
    largest = max(largest, *(group.macs_per_unit / report.macs.before for group in report.groups if group.cut))
    assert counts[kind].ratio <= share * 1.01
    assert counts[kind].ratio >= share * 0.99 - largest


def test_several_targets_all_hold(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    report = onnxprune.prune(
        MODELS / "digits_resnet.onnx", target={"macs": 0.6, "size": "0.2MB"}, output=out, **BARE
    ).report
    assert report.macs.ratio <= 0.6
    assert report.size.after <= 200_000
    assert report.options["targets"] == {"macs": 0.6, "size": "200000B"}


def test_a_size_counts_data_files_and_added_biases(tmp_path: Path) -> None:
    """BatchNormalization behind convolutions without biases: the refit adds some, which the size must hold too."""
    rng = np.random.default_rng(0)
    found = onnxprune.prune(
        MODELS / "digits_cnn.onnx",
        target={"size": 0.5},
        allocation="uniform",
        calibration={"input": rng.random((64, 1, 8, 8), np.float32)},
        output=tmp_path / "out.onnx",
        validate=False,
    )
    assert 0.49 <= (tmp_path / "out.onnx").stat().st_size / found.report.size.before <= 0.505


def test_a_target_out_of_reach_says_what_can_be_had_and_what_is_in_the_way() -> None:
    with pytest.raises(TargetError, match=r"best that can be had is macs=0\.") as error:
        onnxprune.prune(MODELS / "digits_resnet.onnx", target={"macs": 0.01}, **BARE)
    assert "--streams" in str(error.value)
    with pytest.raises(TargetError, match="max-ratio-per-group"):
        onnxprune.prune(MODELS / "digits_mlp.onnx", target={"macs": 0.5}, max_ratio_per_group=0.1, **BARE)
