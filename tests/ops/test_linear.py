"""Linear nodes as matrices: patches times the matrix are what the runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.engine.coupling import couple
from onnxprune.engine.layers import Layer, find_layers
from onnxprune.graph.model import load
from onnxprune.graph.runtime import provider_names
from onnxprune.graph.trace import trace
from onnxprune.ops.linear import LinearConv, LinearProduct

MS = "com.microsoft"


def network(node: onnx.NodeProto, x: tuple[int, ...], **weights: np.ndarray) -> onnx.ModelProto:
    """Returns one node between a graph input and output; its domain may be onnxruntime's own."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n" if k == 0 else n for k, n in enumerate(x)])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def seen(model: onnx.ModelProto, x: np.ndarray) -> tuple[list[Layer], list[np.ndarray]]:
    """Returns the layers of a model, and its outputs."""
    source = load(model).model
    layers = find_layers(couple(source, trace(source, seed=0, providers=provider_names(()))), direct=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return layers, [np.asarray(y) for y in session.run(None, {"x": x})]


def product(layer: Layer, x: np.ndarray, shape: tuple[int, ...], weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what the matrix makes of the patches at some places, and the places."""
    places = layer.view.places(shape, 0.6, np.random.default_rng(0))
    matrix, patches = layer.view.matrix(weight), layer.view.patches(x, places)
    np.testing.assert_array_equal(layer.view.restore(matrix), weight)
    some_are_taken_from_all(layer, x, places, patches)
    return patches @ matrix.transpose(0, 2, 1), places


def some_are_taken_from_all(layer: Layer, x: np.ndarray, places: np.ndarray, patches: np.ndarray) -> None:
    """Passes if the patches at a few features, other ones in each group, are those at all features, less the rest."""
    some = np.stack([np.arange(g % 2, patches.shape[2], 2)[:1] for g in range(len(patches))])
    found = layer.view.patches(x, places, some)
    np.testing.assert_array_equal(found, np.take_along_axis(patches, some[:, None, :], 2))


LAYERS: list[tuple[str, dict[str, Any], tuple[int, ...], tuple[int, ...]]] = [
    ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1]}, (2, 4, 7, 6), (6, 4, 3, 3)),
    ("Conv", {"group": 2, "strides": [2, 1], "auto_pad": "SAME_UPPER"}, (2, 4, 7, 6), (6, 2, 3, 2)),
    ("Conv", {"group": 4}, (3, 4, 9), (4, 1, 3)),
    ("ConvTranspose", {}, (2, 4, 5, 4), (4, 6, 3, 2)),
    ("ConvTranspose", {"strides": [2, 3], "pads": [1, 0, 2, 1], "output_padding": [1, 2]}, (2, 4, 5, 4), (4, 6, 3, 4)),
    ("ConvTranspose", {"group": 2, "dilations": [2, 1], "strides": [2, 1]}, (2, 4, 5, 4), (4, 3, 3, 2)),
    ("MatMul", {}, (3, 5, 4), (4, 6)),
    ("MatMul", {}, (3, 2, 5, 4), (2, 4, 6)),
    ("MatMul", {}, (5, 4), (3, 4, 6)),
    ("Gemm", {"transB": 1}, (3, 4), (6, 4)),
    ("Einsum", {"equation": "...k,kn->...n"}, (3, 5, 4), (4, 6)),
    ("Einsum", {"equation": "nck,ock->nko"}, (3, 4, 5), (6, 4, 5)),
    ("Einsum", {"equation": "btef,efc->btec"}, (3, 2, 5, 4), (5, 4, 6)),
    ("FusedMatMul", {"transB": 1}, (3, 5, 4), (6, 4)),
]


@pytest.mark.parametrize(("op", "attributes", "x", "w"), LAYERS)
def test_patches_times_the_matrix_are_the_output(
    op: str, attributes: dict[str, Any], x: tuple[int, ...], w: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(1)
    weight, fed = rng.standard_normal(w).astype(np.float32), rng.standard_normal(x).astype(np.float32)
    node = helper.make_node(op, ["x", "w"], ["y"], "it", domain=MS if op.startswith("Fused") else "", **attributes)
    layers, (y,) = seen(network(node, x, w=weight), fed)
    if len(w) > len(x):
        assert not layers  # an output for each index of two axes
        return
    (layer,) = layers
    found, places = product(layer, fed, y.shape, weight)
    np.testing.assert_allclose(found, layer.view.outputs(y, places), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "attributes", "x", "w"),
    [row for row in LAYERS if row[0] in ("Conv", "Gemm") or row[2:] == ((3, 5, 4), (4, 6))],
)
def test_windows_of_all_outputs_and_the_way_back(
    op: str, attributes: dict[str, Any], x: tuple[int, ...], w: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(5)
    weight, fed, other = (rng.standard_normal(shape).astype(np.float32) for shape in (w, x, x))
    layers, (y,) = seen(network(helper.make_node(op, ["x", "w"], ["y"], **attributes), x, w=weight), fed)
    for layer in layers:
        view = layer.view
        if not isinstance(view, LinearConv | LinearProduct):
            assert op == "Einsum"
            continue
        made = view.matrix(weight) @ view.columns(fed)
        np.testing.assert_allclose(view.laid(made, fed.shape), y, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(made, view.stacked(y), rtol=1e-4, atol=1e-4)
        columns = view.columns(other)
        counted = rng.standard_normal(columns.shape).astype(np.float32)
        back = view.spread(counted, other.shape)  # the transpose of `columns`: both ways tell the same product
        np.testing.assert_allclose((back * other).sum(), (counted * columns).sum(), rtol=1e-3)


@pytest.mark.parametrize("op", ["FusedConv", "FusedGemm"])
def test_fused_activations_are_left_out(op: str) -> None:
    rng = np.random.default_rng(2)
    conv = op == "FusedConv"
    x, w = ((2, 4, 6, 6), (5, 4, 3, 3)) if conv else ((7, 4), (4, 5))
    weight, fed = rng.standard_normal(w).astype(np.float32), rng.standard_normal(x).astype(np.float32)
    node = helper.make_node(op, ["x", "w"], ["y"], "it", domain=MS, activation="Relu")
    (layer,), (y,) = seen(network(node, x, w=weight), fed)
    assert layer.direct
    found, places = product(layer, fed, y.shape, weight)
    np.testing.assert_allclose(np.maximum(found, 0), layer.view.outputs(y, places), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_a_cell_is_the_sum_of_its_two_products(direction: str) -> None:
    rng = np.random.default_rng(3)
    many = 2 if direction == "bidirectional" else 1
    w, r = rng.standard_normal((many, 3, 4)) * 0.5, rng.standard_normal((many, 3, 3)) * 0.5
    x = rng.standard_normal((5, 2, 4)).astype(np.float32)
    node = helper.make_node("RNN", ["x", "w", "r"], ["y"], "it", hidden_size=3, direction=direction)
    layers, (y,) = seen(network(node, x.shape, w=w, r=r), x)
    (inputs, state) = layers
    assert not inputs.recurs and state.recurs
    every = np.arange(10)
    read, known = inputs.view.patches(x, every), state.view.patches(y, every)
    some_are_taken_from_all(inputs, x, every, read)
    some_are_taken_from_all(state, y, every, known)
    fed, told = read @ inputs.view.matrix(w).transpose(0, 2, 1), known @ state.view.matrix(r).transpose(0, 2, 1)
    for d in range(many):
        step = fed[d].reshape(5, 2, 3)
        before = told[d].reshape(5, 2, 3)
        wanted = np.arctanh(y[:, d])
        if d == 0:
            np.testing.assert_allclose(step[1:] + before[:-1], wanted[1:], atol=1e-4)
        else:
            np.testing.assert_allclose(step[:-1] + before[1:], wanted[:-1], atol=1e-4)


def test_the_gate_behind_a_reset_keeps_its_weights() -> None:
    rng = np.random.default_rng(4)
    w, r, x = rng.standard_normal((1, 9, 4)), rng.standard_normal((1, 9, 3)), rng.standard_normal((5, 2, 4))
    for reset in (0, 1):
        node = helper.make_node("GRU", ["x", "w", "r"], ["y"], "it", hidden_size=3, linear_before_reset=reset)
        layers, _ = seen(network(node, x.shape, w=w, r=r), x.astype(np.float32))
        assert layers[1].fixed.sum() == (0 if reset else 3)
        assert not layers[0].fixed.any()
