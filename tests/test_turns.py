"""Loops on data: weights are refitted on what all turns read, and run as the model runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from test_flat import HANDED_ON, LOOP, SCAN, STACKING, model

import onnxprune
from onnxprune.engine.coupling import Coupling, couple
from onnxprune.engine.frontier import Frontier, Spool
from onnxprune.engine.layers import find_layers
from onnxprune.engine.twin import as_read
from onnxprune.graph.flat import look_into
from onnxprune.graph.runtime import provider_names
from onnxprune.graph.trace import trace

MODELS = Path(__file__).parent.parent / "models"
CPU = provider_names(())

INNER = """
    net (float[N,4] x) => (float[N,3] y) {
        h0 = MatMul(x, w1)
        turns = Constant<value_int=3>()
        go = Constant<value=bool {1}>()
        limit = Constant<value_float=0.0>()
        last = Loop (turns, go, h0) <
            body = turn (int64 i, bool on, float[N,6] h) => (bool again, float[N,6] back) {
                again = Identity(on)
                s = ReduceMax<keepdims=0>(h)
                flag = Greater(s, limit)
                a = MatMul(h, w2)
                b = If (flag) <
                    then_branch = one () => (t) { t = MatMul(a, w3) },
                    else_branch = two () => (e) { e = Neg(a) }
                >
                inner = Loop (turns, on, b) <
                    body = deep (int64 j, bool off, float[N,6] g) => (bool more, float[N,6] f) {
                        more = Identity(off)
                        m = MatMul(g, w4)
                        f = Tanh(m)
                    }
                >
                back = Add(h, inner)
            }
        >
        y = MatMul(last, w5)
    }
    weights w1:4,6 w2:6,6 w3:6,6 w4:6,6 w5:6,3
"""
CONVOLVED = """
    net (float[3,N,2,5,5] x) => (float[N,4,5,5] y) {
        h0 = Gather<axis=0>(x, zero)
        z = Conv<pads=[1,1,1,1]>(h0, w0)
        last = Scan <num_scan_inputs=1,
            body = turn (float[N,6,5,5] h, float[N,2,5,5] now) => (float[N,6,5,5] back) {
                a = Conv<pads=[1,1,1,1]>(now, w1, b1)
                b = Conv<pads=[1,1,1,1]>(h, w2)
                c = Add(a, b)
                back = Tanh(c)
            }
        > (z, x)
        y = Conv(last, w3)
    }
    weights w0:6,2,3,3 w1:6,2,3,3 b1:6 w2:6,6,3,3 w3:4,6,1,1
"""


def convolved() -> onnx.ModelProto:
    made = CONVOLVED.replace("h0 = Gather", "zero = Constant<value_int=0>()\n h0 = Gather")
    return model(made)


ALONE = LOOP.replace("BODY", "a = MatMul(h, w2) b = Relu(a) c = MatMul(b, w3) back = Add(h, c)").replace("START", "h0")
OLD = ALONE.replace("D]", "6]").replace("value_int=3", "value=int64 {3}")
CASES = {  # the model, the layers of its body, the turns
    "scan": (lambda: model(SCAN), 2, 5),
    "handed on": (lambda: model(HANDED_ON), 2, 3),
    "a state alone": (lambda: model(ALONE.replace("D]", "6]")), 2, 3),
    "stacking": (lambda: model(STACKING.replace("AGAIN", "again = Identity(on)")), 0, 3),
    "bodies in a body": (lambda: model(INNER), 1, 3),
    "convolved": (convolved, 2, 3),
    "of an old opset": (lambda: model(OLD, opset=9), 2, 3),
}


def coupled(made: onnx.ModelProto) -> Coupling:
    read = ir.from_proto(made)
    assert isinstance(read, ir.Model)
    flat, traced = look_into(read, lambda view: trace(view, seed=0, providers=CPU))
    assert flat is not None and flat.loops
    return couple(flat.model, traced, flat=flat)


@pytest.mark.parametrize("case", CASES)
def test_a_twin_gives_what_the_model_gives(case: str) -> None:
    make, count, turns = CASES[case]
    made = make()
    twin = as_read(coupled(made))
    shape = [d.dim_value or 7 for d in made.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    (expected,) = ort.InferenceSession(made.SerializeToString()).run(None, {"x": x})
    layers = find_layers(twin, direct=True)
    values = [(name, len(twin.nodes)) for layer in layers for name in (layer.input, layer.output)]
    frontier = Frontier(twin, [{"x": x}], CPU, Spool(), [*values, ("y", len(twin.nodes))])
    frontier.advance(len(twin.nodes))
    np.testing.assert_allclose(frontier.values[0]["y"], expected, rtol=1e-5, atol=1e-6)
    inside = [layer for layer in layers if layer.inside]
    assert len(inside) == count and all(layer.recurs for layer in inside)
    for layer in inside:
        assert len(frontier.values[0][layer.input]) == len(frontier.values[0][layer.output]) == turns * 7


def test_a_model_without_loops_is_its_own_twin() -> None:
    read = ir.from_proto(onnx.load(MODELS / "digits_cnn.onnx"))
    assert isinstance(read, ir.Model)
    plain = couple(read, trace(read, seed=0, providers=CPU))
    assert as_read(plain) is plain


def test_the_first_turn_alone_does_not_tell() -> None:
    """All sentences begin alike: one turn has no variance, and says nothing of what the others need."""
    made = model(
        SCAN.replace("float[5,N,", "float[N,5,")
        .replace("z = MatMul", "u = Transpose<perm=[1,0,2]>(x) z = MatMul")
        .replace("MatMul(x, w0)", "MatMul(u, w0)")
        .replace("start=1, end=2>(x)", "start=1, end=2>(u)")
        .replace("float[N,5,3] y", "float[5,N,3] y")
    )
    x = np.random.default_rng(0).normal(size=(256, 5, 4)).astype(np.float32)
    x[:, 0] = 1
    session = ort.InferenceSession(made.SerializeToString())
    (dense,) = session.run(None, {"x": x})
    errors = {}
    for compensate in ("none", "lstsq"):
        result = onnxprune.prune(made, ratio=0.4, criterion="obs", compensate=compensate, calibration={"x": x})
        pruned = ort.InferenceSession(ir.to_proto(result.model).SerializeToString())
        errors[compensate] = float(((pruned.run(None, {"x": x})[0] - dense) ** 2).sum() / (dense**2).sum())
        assert not any("not refitted" in note for note in result.report.notes)
    assert errors["lstsq"] < 0.5 * errors["none"]


def test_a_loop_beside_quantized_weights(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(256, 4)).astype(np.float32)
    errors = {"none": 0.0, "lstsq": 0.0}  # of few units a refit can save little; of several networks it has to
    for seed in range(5):
        onnx.save(model(HANDED_ON, seed=seed), tmp_path / "dense.onnx")
        quantize_dynamic(tmp_path / "dense.onnx", tmp_path / "quantized.onnx", weight_type=QuantType.QInt8)
        made = onnx.load(tmp_path / "quantized.onnx")
        assert "MatMulInteger" in {node.op_type for node in made.graph.node}
        (dense,) = ort.InferenceSession(made.SerializeToString()).run(None, {"x": x})
        for compensate in errors:
            result = onnxprune.prune(made, ratio=0.4, criterion="obs", compensate=compensate, calibration={"x": x})
            pruned = ort.InferenceSession(ir.to_proto(result.model).SerializeToString())
            errors[compensate] += float(((pruned.run(None, {"x": x})[0] - dense) ** 2).sum() / (dense**2).sum())
    assert errors["lstsq"] < 0.5 * errors["none"]


def in_scans(made: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a model whose LSTMs are written as a Scan for each direction, as frameworks without the operator do."""
    graph = made.graph
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "LSTM":
            nodes.append(node)
            continue
        w, r, b = (held[name] for name in node.input[1:4])
        stem, size = node.name.strip("/").replace("/", "_"), r.shape[2]
        for d in range(len(w)):
            here = f"{stem}_{d}"
            contents = {"w": w[d].T, "r": r[d].T, "b": b[d][: 4 * size] + b[d][4 * size :], "d": np.array(d)}
            graph.initializer.extend(numpy_helper.from_array(v.copy(), f"{here}_{k}") for k, v in contents.items())
            states = [f"{here}_h0", f"{here}_c0"]
            for start, state in zip(node.input[5:7], states, strict=True):
                nodes.append(helper.make_node("Gather", [start, f"{here}_d"], [state], state, axis=0))
            outputs = [f"{here}_last", f"{here}_cell", f"{here}_all"]
            body, ways = cell(here, size, w.shape[2]), {"scan_input_directions": [d], "scan_output_directions": [d]}
            inputs = [*states, node.input[0]]
            nodes.append(helper.make_node("Scan", inputs, outputs, here, body=body, num_scan_inputs=1, **ways))
            nodes.append(helper.make_node("Unsqueeze", [outputs[2], "one"], [f"{here}_y"], f"{here}_unsqueeze"))
        merged = [f"{stem}_{d}_y" for d in range(len(w))]
        nodes.append(helper.make_node("Concat", merged, [node.output[0]], f"{stem}_concat", axis=1))
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "one"))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    gone = [t for t in graph.initializer if t.name.startswith("onnx::LSTM")]
    for t in gone:
        graph.initializer.remove(t)
    onnx.checker.check_model(made)
    return made


def cell(stem: str, size: int, width: int) -> onnx.GraphProto:
    """Returns the body of a Scan that is one step of an LSTM."""
    steps = [
        ("MatMul", "x W", "a"),
        ("MatMul", "h R", "b"),
        ("Add", "a b", "s"),
        ("Add", "s B", "z"),
        ("Split", "z sizes", "zi zo zf zc"),
        *(("Sigmoid", f"z{k}", k) for k in "iof"),
        ("Tanh", "zc", "t"),
        ("Mul", "f c", "fc"),
        ("Mul", "i t", "it"),
        ("Add", "fc it", "c1"),
        ("Tanh", "c1", "tc"),
        ("Mul", "o tc", "h1"),
        ("Identity", "h1", "y"),
    ]
    outer = {"W": f"{stem}_w", "R": f"{stem}_r", "B": f"{stem}_b"}
    nodes = []
    for op, read, given in steps:
        names = [[outer.get(n, f"{stem}/{n}") for n in text.split()] for text in (read, given)]
        nodes.append(helper.make_node(op, *names, names[1][0], **({"axis": 1} if op == "Split" else {})))
    declared = {n: width if n == "x" else size for n in ("h", "c", "x", "h1", "c1", "y")}
    told = [helper.make_tensor_value_info(f"{stem}/{n}", 1, ["N", k]) for n, k in declared.items()]
    sizes = numpy_helper.from_array(np.array([size] * 4), f"{stem}/sizes")
    return helper.make_graph(nodes, stem, told[:3], told[3:], [sizes])


def test_an_lstm_written_as_loops_is_refitted_as_one() -> None:
    made = in_scans(onnx.load(MODELS / "digits_lstm.onnx"))
    inputs, test = (np.load(MODELS / name) for name in ("digits.npz", "digits_test.npz"))
    assert onnxprune.inspect(made).macs == onnxprune.inspect(MODELS / "digits_lstm.onnx").macs
    right = {}
    for compensate in ("none", "lstsq"):
        result = onnxprune.prune(made, ratio=0.3, criterion="obs", compensate=compensate, calibration=inputs["input"])
        pruned = ort.InferenceSession(ir.to_proto(result.model).SerializeToString())
        logits = pruned.run(None, {"input": test["input"]})[0]
        right[compensate] = int((logits.argmax(1) == test["labels"]).sum())
    assert right["none"] < 565 and right["lstsq"] >= 580  # of 600; 588 before
