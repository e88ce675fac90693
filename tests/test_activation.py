"""What stands behind a layer and bends its outputs, and the refit toward what it makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.engine.activation import activation_behind
from onnxprune.engine.coupling import couple
from onnxprune.engine.layers import find_layers
from onnxprune.graph.runtime import provider_names
from onnxprune.graph.trace import trace
from onnxprune.refit import compensation

MODELS = Path(__file__).parent.parent / "models"
Node = tuple[str, str, str]

CONSTANTS = {
    "w": np.linspace(-1, 1, 6 * 4 * 9).reshape(6, 4, 3, 3),
    "one": np.array(1.0),
    "wide": np.ones((1, 1, 1, 1, 1)),
    "each": np.linspace(-0.5, 0.5, 6).reshape(6, 1, 1),
    "across": np.ones((1, 1, 1, 6)),
    "scale": np.array([1, -1, 2, 0.5, -2, 1]),
    "shift": np.linspace(-1, 1, 6),
    "var": np.ones(6),
    "step": np.array(0.1),
}


def used(nodes: list[onnx.NodeProto], given: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    """Returns the constants that nodes read."""
    read = {name for node in nodes for name in node.input}
    return [(name, v) for name, v in given.items() if name in read]


def model_of(
    layers: list[onnx.NodeProto], behind: list[Node], outputs: list[str], given: dict[str, np.ndarray]
) -> onnx.ModelProto:
    """Returns a model of x (n, 4, 6, 6): layers, one of which makes y (n, 6, 6, 6), and the nodes behind it."""
    nodes = [*layers, *(helper.make_node(op, ins.split(), [out], out) for op, ins, out in behind)]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in used(nodes, given)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def behind(nodes: list[Node], outputs: list[str]) -> list[str]:
    """Returns the names of the nodes that are found behind y."""
    layers = [helper.make_node("Conv", ["x", "w"], [name], name, pads=[1] * 4) for name in ("before", "y")]
    source = ir.from_proto(model_of(layers, nodes, outputs, CONSTANTS))
    coupling = couple(source, trace(source, seed=0, providers=provider_names(())))
    layer = next(x for x in find_layers(coupling) if x.output == "y")
    return [str(coupling.nodes[k].name) for k in activation_behind(coupling, layer)]


FOUND: dict[str, tuple[list[Node], list[str]]] = {
    "Relu": ([("Relu", "y", "a")], ["a"]),
    "turned": ([("Neg", "y", "n"), ("Relu", "n", "a")], ["a"]),
    "SiLU": ([("Sigmoid", "y", "s"), ("Mul", "s y", "a")], ["a"]),
    "normalised": ([("BatchNormalization", "y scale shift shift var", "n"), ("Relu", "n", "a")], ["a"]),
    "a branch": ([("Add", "before y", "sum"), ("Relu", "sum", "a")], ["a"]),
    "bias and slope": ([("Add", "y each", "s"), ("PRelu", "s each", "a")], ["a"]),
    "rounded": ([("QuantizeLinear", "y step", "q"), ("DequantizeLinear", "q step", "a")], ["a"]),
    "on and on": ([("Relu", "y", "r"), ("Mul", "r one", "m"), ("Tanh", "m", "a")], ["a"]),
}
NOT_FOUND: dict[str, tuple[list[Node], list[str]]] = {
    "nothing": ([], ["y"]),
    "straight": ([("Mul", "y each", "m"), ("Add", "m one", "a")], ["a"]),
    "read beside": ([("Relu", "y", "a"), ("GlobalAveragePool", "y", "g")], ["a", "g"]),
    "an output": ([("Relu", "y", "a")], ["a", "y"]),
    "along another axis": ([("Add", "y across", "b"), ("Relu", "b", "a")], ["a"]),
    "of higher rank": ([("Add", "y wide", "b"), ("Relu", "b", "a")], ["a"]),
    "a product of data": ([("Mul", "y before", "m"), ("Relu", "m", "a")], ["a"]),
    "over an axis": ([("Softmax", "y", "a")], ["a"]),
}


@pytest.mark.parametrize("form", FOUND)
def test_what_bends_outputs_is_found(form: str) -> None:
    nodes, outputs = FOUND[form]
    assert behind(nodes, outputs) == [name for _, _, name in nodes]


def test_nodes_behind_that_read_more_are_left_out() -> None:
    assert behind([("Relu", "y", "r"), ("MatMul", "r before", "m"), ("Relu", "m", "a")], ["a"]) == ["r"]


@pytest.mark.parametrize("form", NOT_FOUND)
def test_what_cannot_be_told_by_outputs_alone_is_no_activation(form: str) -> None:
    assert behind(*NOT_FOUND[form]) == []


def error(model: onnx.ModelProto | Path, data: dict[str, np.ndarray], test: np.ndarray, **options: Any) -> float:
    """Returns the relative squared error of a pruned model's outputs."""
    pruned = ir.to_proto(onnxprune.prune(model, calibration=data, validate=False, **options).model)
    (name,) = data
    found, dense = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {name: test})[0]
        for m in (pruned, onnx.load(model) if isinstance(model, Path) else model)
    )
    return float(np.square(found - dense).sum() / np.square(dense - dense.mean(0)).sum())


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets least squares have the last word."""
    monkeypatch.setattr(compensation, "toward_activation", lambda *given: given[4][:2])


def network(nodes: list[Node]) -> onnx.ModelProto:
    """Returns a net with 24 channels to cut, whose reader makes y (n, 6, 6, 6); nodes make the output `a` of it."""
    rng = np.random.default_rng(0)
    given = CONSTANTS | {"w0": rng.standard_normal((24, 4, 3, 3)) * 0.3, "w": rng.standard_normal((6, 24, 3, 3)) * 0.1}
    given |= {"wb": rng.standard_normal((6, 4, 1, 1)), "b": np.full(6, -1.0)}
    make = helper.make_node
    before = [make("Conv", ["x", "w0"], ["c"], pads=[1] * 4), make("Relu", ["c"], ["h"])]
    before += [make("Conv", ["x", "wb"], ["before"]), make("Conv", ["h", "w", "b"], ["y"], pads=[1] * 4)]
    return model_of(before, nodes, ["a"], given)


@pytest.mark.parametrize("form", FOUND)
def test_the_error_behind_an_activation_falls(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rng = network(FOUND[form][0]), np.random.default_rng(1)
    data, test = (rng.standard_normal((512, 4, 6, 6)).astype(np.float32) for _ in range(2))
    options: dict[str, Any] = {"ratio": 0.5, "include": ["w0"], "compensate": "lstsq"}
    found = error(model, {"x": data}, test, **options)
    without(monkeypatch)
    assert 0 < found < 0.998 * error(model, {"x": data}, test, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet", "mobilenet"])
def test_trained_networks_lose_less(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, test = MODELS / f"digits_{name}.onnx", np.load(MODELS / "digits_test.npz")["input"]
    data = dict(np.load(MODELS / "digits.npz"))
    found = error(model, data, test, ratio=0.5, compensate="lstsq")
    without(monkeypatch)
    assert found < error(model, data, test, ratio=0.5, compensate="lstsq")
