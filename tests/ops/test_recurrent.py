"""Recurrent cells: 4 inputs, 5 hidden units."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hostile import floats, model_of, tensor
from onnx import helper
from rows import prove, table

import onnxprune
from onnxprune.testing import Case, Consumer, Data, Feed, Weight

X = Data((7, 0, 4), (2,))
STATE = Data((1, 0, 5), (2,))
H = {"hidden_size": 5}
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
MS, DYNAMIC = "com.microsoft", "DynamicQuantizeLSTM"
OUTPUTS = {"RNN": 2, "GRU": 2, "LSTM": 3}


def weights(op: str, directions: int = 1, *, bias: bool = True) -> tuple[Weight | None, ...]:
    g = GATES[op]
    b = Weight((directions, 10 * g)) if bias else None
    return Weight((directions, 5 * g, 4)), Weight((directions, 5 * g, 5)), b


def dynamic(directions: int, *, each: bool) -> tuple[Any, ...]:
    """Returns weights of eight bits with their scales and zero points, for each direction or for each column of it."""
    shape = (directions, 20) if each else (directions,)
    numbers = (np.full(shape, 0.02, np.float32), np.zeros(shape, np.int8))
    held = Weight((directions, 4, 20), dtype="int8"), Weight((directions, 5, 20), dtype="int8")
    return *held, Weight((directions, 40)), None, None, None, None, *numbers, *numbers


def both(op: str) -> tuple[Weight | None, ...]:
    return weights(op, 2)


ROWS = [
    *(Case(op, (X, *weights(op)), H, 14, outputs=OUTPUTS[op], units=(4, 5)) for op in GATES),
    *(Case(op, (X, *weights(op, bias=False)), H, 7, units=(4, 5)) for op in GATES),
    *(Case(op, (X, *weights(op)), {**H, "direction": "reverse"}, units=(4, 5)) for op in GATES),
    *(
        Case(op, (X, *both(op)), {**H, "direction": "bidirectional"}, outputs=OUTPUTS[op], units=(4, 5), why="in both")
        for op in GATES
    ),
    *(Case(op, (X, *weights(op), None, STATE), H, outputs=2, units=(4, 5)) for op in GATES),
    *(Case(op, (X, *weights(op), Feed((0,), 8, 1, "int32")), H, units=(4, 5), why="lengths") for op in GATES),
    *(Case(op, (X, *weights(op)), {**H, "clip": 0.7}, units=(4, 5)) for op in GATES),
    Case("LSTM", (X, *weights("LSTM"), None, STATE, STATE), H, outputs=3, units=(4, 5)),
    Case(DYNAMIC, (X, *dynamic(1, each=False)), H, 17, MS, outputs=3, units=(4, 5)),
    Case(
        DYNAMIC, (X, *dynamic(2, each=True)), {**H, "direction": "bidirectional"}, 17, MS, units=(4, 5), why="columns"
    ),
    Case(
        DYNAMIC,
        (Data((7, 0, 4), (2,), ("Sigmoid",)), *dynamic(1, each=True)),
        H,
        17,
        MS,
        units=(5,),
        why="what enters counts for the range",
    ),
    Case(DYNAMIC, (X, *dynamic(1, each=False)), {**H, "activations": ["Sigmoid"] * 3}, 17, MS, units=(), why="f(0)"),
    Case("LSTM", (X, *weights("LSTM"), None, None, None, Weight((1, 15))), H, units=(4, 5), why="peepholes"),
    Case(
        "LSTM",
        (X, *weights("LSTM"), None, STATE, Data((1, 0, 5), (2,), ("Sigmoid",))),
        H,
        outputs=3,
        units=(4, 5),
        summed=(4,),
        why="a cell state that is not zero",
    ),
    Case("LSTM", (X, *weights("LSTM"), None, Data((1, 0, 5), ()), None), H, units=(4,), why="a state from outside"),
    Case("GRU", (X, *weights("GRU")), {**H, "linear_before_reset": 1}, units=(4, 5)),
    Case("RNN", (X, *weights("RNN")), {**H, "activations": ["Relu"]}, units=(4, 5)),
    Case("RNN", (X, *weights("RNN")), {**H, "activations": ["Sigmoid"]}, units=(4, 5), summed=(4,), why="f(0) = 0.5"),
    Case(
        "RNN",
        (X, *weights("RNN")),
        {**H, "activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.25]},
        units=(4, 5),
        summed=(4,),
        why="f(0) = 0.25",
    ),
    Case(
        "GRU",
        (X, *both("GRU")),
        {**H, "direction": "bidirectional", "activations": ["Sigmoid", "Tanh", "Sigmoid", "Softsign"]},
        units=(4, 5),
    ),
    Case("GRU", (Data((7, 0, 4), ()), *weights("GRU")), H, units=(5,), why="reads a graph input"),
    Case("LSTM", (Data((7, 0, 4), (0,)), *weights("LSTM")), H, units=(5,), why="runs over axis 0"),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)


@pytest.mark.parametrize("op", GATES)
def test_a_single_hidden_unit_stays(op: str) -> None:
    g = GATES[op]
    case = Case(op, (X, Weight((1, g, 4)), Weight((1, g, 1))), {"hidden_size": 1}, units=())
    prove(case, "matmul")


@pytest.mark.parametrize("computed", [False, True])
def test_a_direction_never_goes(computed: bool) -> None:
    """Where all hidden units go together, what is left to choose from would be the two directions."""
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=6, direction="bidirectional"),
        helper.make_node("Split", ["y", "parts"], ["first", "rest"], axis=3),
        helper.make_node("Concat", ["rest", "first"], ["turned"], axis=3),
        helper.make_node("Add", ["y", "turned"], ["sum"]),
        helper.make_node("MatMul", ["sum", "v"], ["mixed"]),
        helper.make_node("ReduceSum", ["mixed", "axes"], ["z"], keepdims=0),
    ]
    weights = [tensor("r", 2, 24, 6, seed=1), tensor("v", 6, 5, seed=2)]
    weights += [integers("parts", 1, 5), integers("axes", 1)]
    if computed:
        nodes.insert(0, helper.make_node("Concat", ["forth", "back"], ["w"], axis=0))
        weights += [tensor("forth", 1, 24, 4, seed=3), tensor("back", 1, 24, 4, seed=4)]
    else:
        weights.append(tensor("w", 2, 24, 4))
    model = model_of(nodes, weights, inputs=[floats("x", 7, 2, 4)], outputs=[floats("z", 7, 2, 5)])
    with pytest.raises(onnxprune.NothingToPruneError):
        onnxprune.prune(model, ratio=0.5, criterion="l1", compensate="none")


def integers(name: str, *values: int) -> onnx.TensorProto:
    return helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values)


def stacked(op: str, fill: float = 0.0, *, shown: bool = False, alone: bool = False) -> onnx.ModelProto:
    """Returns two cells of 6 units, one behind the other, that start from parts of one tensor, as PyTorch writes it."""
    kept = [f"last{k}" for k in range(OUTPUTS[op] - 1)]
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["n"]),
        helper.make_node("Concat", ["two", "n", "six"], ["sizes"], axis=0),
        helper.make_node("ConstantOfShape", ["sizes"], ["zeros"], value=helper.make_tensor("value", 1, [1], [fill])),
        helper.make_node("Slice", ["zeros", "none", "one", "none"], ["first"]),
        helper.make_node("Split", ["zeros"], ["other", "second"], axis=0),
    ]
    x = "x"
    for k, state in ((1, "first"), (2, "second")):
        if alone and k == 2:
            break
        states = [state] * (OUTPUTS[op] - 1)
        nodes += [
            helper.make_node(op, [x, f"w{k}", f"r{k}", f"b{k}", "", *states], [f"all{k}", *kept], hidden_size=6),
            helper.make_node("Squeeze", [f"all{k}", "one"], [f"y{k}"]),
        ]
        x, kept = f"y{k}", []
    nodes.append(helper.make_node("MatMul", [x, "v"], ["y"]))
    g = GATES[op]
    given = [tensor("v", 6, 3, seed=1), *(integers(n, k) for n, k in (("none", 0), ("one", 1), ("two", 2), ("six", 6)))]
    for k, features in ((1, 4), (2, 6)):
        shapes = {"w": (1, 6 * g, features), "r": (1, 6 * g, 6), "b": (1, 12 * g)}
        given += [tensor(f"{n}{k}", *shape, seed=k) for n, shape in shapes.items() if k == 1 or not alone]
    outputs = [floats("y", 7, "n", 3), *([floats("other", 1, "n", 6)] if shown else [])]
    return model_of(nodes, given, inputs=[floats("x", 7, "n", 4)], outputs=outputs)


@pytest.mark.parametrize("op", GATES)
def test_layers_that_start_from_the_same_zeros_are_cut_apart(op: str) -> None:
    model = stacked(op)
    result = onnxprune.prune(model, ratio=0.5, exclude=["w1"], criterion="l1", compensate="none")
    held = {name: value.shape for name, value in result.model.graph.initializers.items()}
    assert (held["w1"][1], held["w2"][1]) == (6 * GATES[op], 3 * GATES[op])
    both = onnxprune.prune(model, ratio=0.5, criterion="l1", compensate="none")
    held = {name: value.shape for name, value in both.model.graph.initializers.items()}
    assert (held["w1"][1], held["w2"][1]) == (3 * GATES[op], 3 * GATES[op])
    for found in (result, both):
        session = ort.InferenceSession(ir.to_proto(found.model).SerializeToString())
        assert session.run(None, {"x": np.zeros((7, 3, 4), np.float32)})[0].shape == (7, 3, 3)


@pytest.mark.parametrize("how", [{"shown": True}, {"fill": 0.5}])
def test_layers_that_start_from_anything_else_are_cut_alike(how: dict[str, Any]) -> None:
    with pytest.raises(onnxprune.NothingToPruneError):
        onnxprune.prune(stacked("LSTM", **how), ratio=0.5, exclude=["w1"], criterion="l1", compensate="none")


def test_zeros_of_one_layer_are_made_as_wide_as_it_is() -> None:
    model = stacked("LSTM", alone=True)
    result = onnxprune.prune(model, ratio=0.5, criterion="l1", compensate="none")
    assert [node.op_type for node in result.model.graph] == [node.op_type for node in model.graph.node]
