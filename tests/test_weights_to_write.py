"""Weights that are computed from constants become constants where a refit is to write them, and only there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hostile import floats, model_of, tensor
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.engine.computed import with_computed_weights

node = helper.make_node
X = np.random.default_rng(1).standard_normal((256, 3)).astype(np.float32)
NORM = [
    node("ReduceL2", ["w"], ["length"], axes=[1]),
    node("Div", ["w", "length"], ["even"]),
    node("Mul", ["even", "gain"], ["ready"]),
]
ADAPTER = [node("MatMul", ["down", "up"], ["more"]), node("Add", ["w", "more"], ["ready"])]
GIVEN = [tensor("first", 8, 3), tensor("w", 5, 8, seed=2), tensor("gain", 5, 1, seed=3)]
LOW = [tensor("down", 5, 2, seed=4), tensor("up", 2, 8, seed=5)]


def net(making: list[onnx.NodeProto], *more: onnx.TensorProto, last: str = "ready") -> onnx.ModelProto:
    """Returns eight neurons, which three inputs tell, and a layer whose weight these nodes make."""
    nodes = [
        *making,
        node("Gemm", ["x", "first"], ["h"], transB=1),
        node("Gemm", ["h", last], ["y"], transB=1),
    ]
    return model_of(nodes, [*GIVEN, *more], inputs=[floats("x", "N", 3)], outputs=[floats("y", "N", 5)])


def run(model: onnx.ModelProto | Path, x: np.ndarray = X) -> np.ndarray:
    given = model if isinstance(model, Path) else model.SerializeToString()
    return np.asarray(ort.InferenceSession(given, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0])


def held(model: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(with_computed_weights(ir.from_proto(model)))


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


@pytest.mark.parametrize(("making", "more"), [(NORM, []), (ADAPTER, LOW)])
def test_what_nodes_compute_stands_there_and_nothing_else_does(
    making: list[onnx.NodeProto], more: list[onnx.TensorProto]
) -> None:
    model = net(making, *more)
    found = held(model)
    assert operators(found) == {"Gemm": 2}
    made_of = {name for n in making for name in n.input} - {name for n in making for name in n.output}
    assert not made_of & {t.name for t in found.graph.initializer}
    np.testing.assert_allclose(run(found), run(model), rtol=1e-6)


@pytest.mark.parametrize(("making", "more"), [(NORM, []), (ADAPTER, LOW)])
def test_a_layer_with_a_computed_weight_makes_up_for_what_is_cut(
    making: list[onnx.NodeProto], more: list[onnx.TensorProto], tmp_path: Path
) -> None:
    source, out, plan = tmp_path / "source.onnx", tmp_path / "out.onnx", tmp_path / "plan.json"
    model = net(making, *more)
    onnx.save(model, source)
    error = {}
    for mode in ("none", "lstsq"):
        result = onnxprune.prune(source, ratio=0.5, compensate=mode, calibration={"x": X[:128]}, output=out)
        dense = run(model, X[128:])
        error[mode] = np.linalg.norm(run(out, X[128:]) - dense) / np.linalg.norm(dense)
        assert onnxprune.validate(source, out).exactness.exact
    assert error["none"] > 0.2
    assert error["lstsq"] < 0.01
    result.plan.save(plan)
    onnxprune.prune(source, apply=plan, calibration={"x": X[:128]}, output=tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == out.read_bytes()


def test_weights_are_computed_as_before_where_nothing_is_refitted(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    onnxprune.prune(net(NORM), ratio=0.5, criterion="l1", compensate="none", output=out)
    assert operators(onnx.load(out)) == operators(net(NORM)) - Counter(["ReduceL2"])  # which is of the whole weight


def others() -> dict[str, onnx.ModelProto]:
    """Returns models with weights that are better left alone."""
    wide = [node("Cast", ["half"], ["w32"], to=1), node("Tanh", ["w32"], ["ready"])]
    half = numpy_helper.from_array(np.ones((5, 8), np.float16), "half")
    drawn = [node("RandomNormalLike", ["w"], ["noise"]), node("Add", ["w", "noise"], ["ready"])]
    given = net(NORM)
    given.graph.input.append(floats("gain", 5, 1))
    shown = net(NORM)
    shown.graph.output.append(floats("ready", 5, 8))
    read = net([*NORM, node("Shape", ["ready"], ["sizes"]), node("Cast", ["sizes"], ["floats"], to=1)])
    read.graph.output.append(floats("floats", 2))
    old = net(NORM)
    old.ir_version = 3
    old.graph.input.extend(floats(t.name, *t.dims) for t in old.graph.initializer)
    return {
        "moved only": net([node("Identity", ["w"], ["ready"])]),
        "larger than what it is made of": net(wide, half),
        "random": net(drawn),
        "given when the model is run": given,
        "an output": shown,
        "read by nodes that compute": read,
        "of an old file": old,
        "already there": net([], last="w"),
    }


@pytest.mark.parametrize("why", others())
def test_other_weights_are_left_alone(why: str) -> None:
    model = ir.from_proto(others()[why])
    assert with_computed_weights(model) is model


def test_constants_of_nodes_and_of_branches_are_followed() -> None:
    model = net(NORM)
    gain = model.graph.initializer.pop()
    model.graph.node.insert(0, node("Constant", [], ["gain"], value=gain))
    branch = helper.make_graph([node("Neg", ["even"], ["z"])], "branch", [], [floats("z", 5, 8)])
    other = helper.make_graph([node("Identity", ["even"], ["z_other"])], "other", [], [floats("z_other", 5, 8)])
    found = held(model)
    assert operators(found) == {"Gemm": 2}
    model.graph.initializer.append(numpy_helper.from_array(np.array(False), "choice"))
    model.graph.node.append(node("If", ["choice"], ["seen"], then_branch=branch, else_branch=other))
    model.graph.output.append(floats("seen", 5, 8))
    found = held(model)
    assert operators(found) == {"Gemm": 2, "ReduceL2": 1, "Div": 1, "If": 1}
    np.testing.assert_allclose(run(found), run(model), rtol=1e-6)
