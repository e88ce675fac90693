"""Chains of layers that are refitted together: which there are, the slopes that lead on, and what they gain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.engine.coupling import Coupling, couple
from onnxprune.engine.frontier import Frontier, Spool
from onnxprune.engine.layers import find_layers
from onnxprune.graph.runtime import provider_names
from onnxprune.graph.trace import trace
from onnxprune.refit.chains import Chain, find_chains
from onnxprune.refit.descent import Weights, descend
from onnxprune.refit.gathering import Drawing, bias_of
from onnxprune.refit.joint import _Error
from onnxprune.refit.portions import portions

MODELS = Path(__file__).parent.parent / "models"
Node = tuple[str, str, str, dict[str, Any]]

PICTURE, TOKENS = (4, 9, 9), (5, 8)
AROUND: dict[str, Any] = {"pads": [1] * 4}

FORMS: dict[str, tuple[tuple[int, ...], list[Node], dict[str, tuple[int, ...]]]] = {
    "two convolutions": (
        PICTURE,
        [("Conv", "x a ab", "h", AROUND), ("Relu", "h", "r", {}), ("Conv", "r b bb", "y", {})],
        {"a": (16, 4, 3, 3), "ab": (16,), "b": (6, 16, 1, 1), "bb": (6,)},
    ),
    "three, one of them by channel": (
        PICTURE,
        [
            ("Conv", "x a", "h", {}),
            ("Relu", "h", "r", {}),
            ("Conv", "r d db", "s", AROUND | {"group": 16, "strides": [2, 2]}),
            ("HardSwish", "s", "t", {}),
            ("Conv", "t b", "y", {}),
        ],
        {"a": (16, 4, 1, 1), "d": (16, 1, 3, 3), "db": (16,), "b": (6, 16, 1, 1)},
    ),
    "in groups, with a branch and an activation": (
        PICTURE,
        [
            ("Conv", "x p", "k", {}),
            ("Conv", "k a ab", "h", AROUND | {"group": 2}),
            ("BatchNormalization", "h scale shift shift var", "n", {}),
            ("Relu", "n", "r", {}),
            ("Conv", "r b bb", "z", AROUND | {"dilations": [2, 1], "pads": [2, 1, 2, 1]}),
            ("Add", "z k", "s", {}),
            ("Relu", "s", "y", {}),
        ],
        {"p": (6, 4, 1, 1), "a": (12, 3, 3, 3), "ab": (12,), "b": (6, 12, 3, 3), "bb": (6,)}
        | {"scale": (12,), "shift": (12,), "var": (12,)},
    ),
    "products with biases behind": (
        TOKENS,
        [
            ("MatMul", "x a", "h", {}),
            ("Add", "h ab", "s", {}),
            ("Gelu", "s", "r", {}),
            ("MatMul", "r b", "z", {}),
            ("Add", "bb z", "y", {}),
        ],
        {"a": (8, 24), "ab": (24,), "b": (24, 6), "bb": (6,)},
    ),
    "values that attention mixes": (
        TOKENS,
        [
            ("Constant", "", "heads", {"value_ints": [0, 0, 3, 2, 6]}),
            ("Constant", "", "third", {"value_int": 2}),
            ("Constant", "", "twelve", {"value_ints": [12]}),
            ("Shape", "x", "tokens", {"start": 1, "end": 2}),
            ("MatMul", "x a", "p", {}),
            ("Add", "p ab", "q", {}),
            ("Reshape", "q heads", "r", {}),
            ("Transpose", "r", "s", {"perm": [2, 0, 3, 1, 4]}),
            ("Gather", "s third", "v", {}),
            ("MatMul", "x k", "m", {}),
            ("Transpose", "x", "n", {"perm": [0, 2, 1]}),
            ("MatMul", "m n", "u", {}),
            ("Constant", "", "one", {"value_ints": [1]}),
            ("Unsqueeze", "u one", "l", {}),
            ("Softmax", "l", "w", {}),
            ("MatMul", "w v", "h", {}),
            ("Transpose", "h", "i", {"perm": [0, 2, 1, 3]}),
            ("Shape", "i", "batch", {"end": 1}),
            ("Concat", "batch tokens twelve", "wide", {"axis": 0}),
            ("Reshape", "i wide", "j", {}),
            ("MatMul", "j b", "z", {}),
            ("Add", "z x", "y", {}),
        ],
        {"a": (8, 36), "ab": (36,), "k": (8, 8), "b": (12, 8)},
    ),
    "values that several heads share, of channels first": (
        (4, 3, 3),
        [
            ("Constant", "", "few", {"value_ints": [0, 2, 1, 8, 9]}),
            ("Constant", "", "many", {"value_ints": [1, 1, 3, 1, 1]}),
            ("Constant", "", "flat", {"value_ints": [0, 48, 3, 3]}),
            ("Constant", "", "lines", {"value_ints": [0, 1, 1, 4, 9]}),
            ("Conv", "x a ab", "v", {}),
            ("Reshape", "v few", "t", {}),
            ("Tile", "t many", "r", {}),
            ("Reshape", "x lines", "q", {}),
            ("Transpose", "q", "k", {"perm": [0, 1, 2, 4, 3]}),
            ("MatMul", "k q", "m", {}),
            ("Softmax", "m", "w", {"axis": -2}),
            ("MatMul", "r w", "h", {}),
            ("Reshape", "h flat", "i", {}),
            ("Conv", "i b bb", "y", {}),
        ],
        {"a": (16, 4, 1, 1), "ab": (16,), "b": (6, 48, 1, 1), "bb": (6,)},
    ),
    "gates": (
        TOKENS,
        [
            ("MatMul", "x a", "g", {}),
            ("Sigmoid", "g", "s", {}),
            ("Mul", "g s", "r", {}),
            ("MatMul", "x u", "h", {}),
            ("Mul", "r h", "p", {}),
            ("MatMul", "p b", "z", {}),
            ("Add", "bb z", "y", {}),
        ],
        {"a": (8, 24), "u": (8, 24), "b": (24, 6), "bb": (6,)},
    ),
}
LAYERS = {
    "three, one of them by channel": [["h", "s", "y"]],
    "two convolutions": [["h", "y"]],
    "values that attention mixes": [["p", "z"]],
    "values that several heads share, of channels first": [["v", "y"]],
    "gates": [["g", "z"], ["h", "z"]],
}


def network(x: tuple[int, ...], nodes: list[Node], shapes: dict[str, tuple[int, ...]], outputs: str = "y") -> Any:
    """Returns a model of `x` (n, ...), whose weights hang on their names."""
    given = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(sum(map(ord, name)))
        given[name] = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    if "var" in given:
        given["var"], given["scale"] = np.abs(given["var"]) + 1, np.abs(given["scale"]) + 1
    graph = helper.make_graph(
        [helper.make_node(op, ins.split(), [out], out, **attributes) for op, ins, out, attributes in nodes],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *x])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in given.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def coupled(model: onnx.ModelProto) -> Coupling:
    source = ir.from_proto(model)
    return couple(source, trace(source, seed=0, providers=provider_names(())))


def outputs_of(coupling: Coupling) -> list[list[str]]:
    """Returns the outputs of the layers of each chain."""
    still = Frontier(coupling, (), provider_names(()), Spool(), ())
    return [[layer.output for layer in chain.layers] for chain in find_chains(still, find_layers(coupling))]


# ---------------------------------------------------------------- which chains there are
@pytest.mark.parametrize("form", FORMS)
def test_layers_that_read_each_other_alone_are_a_chain(form: str) -> None:
    assert outputs_of(coupled(network(*FORMS[form]))) == LAYERS.get(form, [["h", "z"]])


LINE: list[Node] = [("Gemm", "x a", "h", {}), ("Relu", "h", "r", {}), ("Gemm", "r b", "y", {})]
APART: dict[str, tuple[list[Node], str]] = {
    "read beside": ([*LINE, ("Sigmoid", "r", "t", {})], "y t"),
    "an output": (LINE, "y r"),
    "over an axis": ([LINE[0], ("Softmax", "h", "r", {}), LINE[2]], "y"),
    "one weight": ([LINE[0], LINE[1], ("Gemm", "r a", "y", {})], "y"),
    "with itself": ([LINE[0], LINE[1], ("MatMul", "r r", "y", {})], "y"),
}


@pytest.mark.parametrize("form", APART)
def test_others_are_none(form: str) -> None:
    nodes, outputs = APART[form]
    assert outputs_of(coupled(network((8,), nodes, {"a": (8, 8), "b": (8, 8)}, outputs))) == []


GATED: list[Node] = [("MatMul", "x a", "h", {}), ("Mul", "h t", "p", {}), ("MatMul", "p b", "y", {})]
ASIDE: dict[str, tuple[list[Node], str]] = {
    "as it should be": ([("Tanh", "x", "t", {}), *GATED], "y"),
    "its shape is read": ([("Tanh", "x", "t", {}), *GATED, ("Shape", "h", "s", {})], "y s"),
    "read beside": ([("Tanh", "x", "t", {}), *GATED, ("Sigmoid", "h", "s", {})], "y s"),
    "moved and read beside": (
        [("Tanh", "x", "t", {}), *GATED, ("Transpose", "h", "m", {}), ("Sigmoid", "m", "s", {})],
        "y s",
    ),
    "an output": ([("Tanh", "x", "t", {}), *GATED], "y h"),
    "gated by itself": ([GATED[0], ("Softmax", "h", "t", {}), *GATED[1:]], "y"),
    "squared": ([GATED[0], ("Mul", "h h", "p", {}), GATED[2]], "y"),
    "the product is read beside": ([("Tanh", "x", "t", {}), *GATED, ("Sigmoid", "p", "s", {})], "y s"),
    "with a constant": ([GATED[0], ("MatMul", "h c", "p", {}), GATED[2]], "y"),
    "with a vector": (
        [
            ("Constant", "", "last", {"value_ints": [1]}),
            ("Constant", "", "row", {"value_ints": [1, 8]}),
            ("ReduceMax", "x last", "t", {"keepdims": 0}),
            GATED[0],
            ("MatMul", "t h", "v", {}),
            ("Reshape", "v row", "p", {}),
            GATED[2],
        ],
        "y",
    ),
}


@pytest.mark.parametrize("form", ASIDE)
def test_a_product_counts_where_nothing_else_sees_what_the_layer_makes(form: str) -> None:
    nodes, outputs = ASIDE[form]
    found = outputs_of(coupled(network((8,), nodes, {"a": (8, 8), "b": (8, 8), "c": (8, 8)}, outputs)))
    mixed = [layers for layers in found if layers == ["h", "y"]]
    assert len(mixed) == (form in ("as it should be", "its shape is read"))


def test_long_chains_are_taken_in_pieces() -> None:
    nodes: list[Node] = []
    for k in range(7):
        nodes += [("Gemm", f"{f'r{k - 1}' if k else 'x'} w{k}", f"h{k}", {}), ("Relu", f"h{k}", f"r{k}", {})]
    model = network((8,), nodes, {f"w{k}": (8, 8) for k in range(7)}, "r6")
    assert outputs_of(coupled(model)) == [["h0", "h1", "h2"], ["h3", "h4"], ["h5", "h6"]]


# ---------------------------------------------------------------- slopes
def errors_of(form: str) -> Iterator[tuple[_Error, Weights]]:
    """Yields the error of each chain of a network whose weights are not those that are wanted, and its weights."""
    coupling = coupled(network(*FORMS[form]))
    rng, spool = np.random.default_rng(0), Spool()
    batches = [{"x": rng.standard_normal((32, *FORMS[form][0])).astype(np.float32)} for _ in range(3)]
    still = Frontier(coupling, (), provider_names(()), spool, ())
    for chain in find_chains(still, find_layers(coupling)):
        last = chain.layers[-1]
        other = [last.other.name] if last.other else []
        lasting = [(name, last.index + 1) for name in (*chain.asks, last.output, *other)]
        truth = Frontier(coupling, batches, provider_names(()), spool, lasting)
        truth.advance(last.index + 1)
        yield from _errors(chain, truth, rng)
    spool.close()


def _errors(chain: Chain, truth: Frontier, rng: np.random.Generator) -> Iterator[tuple[_Error, Weights]]:
    keep, rows = [], []
    for layer in chain.layers:
        groups, outputs, features = layer.view.matrix(np.empty(layer.use.shape)).shape
        stays = np.arange(features) >= (features // 4 if groups == 1 else 0)
        keep.append(np.broadcast_to(stays, (groups, features)))
        rows.append(np.ones((groups, outputs), bool))
    links = chain.links(keep, rows, truth)
    items = list(portions(chain, links, truth, truth, Drawing(0, 1)))
    start = []
    for link in links:
        w = link.view.matrix(truth.content(link.layer.use.name).astype(np.float64))
        w, b = w + 0.1 * rng.standard_normal(w.shape), bias_of(link.layer, truth)
        start.append(np.where(link.moves, link.taken(w, b), 0))
    yield _Error(links, items, links[-1].moves.any(axis=2), jobs=2), start


@pytest.mark.parametrize("form", FORMS)
def test_slopes_are_what_the_error_changes_by(form: str) -> None:
    rng = np.random.default_rng(1)
    for error, start in errors_of(form):
        found, slope = error.look(start)
        assert found > 0 and error.held(start) > 0
        for k, w in enumerate(start):
            assert not slope[k][~error.links[k].moves].any()
            way = np.where(error.links[k].moves, rng.standard_normal(w.shape), 0) * np.abs(w).mean()
            ahead, back = ([*start[:k], w + by * way, *start[k + 1 :]] for by in (0.01, -0.01))
            told = (error.look(ahead)[0] - error.look(back)[0]) / 0.02
            size = np.linalg.norm(slope[k]) * np.linalg.norm(way)  # of no use where the way is across the slope
            assert told == pytest.approx(float(np.vdot(slope[k], way)), abs=0.02 * size)


@pytest.mark.parametrize("form", FORMS)
def test_the_way_down_gets_nearer_on_what_is_held_out(form: str) -> None:
    for error, start in errors_of(form):
        found = descend(start, error.look, error.held, error.scaled(start), 6)
        assert found is not None and error.held(found) < 0.7 * error.held(start)


def test_a_bowl_is_gone_down_to_its_bottom() -> None:
    rng = np.random.default_rng(2)
    bend, bottom = np.diag([1.0, 2.0, 30.0]), rng.standard_normal(3)

    def look(w: Weights) -> tuple[float, Weights]:
        left = w[0] - bottom
        return float(left @ bend @ left) / 2, [bend @ left]

    start = [np.zeros(3)]
    found = descend(start, look, lambda w: look(w)[0], lambda slope: slope, 6)
    assert found is not None and look(found)[0] < 1e-3 * look(start)[0]
    only_the_start = descend(start, look, lambda w: float(np.abs(w[0]).sum()), lambda slope: slope, 6)
    assert only_the_start is None
    assert descend([bottom], look, lambda w: look(w)[0], lambda slope: slope, 6) is None


# ---------------------------------------------------------------- what they gain
def error(model: onnx.ModelProto | Path, x: np.ndarray, test: np.ndarray, **options: Any) -> float:
    """Returns the relative squared error of a pruned model's outputs on other inputs."""
    (name,) = (v.name for v in (onnx.load(model) if isinstance(model, Path) else model).graph.input)
    pruned = ir.to_proto(onnxprune.prune(model, ratio=0.5, calibration={name: x}, **options).model)
    found, dense = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {name: test})[0]
        for m in (pruned, onnx.load(model) if isinstance(model, Path) else model)
    )
    found, dense = found.astype(np.float64), dense.astype(np.float64)
    return float(np.square(found - dense).sum() / np.square(dense - dense.mean(0)).sum())


@pytest.mark.parametrize("form", FORMS)
def test_units_that_stay_take_over_across_an_activation(form: str) -> None:
    rng = np.random.default_rng(3)
    x, test = (rng.standard_normal((512, *FORMS[form][0])).astype(np.float32) for _ in range(2))
    model = network(*FORMS[form])
    found = {mode: error(model, x, test, include=["a"], compensate=mode) for mode in ("lstsq", "joint", "auto")}
    assert 0 < found["joint"] < 0.97 * found["lstsq"]
    assert found["auto"] == found["joint"]


@pytest.mark.parametrize("form", ["two convolutions", "values that attention mixes", "gates"])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_few_samples_make_nothing_worse(count: int, form: str) -> None:
    rng = np.random.default_rng(4)
    x, test = (rng.standard_normal((n, *FORMS[form][0])).astype(np.float32) for n in (count, 256))
    model = network(*FORMS[form])
    found = {mode: error(model, x, test, include=["a"], compensate=mode) for mode in ("lstsq", "joint")}
    assert np.isfinite(found["joint"]) and found["joint"] < 1.05 * found["lstsq"]


@pytest.mark.parametrize("form", ["values that attention mixes", "gates"])
def test_one_batch_is_taken_apart(form: str) -> None:
    rng = np.random.default_rng(7)
    x, test = (rng.standard_normal((n, *FORMS[form][0])).astype(np.float32) for n in (64, 256))
    found = {mode: error(network(*FORMS[form]), x, test, include=["a"], compensate=mode) for mode in ("lstsq", "joint")}
    assert found["joint"] < 0.97 * found["lstsq"]


@pytest.mark.parametrize("form", ["two convolutions", "values that attention mixes", "gates"])
def test_numbers_of_half_precision_do_as_well(form: str) -> None:
    model = network(*FORMS[form])
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    assert outputs_of(coupled(model)) == LAYERS[form]
    rng = np.random.default_rng(8)
    x, test = (rng.standard_normal((512, *FORMS[form][0])).astype(np.float16) for _ in range(2))
    found = {mode: error(model, x, test, include=["a"], compensate=mode) for mode in ("lstsq", "joint")}
    assert found["joint"] < 0.97 * found["lstsq"]


@pytest.mark.parametrize("size", [0.0, 1e20, 1e30])
def test_numbers_that_overflow_stop_nothing(size: float) -> None:
    model = network(*FORMS["two convolutions"])
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(size), tensor.name))
    x = np.random.default_rng(6).standard_normal((64, *PICTURE)).astype(np.float32)
    assert onnxprune.prune(model, ratio=0.5, calibration={"x": x}, validate=False).model.graph.num_nodes() == 3


def test_the_result_hangs_on_no_number_of_jobs() -> None:
    x = np.random.default_rng(5).standard_normal((256, *PICTURE)).astype(np.float32)
    model = network(*FORMS["in groups, with a branch and an activation"])
    one, two = (
        ir.to_proto(onnxprune.prune(model, ratio=0.5, calibration={"x": x}, jobs=jobs).model).SerializeToString()
        for jobs in (1, 3)
    )
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), [("resnet", 0.97), ("mobilenet", 0.97), ("vit", 0.75)])
def test_trained_networks_lose_less(name: str, share: float) -> None:
    model, test = MODELS / f"digits_{name}.onnx", np.load(MODELS / "digits_test.npz")["input"]
    (x,) = np.load(MODELS / "digits.npz").values()
    found = {mode: error(model, x, test, compensate=mode) for mode in ("lstsq", "joint")}
    assert found["joint"] < share * found["lstsq"]
