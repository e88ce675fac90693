"""Sizes that several readers share, after cuts that differ between them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hostile import floats, model_of, tensor
from onnx import helper, numpy_helper

import onnxprune
from onnxprune import planning
from onnxprune.engine import sizes
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.sizes import Rewrite


def two_heads(*, turned: bool = False) -> onnx.ModelProto:
    """Returns two projections that are split into heads of 6 by one computed shape, and merged again.

    Args:
        turned: the axes that vary come out in another order, which no constant shape can say.
    """
    order = ["tokens", "batch"] if turned else ["batch", "tokens"]
    nodes = [
        helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
        helper.make_node("Shape", ["x"], ["tokens"], start=1, end=2),
        helper.make_node("Concat", [*order, "two", "six"], ["split"], axis=0),
    ]
    for k in (0, 1):
        nodes += [
            helper.make_node("MatMul", ["x", f"w{k}"], [f"h{k}"], f"project{k}"),
            helper.make_node("Reshape", [f"h{k}", "split"], [f"s{k}"], f"split{k}", allowzero=1),
            helper.make_node("Einsum", [f"s{k}", f"v{k}"], [f"z{k}"], f"merge{k}", equation="abhd,hdo->abo"),
        ]
    nodes.append(helper.make_node("Add", ["z0", "z1"], ["y"]))
    weights = [tensor(f"w{k}", 5, 12, seed=k) for k in (0, 1)] + [tensor(f"v{k}", 2, 6, 3, seed=2 + k) for k in (0, 1)]
    numbers = [numpy_helper.from_array(np.array([n]), name) for name, n in (("two", 2), ("six", 6))]
    out = floats("y", "b", "a", 3) if turned else floats("y", "a", "b", 3)
    return model_of(nodes, [*weights, *numbers], inputs=[floats("x", "a", "b", 5)], outputs=[out])


def experts() -> onnx.ModelProto:
    """Returns a hidden layer whose rows are dealt out to two experts: as many to the first as have a large entry."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "hidden"),
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("ReduceMax", ["x"], ["largest"], axes=[1], keepdims=0),
        helper.make_node("Greater", ["largest", "limit"], ["large"]),
        helper.make_node("Cast", ["large"], ["ones"], to=onnx.TensorProto.INT64),
        helper.make_node("ReduceSum", ["ones"], ["first"], keepdims=1),
        helper.make_node("Sub", ["rows", "first"], ["second"]),
        helper.make_node("Concat", ["first", "second"], ["shares"], axis=0),
        helper.make_node("Split", ["h", "shares"], ["h0", "h1"], "deal", axis=0),
        helper.make_node("MatMul", ["h0", "v0"], ["y0"]),
        helper.make_node("MatMul", ["h1", "v1"], ["y1"]),
        helper.make_node("Concat", ["y0", "y1"], ["y"], axis=0),
    ]
    weights = [tensor("w", 5, 12, seed=0), tensor("v0", 12, 3, seed=1), tensor("v1", 12, 3, seed=2)]
    limit = numpy_helper.from_array(np.array(1.0, np.float32), "limit")
    return model_of(nodes, [*weights, limit], inputs=[floats("x", "n", 5)], outputs=[floats("y", "n", 3)])


def test_a_split_by_sizes_that_data_make_does_not_keep_the_layer_before_it() -> None:
    result = onnxprune.prune(experts(), ratio=0.5, criterion="l1", compensate="none")
    assert [(group.units, group.cut) for group in result.report.groups] == [(12, 6)]
    assert result.report.validation is not None and len(result.report.validation.sizes) == 2


def test_readers_of_one_shape_get_their_own() -> None:
    options = {"criterion": "l1", "compensate": "none", "max_ratio_per_group": {"w0": 0.34}}
    result = onnxprune.prune(two_heads(), ratio=0.5, **options)
    assert [(group.units, group.cut) for group in result.report.groups] == [(6, 2), (6, 3)]
    assert result.report.validation is not None and len(result.report.validation.sizes) == 2


def test_readers_whose_sizes_no_constant_can_say_get_entries_of_their_own() -> None:
    model = two_heads(turned=True)
    result = onnxprune.prune(model, ratio=0.5, include=["w1"], criterion="l1", compensate="none")
    assert [(group.units, group.cut) for group in result.report.groups] == [(6, 0), (6, 3)]
    assert result.report.validation is not None and len(result.report.validation.sizes) == 2
    assert [node.op_type for node in result.model.graph].count("Where") == 1
    x = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    (y,) = ort.InferenceSession(ir.to_proto(result.model).SerializeToString()).run(None, {"x": x})
    assert y.shape == (3, 4, 3)


def test_readers_that_cannot_differ_do_not_keep_the_rest_from_going(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one shape must serve both, cutting them differently is no way: they stay, and the plan ends."""
    monkeypatch.setattr(sizes, "WHERE", 1000)
    with pytest.raises(onnxprune.NothingToPruneError):
        onnxprune.prune(two_heads(turned=True), ratio=0.5, include=["w1"], criterion="l1", compensate="none")
    alike = onnxprune.prune(two_heads(turned=True), ratio=0.5, criterion="l1", compensate="none")
    assert [(group.units, group.cut) for group in alike.report.groups] == [(6, 3), (6, 3)]


def let_no_size_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the sizes of every cut fail at the first node, and planning give up after one try."""
    real = planning.rewrite_sizes

    def never(cutting: Cutting) -> Rewrite:
        return Rewrite(failed={0: "for this test"}) if len(cutting.dead_units) else real(cutting)

    monkeypatch.setattr(planning, "ROUNDS", 1)
    monkeypatch.setattr(planning, "rewrite_sizes", never)


def test_a_ratio_that_sizes_keep_from_being_cut_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    let_no_size_follow(monkeypatch)
    with pytest.raises(onnxprune.NothingToPruneError, match="the sizes of Shape #0 can't follow any cut"):
        onnxprune.prune(two_heads(), ratio=0.5, criterion="l1", compensate="none")


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_target_that_sizes_keep_out_of_reach_is_said_to_be(dry_run: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    let_no_size_follow(monkeypatch)
    options = {"criterion": "l1", "compensate": "none", "allocation": "uniform"}
    with pytest.raises(onnxprune.TargetError, match="macs"):
        onnxprune.prune(two_heads(), target={"macs": 0.8}, dry_run=dry_run, **options)


def counted() -> onnx.ModelProto:
    """Returns a net whose Reshape takes one of its sizes from data and two from constants."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w0"], ["hidden"]),
        node("Relu", ["hidden"], ["active"]),
        node("MatMul", ["active", "w1"], ["h"]),
        node("ReduceSum", ["x", "axis"], ["one"], keepdims=0),
        node("Equal", ["one", "one"], ["there"]),
        node("Cast", ["there"], ["each"], to=onnx.TensorProto.INT64),
        node("ReduceSum", ["each"], ["count"], keepdims=0),
        node("Unsqueeze", ["count", "first"], ["counted"]),
        node("Concat", ["counted", "rest"], ["split"], axis=0),
        node("Reshape", ["h", "split"], ["heads"], "split"),
        node("MatMul", ["heads", "w2"], ["y"]),
    ]
    weights = [tensor("w0", 5, 12), tensor("w1", 12, 16, seed=1), tensor("w2", 4, 3, seed=2)]
    numbers = {"axis": [1], "first": [0], "rest": [4, 4]}
    weights += [numpy_helper.from_array(np.array(v), name) for name, v in numbers.items()]
    return model_of(nodes, weights, inputs=[floats("x", "a", 5)], outputs=[floats("y", "a", 4, 3)])


def test_a_size_beside_one_that_depends_on_data_follows_by_itself() -> None:
    result = onnxprune.prune(counted(), ratio=0.5, criterion="l1", compensate="none")
    assert [(group.units, group.cut) for group in result.report.groups] == [(12, 6), (4, 2)]
    assert not any("refused" in warning for warning in result.report.warnings)
    assert result.report.validation is not None and len(result.report.validation.sizes) == 2


def picked(*, apart: bool) -> onnx.ModelProto:
    """Returns a layer over the rows that data pick, to which as many rows of zeros are added.

    Args:
        apart: how many rows there are is read off the rows themselves, not off what the layer makes of them.
    """
    model = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        picked (float[N, 5] x) => (float[M, 3] y)
        <float[5, 12] w0, float[12, 3] w1, float limit = {{0.5}}, int64[1] first = {{0}}, int64 zero = {{0}},
         int64[1] twelve = {{12}}>
        {{ largest = ReduceMax <axes = [1], keepdims = 0> (x)
          large = Greater (largest, limit)
          places = NonZero (large)
          rows = Squeeze (places, first)
          taken = Gather (x, rows)
          h = MatMul (taken, w0)
          shape = Shape ({"taken" if apart else "h"})
          count = Gather (shape, zero)
          counted = Unsqueeze (count, first)
          size = Concat <axis = 0> (counted, twelve)
          zeros = ConstantOfShape (size)
          sum = Add (zeros, h)
          y = MatMul (sum, w1) }}""")
    model.graph.initializer.extend([tensor("w0", 5, 12), tensor("w1", 12, 3, seed=1)])
    return model


@pytest.mark.parametrize("apart", [False, True])
def test_zeros_of_a_size_that_data_make_lose_the_channels_of_what_they_are_added_to(apart: bool) -> None:
    result = onnxprune.prune(picked(apart=apart), ratio=0.5, criterion="l1", compensate="none")
    assert [(group.units, group.cut) for group in result.report.groups] == [(12, 6)]
    assert result.report.validation is not None and len(result.report.validation.sizes) == 2


def scattered(last: str = "y = MatMul (sum, w1)") -> onnx.ModelProto:
    """Returns a layer over rows that data pick, added up where they came from, as torch.onnx writes message passing."""
    model = onnx.parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        scattered (float[N, 5] x) => (float[N, 3] y)
        <float[5, 12] w0, float[12, 3] w1, float limit = {0.5}, int64[1] first = {0}, int64 zero = {0}, int64 one = {1},
         int64[2] begin = {0, 0}, int64[2] column = {-1, 1}>
        { largest = ReduceMax <axes = [1], keepdims = 0> (x)
          large = Greater (largest, limit)
          places = NonZero (large)
          rows = Squeeze (places, first)
          taken = Gather (x, rows)
          h = MatMul (taken, w0)
          below = Reshape (rows, column)
          there = Shape (h)
          beside = Expand (below, there)
          ends = Shape (beside)
          all = Slice (h, begin, ends)
          given = Shape (x)
          count = Gather (given, zero)
          counted = Unsqueeze (count, first)
          again = Shape (h)
          wide = Gather (again, one)
          width = Unsqueeze (wide, first)
          size = Concat <axis = 0> (counted, width)
          zeros = ConstantOfShape (size)
          sum = ScatterElements <axis = 0, reduction = "add"> (zeros, beside, all)
          """
        + last
        + "}"
    )
    model.graph.initializer.extend([tensor("w0", 5, 12), tensor("w1", 12, 3, seed=1)])
    return model


def test_rows_that_are_added_up_where_data_say_lose_channels() -> None:
    result = onnxprune.prune(scattered(), ratio=0.5, criterion="l1", compensate="none")
    assert [(group.units, group.cut) for group in result.report.groups] == [(12, 6)]
    assert result.report.validation is not None and len(result.report.validation.sizes) == 2
    assert sum(node.op_type == "Where" for node in result.model.graph) == 0


@pytest.mark.parametrize("number", ["Cast <to = 1> (wide)", "Cast <to = 1> (area)"])
def test_a_number_read_off_a_shape_that_data_make_keeps_the_axis_where_it_is_no_size(number: str) -> None:
    last = f"area = ReduceProd <keepdims = 0> (size) number = {number} mean = Div (sum, number) y = MatMul (mean, w1)"
    with pytest.raises(onnxprune.NothingToPruneError):
        onnxprune.prune(scattered(last), ratio=0.5, criterion="l1", compensate="none")


def test_one_group_that_sizes_cannot_follow_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    real = planning.rewrite_sizes

    def without_w1(cutting: Cutting) -> Rewrite:
        """Has the sizes fail at a node that meets no label, as long as `w1` loses any."""
        found = real(cutting)
        if any(g.name == "w1" and cutting.dead[g.units].any() for g in cutting.units.groups):
            found.failed[0] = "for this test"
        return found

    monkeypatch.setattr(planning, "rewrite_sizes", without_w1)
    result = onnxprune.prune(two_heads(), ratio=0.5, criterion="l1", compensate="none")
    assert [(group.name, group.units, group.cut) for group in result.report.groups] == [("w0", 6, 3)]


def padded() -> onnx.ModelProto:
    """Returns two layers; between them positions are padded to a multiple of seven, as for windows, channels by one."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        windows (float[N, 6, L] x) => (float[N, 4, P] y)
        <float[8, 6, 1] w0, float[4, 9, 3] w1, int64[3] front = {0, 1, 0}, int64[2] none = {0, 0}, int64[1] seven = {7}>
        { h = Conv (x, w0)   r = Relu (h)
          length = Shape <start = 2, end = 3> (x)   minus = Neg (length)   rest = Mod (minus, seven)
          amounts = Concat <axis = 0> (front, none, rest)
          padded = Pad (r, amounts)
          y = Conv <pads = [1, 1]> (padded, w1) }""")
    model.graph.initializer.extend([tensor("w0", 8, 6, 1), tensor("w1", 4, 9, 3, seed=1)])
    return model


def test_an_axis_padded_by_a_constant_amount_is_cut_beside_one_that_varies() -> None:
    result = onnxprune.prune(padded(), ratio=0.5, criterion="l1", compensate="none")
    assert [(group.units, group.cut) for group in result.report.groups] == [(8, 4)]
    validation = result.report.validation
    assert validation is not None and validation.error is not None and len(validation.sizes) == 2


def baked() -> onnx.ModelProto:
    """Returns a net that declares an open batch and reshapes to the one that it was exported with."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        baked (float[N, 3, 4] x) => (float[N, 5] y)
        <float[12, 16] w0, float[16, 5] w1, int64[2] flat = {1, 12}>
        { rows = Reshape (x, flat)
          h = MatMul (rows, w0)
          r = Relu (h)
          y = MatMul (r, w1) }""")
    model.graph.initializer.extend([tensor("w0", 12, 16), tensor("w1", 16, 5, seed=1)])
    return model


@pytest.mark.parametrize("data", [True, False])
def test_a_model_that_runs_at_one_batch_alone_is_fed_by_it(data: bool, tmp_path: Path) -> None:
    onnx.save(baked(), tmp_path / "in.onnx")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3, 4)).astype(np.float32)
    labelled = {"evaluate": {"x": x, "labels": rng.integers(0, 5, 40)}, "labels": "labels"} if data else {}
    given = {"calibration": {"x": x}, **labelled} if data else {}
    result = onnxprune.prune(tmp_path / "in.onnx", ratio=0.5, output=tmp_path / "out.onnx", **given)
    assert [(group.units, group.cut) for group in result.report.groups] == [(16, 8)]
    found = onnxprune.validate(tmp_path / "in.onnx", tmp_path / "out.onnx", **given)
    assert found.exactness.exact
    assert (found.task is not None) == data


def folded() -> onnx.ModelProto:
    """Returns a net whose batch holds four frames of each film, which swap some of their channels by positions."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        folded (float[N, 5] x) => (float[N, 3] y)
        <float[5, 12] w0, float[3, 3] w1, float[12, 3] w2, int64[3] films = {-1, 4, 12}, int64[2] flat = {-1, 12},
         int64 zero = {0}, int64 one = {1}, int64 last = {2}, int64[1] first = {0}, int64[1] begin = {3},
         int64[1] end = {6}, int64[1] axis = {2}, int64[1] column = {1}>
        { h = MatMul (x, w0)
          frames = Reshape (h, films)
          part = Slice (frames, begin, end, axis)
          mixed = MatMul (part, w1)
          front = Transpose <perm = [2, 0, 1]> (frames)
          new = Transpose <perm = [2, 0, 1]> (mixed)
          size = Shape (frames)
          wide = Gather (size, last)
          every = Range (zero, wide, one)
          rows = Slice (every, begin, end, first)
          places = Unsqueeze (rows, column)
          written = ScatterND (front, places, new)
          back = Transpose <perm = [1, 2, 0]> (written)
          all = Reshape (back, flat)
          y = MatMul (all, w2) }""")
    weights = [tensor("w0", 5, 12), tensor("w1", 3, 3, seed=1), tensor("w2", 12, 3, seed=2)]
    model.graph.initializer.extend(weights)
    return model


@pytest.mark.parametrize("data", [True, False])
def test_a_batch_that_must_be_a_multiple_is_one_and_stays_open(data: bool, tmp_path: Path) -> None:
    onnx.save(folded(), tmp_path / "in.onnx")
    given = {"calibration": {"x": np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)}} if data else {}
    result = onnxprune.prune(tmp_path / "in.onnx", ratio=0.5, output=tmp_path / "out.onnx", **given)
    assert [(group.units, group.cut) for group in result.report.groups] == [(3, 1), (9, 4)]
    assert result.report.validation is not None and len(result.report.validation.sizes) == 2
    cut = ort.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    assert cut.run(None, {"x": np.zeros((12, 5), np.float32)})[0].shape == (12, 3)


def test_what_is_computed_from_a_cut_size_need_not_be_small_enough_to_be_known() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        wide (float[N, 5] x) => (float[N, 200] y)
        <float[5, 512] w, float[1, 512] row, int64[1] rows = {200}>
        { h = MatMul (x, w)
          width = Shape <start = 1, end = 2> (h)
          size = Concat <axis = 0> (rows, width)
          table = Expand (row, size)
          turned = Transpose (table)
          y = MatMul (h, turned) }""")
    model.graph.initializer.extend([tensor("w", 5, 512), tensor("row", 1, 512, seed=1)])
    result = onnxprune.prune(model, ratio=0.5, criterion="l1", compensate="none")
    assert [(group.units, group.cut) for group in result.report.groups] == [(512, 256)]
