"""Weights that are computed from constants: what can't go before they are computed is left out behind."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hostile import floats, model_of, tensor
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.engine.coupling import couple
from onnxprune.engine.cut import cut
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.sizes import rewrite_sizes
from onnxprune.engine.units import find_units
from onnxprune.graph.trace import trace
from onnxprune.testing import check_model


def standardised(w: str, by_batch_norm: bool) -> list[onnx.NodeProto]:
    """Returns the nodes that standardise a weight over everything but its outputs, as two libraries write it."""
    node = helper.make_node
    if by_batch_norm:
        given = [f"{w}_rows", f"{w}_gain", f"{w}_zeros", f"{w}_zeros", f"{w}_ones"]
        return [
            node("Reshape", [w, f"{w}_flat"], [f"{w}_rows"]),
            node("BatchNormalization", given, [f"{w}_even", f"{w}_mean", f"{w}_variance"], training_mode=1),
            node("Shape", [w], [f"{w}_shape"]),
            node("Reshape", [f"{w}_even", f"{w}_shape"], [f"{w}_ready"]),
        ]
    return [
        node("ReduceMean", [w], [f"{w}_mean"], axes=[1, 2, 3]),
        node("Sub", [w, f"{w}_mean"], [f"{w}_apart"]),
        node("Mul", [f"{w}_apart", f"{w}_apart"], [f"{w}_squared"]),
        node("ReduceMean", [f"{w}_squared"], [f"{w}_variance"], axes=[1, 2, 3]),
        node("Add", [f"{w}_variance", "epsilon"], [f"{w}_positive"]),
        node("Sqrt", [f"{w}_positive"], [f"{w}_deviation"]),
        node("Div", [f"{w}_apart", f"{w}_deviation"], [f"{w}_ready"]),
    ]


def net(by_batch_norm: bool, readers: int = 1) -> onnx.ModelProto:
    """Returns convolutions with standardised weights, the second of which may be read twice."""
    rng = np.random.default_rng(0)
    shapes = {"a": (6, 3, 3, 3), "b": (8, 6, 1, 1), "c": (4, 8, 3, 3)}
    constants = {"epsilon": np.array(1e-5, np.float32)}
    nodes = []
    for name, shape in shapes.items():
        constants[name] = rng.normal(size=shape).astype(np.float32)
        nodes += standardised(name, by_batch_norm)
        if by_batch_norm:
            constants[f"{name}_flat"] = np.array([1, shape[0], -1], np.int64)
            constants[f"{name}_gain"] = rng.uniform(0.5, 2, shape[0]).astype(np.float32)
            constants[f"{name}_zeros"] = np.zeros(shape[0], np.float32)
            constants[f"{name}_ones"] = np.ones(shape[0], np.float32)
    nodes += [
        helper.make_node("Conv", ["x", "a_ready"], ["p"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["p"], ["q"]),
    ]
    for k in range(readers):
        nodes.append(helper.make_node("Conv", ["q" if k == 0 else "q_other", "b_ready"], [f"r{k}"]))
    if readers > 1:
        nodes.insert(-1, helper.make_node("Tanh", ["q"], ["q_other"]))
        nodes.append(helper.make_node("Add", ["r0", "r1"], ["r"]))
    else:
        nodes.append(helper.make_node("Relu", ["r0"], ["r"]))
    nodes.append(helper.make_node("Conv", ["r", "c_ready"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 5, 5])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 4, 3, 3])],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("by_batch_norm", [False, True])
def test_inputs_and_outputs_of_standardised_convolutions_go(by_batch_norm: bool) -> None:
    outcome = check_model(net(by_batch_norm))
    assert outcome.wrong == ()
    assert outcome.units == (6, 8), outcome.frozen
    assert outcome.cuts


def test_readers_of_one_weight_share_what_is_left_of_it() -> None:
    outcome = check_model(net(False, readers=2))
    assert outcome.wrong == ()
    assert outcome.units == (6, 8), outcome.frozen


def test_a_weight_that_loses_no_input_is_left_as_it_is() -> None:
    graph = ir.from_proto(net(False))
    coupling = couple(graph, trace(graph))
    units = find_units(coupling)
    group = next(g for g in units.groups if len(g) == 6)
    cutting = Cutting(units, group.units[:2])
    small = cut(cutting, rewrite_sizes(cutting))
    gathers = [n for n in small.graph if n.op_type == "Gather"]
    assert [n.inputs[0].name for n in gathers if n.inputs[0] is not None] == ["b_ready"]
    assert small.graph.initializers["b"].shape == [8, 6, 1, 1]
    assert small.graph.initializers["a"].shape == [4, 3, 3, 3]


def snake(how: str, frequencies: np.ndarray) -> onnx.ModelProto:
    """Returns two linear layers with x + sin(a x)^2 / a between them, written in one of several ways."""
    node = helper.make_node
    divided = {
        "shared": [node("Div", ["squared", "a"], ["part"])],
        "copied": [node("Identity", ["a"], ["b"]), node("Div", ["squared", "b"], ["part"])],
        "moved": [node("Add", ["a", "epsilon"], ["b"]), node("Div", ["squared", "b"], ["part"])],
        "reciprocal": [
            node("Identity", ["a"], ["b"]),
            node("Reciprocal", ["b"], ["c"]),
            node("Mul", ["squared", "c"], ["part"]),
        ],
    }
    nodes = [
        node("MatMul", ["x", "first"], ["h"]),
        node("Mul", ["h", "a"], ["turned"]),
        node("Sin", ["turned"], ["wave"]),
        node("Mul", ["wave", "wave"], ["squared"]),
        *divided[how],
        node("Add", ["h", "part"], ["sum"]),
        node("MatMul", ["sum", "second"], ["y"]),
    ]
    weights = [tensor("first", 5, 12), tensor("second", 12, 3, seed=1)]
    weights += [numpy_helper.from_array(np.float32(v), name) for name, v in (("a", frequencies), ("epsilon", 0.1))]
    return model_of(nodes, weights, inputs=[floats("x", "N", 5)], outputs=[floats("y", "N", 3)])


@pytest.mark.parametrize("how", ["shared", "copied", "moved", "reciprocal"])
def test_a_divisor_made_of_constants_stays_whole(how: str) -> None:
    outcome = check_model(snake(how, np.linspace(0.5, 3, 12)))
    assert outcome.wrong == ()
    assert outcome.units == (12,), outcome.frozen
    assert outcome.cuts


def test_a_divisor_with_a_zero_in_it_is_left_alone() -> None:
    outcome = check_model(snake("shared", np.arange(12)))
    assert outcome.units == (), outcome.units


@pytest.mark.parametrize("model", [net(False), net(False, readers=2), snake("shared", np.linspace(0.5, 3, 12))])
def test_a_file_that_picks_what_is_left_is_recognised(model: onnx.ModelProto) -> None:
    result = onnxprune.prune(model, ratio=0.5, criterion="l1", compensate="none")
    assert any(node.op_type == "Gather" for node in result.model.graph)
    found = onnxprune.validate(model, ir.to_proto(result.model))
    assert found.exactness is not None and found.exactness.exact, found.exactness
