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


def divided(by: str) -> onnx.ModelProto:
    """Returns convolutions, the second of which has its weight divided by a norm, as torch.onnx leaves it in the graph.

    Args:
        by: `rows`, the norm of each output's weights (weight normalisation), or `all`, one norm (spectral).
    """
    node = helper.make_node
    rows = [
        node("ReduceL2", ["b"], ["norm"], axes=[1, 2, 3]),
        node("Div", ["gain", "norm"], ["level"]),
        node("Mul", ["b", "level"], ["ready"]),
    ]
    whole = [
        node("Reshape", ["b", "flat"], ["matrix"]),
        node("MatMul", ["matrix", "right"], ["half"]),
        node("MatMul", ["left", "half"], ["norm"]),
        node("Div", ["b", "norm"], ["ready"]),
    ]
    nodes = [
        node("Conv", ["x", "a"], ["p"]),
        node("Relu", ["p"], ["q"]),
        *(rows if by == "rows" else whole),
        node("Conv", ["q", "ready"], ["r"]),
        node("Relu", ["r"], ["s"]),
        node("Conv", ["s", "c"], ["y"]),
    ]
    vectors = {"gain": (8, 1, 1, 1)} if by == "rows" else {"right": (54,), "left": (8,)}
    weights = [tensor("a", 6, 3, 3, 3), tensor("b", 8, 6, 3, 3, seed=1), tensor("c", 4, 8, 1, 1, seed=2)]
    weights += [tensor(name, *shape, seed=3 + k) for k, (name, shape) in enumerate(vectors.items())]
    if by == "all":
        weights.append(numpy_helper.from_array(np.array([8, -1], np.int64), "flat"))
    return model_of(nodes, weights, inputs=[floats("x", "N", 3, 9, 9)], outputs=[floats("y", "N", 4, 5, 5)])


@pytest.mark.parametrize("by", ["rows", "all"])
def test_a_norm_of_a_whole_weight_becomes_a_number_and_the_weight_is_held_once(by: str) -> None:
    model = divided(by)
    result = onnxprune.prune(model, ratio=0.5, criterion="l1", compensate="none")
    assert [(group.units, group.cut) for group in result.report.groups] == [(6, 3), (8, 4)]
    assert result.report.validation is not None and result.report.validation.error is not None
    held = {name: list(v.shape) for name, v in result.model.graph.initializers.items() if v.shape is not None}
    assert held.pop("a") == [3, 3, 3, 3] and held.pop("b") == [4, 3, 3, 3] and held.pop("c") == [4, 4, 1, 1]
    assert max(int(np.prod(shape)) for shape in held.values()) <= 8, held
    found = onnxprune.validate(model, ir.to_proto(result.model))
    assert found.exactness is not None and found.exactness.exact, found.exactness


@pytest.mark.parametrize("by", ["rows", "all"])
def test_what_computes_a_norm_stays_where_nothing_is_cut(by: str) -> None:
    graph = ir.from_proto(divided(by))
    cutting = Cutting(find_units(couple(graph, trace(graph))), np.zeros(0, np.int64))
    small = cut(cutting, rewrite_sizes(cutting))
    assert [n.op_type for n in small.graph] == [n.op_type for n in graph.graph]
    assert small.graph.initializers.keys() == graph.graph.initializers.keys()


def both_ways(kind: str) -> onnx.ModelProto:
    """Returns a layer and a bidirectional cell whose weights are reordered and put together in the graph."""
    node, gates = helper.make_node, {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"])]
    weights = [tensor("w", 5, 6), tensor("v", 16, 3, seed=1)]
    for k, (name, width) in enumerate({"in": 6, "back": 8}.items()):
        for way in ("there", "again"):
            whole = f"{name}_{way}"
            weights.append(tensor(whole, 8 * gates, width, seed=2 + 2 * k + (way == "again")))
            parts = [f"{whole}_{g}" for g in range(gates)]
            nodes += [node("Split", [whole], parts, axis=0), node("Concat", parts[::-1], [f"{whole}_turned"], axis=0)]
            nodes.append(node("Unsqueeze", [f"{whole}_turned", "first"], [f"{whole}_one"]))
        nodes.append(node("Concat", [f"{name}_there_one", f"{name}_again_one"], [f"{name}_both"], axis=0))
    cell = node(kind, ["r", "in_both", "back_both"], ["turns"], hidden_size=8, direction="bidirectional")
    turn = node("Transpose", ["turns"], ["beside"], perm=[0, 2, 1, 3])
    nodes += [cell, turn, node("Reshape", ["beside", "flat"], ["z"]), node("MatMul", ["z", "v"], ["y"])]
    weights += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("first", [0]), ("flat", [0, 0, -1]))]
    return model_of(nodes, weights, inputs=[floats("x", "T", "N", 5)], outputs=[floats("y", "T", "N", 3)])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_cell_of_two_directions_with_weights_put_together_in_the_graph_loses_units_of_both(kind: str) -> None:
    outcome = check_model(both_ways(kind))
    assert outcome.wrong == ()
    assert sorted(outcome.units) == [6, 8], outcome.frozen
    assert outcome.cuts
