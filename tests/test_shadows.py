"""Constants of bodies that are named like values around them."""

from __future__ import annotations

import hostile
import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from onnxprune.graph.model import load
from onnxprune.graph.runtime import open_session, run


def test_a_nested_body_reads_the_constant_of_the_body_around_it() -> None:
    inner = helper.make_graph([helper.make_node("Add", ["h", "b1"], ["i"])], "i", [], [_unknown("i")])
    other = helper.make_graph([helper.make_node("Neg", ["h"], ["n"])], "n", [], [_unknown("n")])
    model = hostile.shadowing_constant()
    body = _branch(model)
    body.node.append(helper.make_node("If", ["true"], ["deep"], then_branch=inner, else_branch=other))
    body.node.append(helper.make_node("Sub", ["deep", "t"], ["out"]))
    body.output[0].CopyFrom(_unknown("out"))
    loaded = load(model).model
    names = [name for graph in (loaded.graph, *loaded.graph.subgraphs()) for name in graph.initializers]
    assert len(names) == len(set(names))
    x = {"x": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)}
    before = run(open_session(model, ["CPUExecutionProvider"]), ["y"], x)[0]
    after = run(open_session(ir.to_proto(loaded), ["CPUExecutionProvider"]), ["y"], x)[0]
    np.testing.assert_array_equal(before, after)
    assert np.abs(before - _with_outer_bias(model, x)).max() > 1e-3


def _unknown(name: str) -> onnx.ValueInfoProto:
    """Returns a value of any shape."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def _branch(model: onnx.ModelProto) -> onnx.GraphProto:
    """Returns the branch that holds the constant."""
    return next(a.g for a in model.graph.node[1].attribute if a.name == "then_branch")


def _with_outer_bias(model: onnx.ModelProto, x: dict[str, np.ndarray]) -> np.ndarray:
    """Returns what the model would give if bodies read the constant outside."""
    _branch(model).ClearField("initializer")
    return np.asarray(run(open_session(model, ["CPUExecutionProvider"]), ["y"], x)[0])
