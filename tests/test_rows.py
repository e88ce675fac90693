"""Rows of rectangles that lose different columns: where they may, what the cut leaves, and how a plan tells it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.criteria.ranking import rank_by_weights
from onnxprune.engine.coupling import couple
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.rows import find_rows, lost, rearranged
from onnxprune.engine.units import Units, find_units
from onnxprune.errors import DataError
from onnxprune.graph.trace import trace
from onnxprune.plan import KeptLists, Plan
from onnxprune.testing import check_model

MODELS = Path(__file__).parents[1] / "models"
HEADS, DIMS, WIDTH = 3, 4, 6


def network(middle: Sequence[onnx.NodeProto], width: int, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Returns a projection of x to h (batch, 5, HEADS, DIMS), `middle`, which makes z, and a projection of it."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"], "in"),
        helper.make_node("Reshape", ["wide", "split"], ["h"], "heads"),
        *middle,
        helper.make_node("Reshape", ["z", "merge"], ["flat"], "merged"),
        helper.make_node("MatMul", ["flat", "o"], ["y"], "out"),
    ]
    known = {
        "w": rng.normal(size=(WIDTH, HEADS * DIMS)).astype(np.float32),
        "o": rng.normal(size=(width, 2)).astype(np.float32),
        "split": np.array([0, 0, HEADS, DIMS]),
        "merge": np.array([0, 0, -1]),
        **constants,
    }
    graph = helper.make_graph(
        nodes,
        "heads",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in known.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def units_of(model: onnx.ModelProto) -> Units:
    """Returns the units of a model."""
    graph = ir.from_proto(model)
    return find_units(couple(graph, trace(graph)))


def test_heads_lose_any_dims_where_nothing_lines_them_up() -> None:
    model = network([helper.make_node("Relu", ["h"], ["z"])], HEADS * DIMS, {})
    (rows,) = find_rows(units_of(model))
    assert rows.slots.shape == (DIMS, HEADS)
    outcome = check_model(model, halves=4)
    assert outcome.wrong == ()
    assert outcome.cuts == 4 + DIMS + 4


@pytest.mark.parametrize(
    ("middle", "width", "constants"),
    [
        pytest.param(
            [helper.make_node("Transpose", ["h"], ["z"], perm=[0, 1, 3, 2])],
            HEADS * DIMS,
            {},
            id="merged with the dims in front",
        ),
        pytest.param(
            [helper.make_node("Slice", ["h", "zero", "two", "three"], ["z"])],
            HEADS * 2,
            {"zero": np.array([0]), "two": np.array([2]), "three": np.array([3])},
            id="a part of the dims",
        ),
        pytest.param(
            [helper.make_node("Gather", ["h", "turned"], ["z"], axis=3)],
            HEADS * DIMS,
            {"turned": np.array([3, 2, 1, 0])},
            id="dims in another order",
        ),
        pytest.param(
            [helper.make_node("Mul", ["h", "table"], ["z"])],
            HEADS * DIMS,
            {"table": np.arange(1, DIMS + 1, dtype=np.float32)},
            id="a number for each dim, in all heads",
        ),
        pytest.param(
            [helper.make_node("Div", ["h", "table"], ["z"])],
            HEADS * DIMS,
            {"table": np.arange(1, HEADS * DIMS + 1, dtype=np.float32).reshape(HEADS, DIMS)},
            id="a divisor that readers pick from",
        ),
        pytest.param(
            [
                helper.make_node("MatMul", ["x", "v"], ["thin"], "beside"),
                helper.make_node("Unsqueeze", ["thin", "two"], ["g"]),
                helper.make_node("Mul", ["h", "g"], ["z"]),
            ],
            HEADS * DIMS,
            {"v": np.random.default_rng(1).normal(size=(WIDTH, DIMS)).astype(np.float32), "two": np.array([2])},
            id="a projection for each dim, in all heads",
        ),
        pytest.param(
            [helper.make_node("ReduceMean", ["h", "two"], ["z"])], DIMS, {"two": np.array([2])}, id="a mean over heads"
        ),
        pytest.param([helper.make_node("Softmax", ["h"], ["z"])], HEADS * DIMS, {}, id="a softmax over dims"),
    ],
)
def test_heads_lose_the_same_dims_where_something_does(
    middle: list[onnx.NodeProto], width: int, constants: dict[str, np.ndarray]
) -> None:
    model = network(middle, width, constants)
    assert find_rows(units_of(model)) == ()
    assert check_model(model).wrong == ()


def test_numbers_that_go_two_by_two_stay_together() -> None:
    units = units_of(network([helper.make_node("Relu", ["h"], ["z"])], HEADS * DIMS, {}))
    (rows,) = find_rows(units)
    units.coupling.labels.prefer_pairs(rows.slots[0], rows.slots[1])
    assert find_rows(units) == ()


def test_what_goes_of_each_row_is_what_the_order_says() -> None:
    units = units_of(network([helper.make_node("Relu", ["h"], ["z"])], HEADS * DIMS, {}))
    rows = find_rows(units)
    order = np.array([[0, 1, 2], [1, 3, 0], [2, 0, 1], [3, 2, 3]])
    mixed = rearranged(units, rows, [order])
    assert mixed.rows == rows
    cutting = Cutting(mixed, mixed.groups[0].units[:2])
    assert lost(rows[0], cutting.living).tolist() == [[0, 1], [1, 3], [0, 2]]
    w = next(use for use in units.coupling.uses if use.name == "w")
    assert cutting.kept_of(w, 1)[1][0].tolist() == [2, 3, 4, 6, 9, 11]
    h = units.coupling.tensors["h"]
    assert [len(cutting.kept(h, axis)) for axis in range(4)] == [2, 5, HEADS, 2]


def test_units_put_together_anew_keep_their_order() -> None:
    units = units_of(network([helper.make_node("Relu", ["h"], ["z"])], HEADS * DIMS, {}))
    rows = find_rows(units)
    mixed = rearranged(units, rows, [np.array([[3, 1, 0], [2, 2, 3], [0, 3, 1], [1, 0, 2]])])
    (plain,), (kept,) = rank_by_weights(units, "l1", 0), rank_by_weights(mixed, "l1", 0)
    assert not np.array_equal(np.argsort(plain), np.arange(DIMS))
    assert (np.diff(kept) >= 0).all()
    assert kept.sum() == pytest.approx(plain.sum())


def test_a_cell_tells_what_stays_in_each_direction(tmp_path: Path) -> None:
    source = MODELS / "digits_lstm.onnx"
    data = MODELS / "digits.npz"
    result = onnxprune.prune(source, ratio=0.5, calibration=data, samples=64, output=tmp_path / "a.onnx")
    w, r, b = (t for t in result.plan.tensors if t.node == next(t.node for t in result.plan.tensors))
    for tensor, axes in ((w, ("1",)), (r, ("1", "2")), (b, ("1",))):
        for axis in axes:
            kept = tensor.kept[axis]
            assert isinstance(kept, KeptLists)
            assert kept.along == (0,)
            assert [len(each) for each in kept.lists] == [tensor.shape[int(axis)] // 2] * 2
    before = _weights(source)[r.name]
    lists = [r.kept[axis] for axis in ("1", "2")]
    directions = [np.ix_(*(each.lists[k] for each in lists if isinstance(each, KeptLists))) for k in range(2)]
    expected = np.stack([before[k][places] for k, places in enumerate(directions)])
    plain = onnxprune.prune(source, apply=_unrefitted(result.plan), output=tmp_path / "plain.onnx")
    np.testing.assert_array_equal(_weights(tmp_path / "plain.onnx")[r.name], expected)
    assert plain.plan.groups == result.plan.groups


@pytest.mark.parametrize("name", ["lstm", "vit"])
def test_a_plan_with_rows_is_replayed_bit_for_bit(name: str, tmp_path: Path) -> None:
    source, data = MODELS / f"digits_{name}.onnx", MODELS / "digits.npz"
    first = onnxprune.prune(source, ratio=0.4, calibration=data, samples=64, output=tmp_path / "a.onnx")
    assert any(group.rows for group in first.plan.groups)
    first.plan.save(tmp_path / "plan.json")
    second = onnxprune.prune(
        source, apply=tmp_path / "plan.json", calibration=data, samples=64, output=tmp_path / "b.onnx"
    )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (second.plan.groups, second.plan.tensors) == (first.plan.groups, first.plan.tensors)
    exactness = onnxprune.validate(source, tmp_path / "a.onnx").exactness
    assert exactness is not None and exactness.exact


def test_a_plan_whose_rows_are_not_those_of_the_model_is_refused(tmp_path: Path) -> None:
    source = MODELS / "digits_lstm.onnx"
    plan = onnxprune.prune(source, ratio=0.4, calibration=MODELS / "digits.npz", samples=64).plan
    first, *others = plan.groups
    for rows in (first.rows[:1], (first.rows[0][1:], *first.rows[1:]), ((99, *first.rows[0][1:]), *first.rows[1:])):
        wrong = replace(plan, groups=(replace(first, rows=rows), *others))
        with pytest.raises(DataError, match="rows are not those of the model"):
            onnxprune.prune(source, apply=wrong, output=tmp_path / "out.onnx")
    damaged = json.loads(plan.to_json())
    damaged["groups"][0]["rows"] = 3
    (tmp_path / "plan.json").write_text(json.dumps(damaged))
    with pytest.raises(DataError, match="no plan that can be read"):
        Plan.load(tmp_path / "plan.json")


def _weights(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


def _unrefitted(plan: Plan) -> Plan:
    return replace(plan, options={**plan.options, "compensate": "none"})
