"""What the walk mends: cuts that can be made up for without loss are, whatever reads the cut units."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.engine import frontier
from onnxprune.refit import compensation

MS = "com.microsoft"
Step = tuple[str, list[str], list[str], dict[str, Any]]


def network(
    steps: list[Step], x: tuple[int | str, ...], weights: dict[str, np.ndarray], opset: int = 17
) -> onnx.ModelProto:
    """Returns a chain of nodes from `x` to `y`."""
    nodes = [
        helper.make_node(
            op, ins, outs, f"{op}_{k}", domain=MS if op.startswith(("Fused", "Multi", "Dynamic")) else "", **attributes
        )
        for k, (op, ins, outs, attributes) in enumerate(steps)
    ]
    constants = [
        numpy_helper.from_array(w if w.dtype.kind == "i" else w.astype(np.float32), name) for name, w in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9 if opset < 21 else 11)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def error(model: onnx.ModelProto, x: np.ndarray, **options: Any) -> float:
    """Returns the relative error of the outputs on other inputs than those that the cut was mended with."""
    half = len(x) // 2
    result = onnxprune.prune(model, calibration={"x": x[:half]}, **({"ratio": 0.5} | options))
    found = onnx.ModelProto.FromString(_bytes(result))
    dense = run(model, x[half:])
    return float(np.linalg.norm(run(found, x[half:]) - dense) / np.linalg.norm(dense - dense.mean(0)))


def _bytes(result: Any) -> bytes:
    import onnx_ir as ir

    return ir.to_proto(result.model).SerializeToString()


def consumers() -> dict[str, tuple[list[Step], dict[str, np.ndarray], bool]]:
    """Returns what may read eight channels that are six-fold linear in three inputs: steps, weights, spatial or not."""
    rng = np.random.default_rng(5)

    def w(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) * 0.4

    cell = {"wx": w(1, 20, 8), "wr": w(1, 20, 5), "wb": w(1, 40), "wo": w(5, 4)}
    after: list[Step] = [("Squeeze", ["hidden", "one"], ["flat"], {}), ("MatMul", ["flat", "wo"], ["y"], {})]
    one = {"one": np.array([1])}
    return {
        "MatMul": ([("MatMul", ["h", "w"], ["y"], {})], {"w": w(8, 5)}, False),
        "Einsum": ([("Einsum", ["h", "w"], ["y"], {"equation": "btf,cf->btc"})], {"w": w(5, 8)}, False),
        "experts": ([("Einsum", ["h", "w"], ["y"], {"equation": "btf,tfc->btc"})], {"w": w(7, 8, 5)}, False),
        "FusedMatMul": ([("FusedMatMul", ["h", "w"], ["y"], {"transB": 1})], {"w": w(5, 8)}, False),
        "FusedGemm": (
            [
                ("Reshape", ["h", "rows"], ["flat"], {}),
                ("FusedGemm", ["flat", "w", "b"], ["y"], {"activation": "Relu"}),
            ],
            {"w": w(8, 5), "b": w(5), "rows": np.array([-1, 8])},
            False,
        ),
        "LSTM": (
            [("LSTM", ["h", "wx", "wr", "wb"], ["hidden"], {"hidden_size": 5}), *after],
            cell | one,
            False,
        ),
        "GRU": (
            [("GRU", ["h", "wx", "wr"], ["hidden"], {"hidden_size": 5}), *after],
            {"wx": w(1, 15, 8), "wr": w(1, 15, 5), "wo": w(5, 4)} | one,
            False,
        ),
        "Conv": ([("Conv", ["h", "w"], ["y"], {"strides": [2, 2]})], {"w": w(5, 8, 3, 3)}, True),
        "ConvTranspose": ([("ConvTranspose", ["h", "w"], ["y"], {"strides": [2, 2]})], {"w": w(8, 5, 3, 3)}, True),
        "FusedConv": (
            [("FusedConv", ["h", "w", "b"], ["y"], {"activation": "Relu"})],
            {"w": w(5, 8, 3, 3), "b": w(5)},
            True,
        ),
    }


@pytest.mark.parametrize("reader", consumers())
def test_a_consumer_makes_up_for_channels_that_the_others_tell(reader: str) -> None:
    steps, weights, spatial = consumers()[reader]
    rng = np.random.default_rng(6)
    x = rng.standard_normal((64, 3, 8, 8) if spatial else (64, 7, 3)).astype(np.float32)
    if spatial:
        first: Step = ("Conv", ["x", "w0"], ["h"], {})
        weights = weights | {"w0": rng.standard_normal((8, 3, 1, 1))}
    else:
        first = ("MatMul", ["x", "w0"], ["h"], {})
        weights = weights | {"w0": rng.standard_normal((3, 8))}
    model = network([first, *steps], ("n", *x.shape[1:]), weights)
    include = {"include": ["w0"]}
    left = error(model, x, compensate="none", criterion="l1", **include)
    assert left > 0.05
    assert error(model, x, criterion="l1", **include) < 0.03 * left
    assert error(model, x, criterion="obs", **include) < 0.03 * left


@pytest.mark.parametrize("each", [False, True])
def test_a_cell_that_quantizes_what_it_reads_makes_up_for_channels(each: bool) -> None:
    rng = np.random.default_rng(15)
    read = ["h", "wx", "wr", "wb", "", "", "", "", "x_scale", "x_zero", "r_scale", "r_zero"]
    steps: list[Step] = [
        ("MatMul", ["x", "w0"], ["h"], {}),
        ("DynamicQuantizeLSTM", read, ["hidden"], {"hidden_size": 5}),
        ("Squeeze", ["hidden", "one"], ["flat"], {}),
        ("MatMul", ["flat", "wo"], ["y"], {}),
    ]
    numbers = (1, 20) if each else (1,)
    scales = {name: rng.uniform(0.006, 0.008, numbers) for name in ("x_scale", "r_scale")}
    zeros = {name: np.zeros(numbers, np.int8) for name in ("x_zero", "r_zero")}
    cell = {"wx": rng.integers(-63, 64, (1, 8, 20)), "wr": rng.integers(-63, 64, (1, 5, 20))}
    weights = {name: w.astype(np.int8) for name, w in cell.items()} | zeros | scales | {"one": np.array([1])}
    weights |= {
        "w0": rng.standard_normal((3, 8)),
        "wb": rng.standard_normal((1, 40)),
        "wo": rng.standard_normal((5, 4)),
    }
    model = network(steps, ("n", 7, 3), weights)
    x = rng.standard_normal((64, 7, 3)).astype(np.float32)
    left = error(model, x, compensate="none", criterion="l1", include=["w0"])
    assert left > 0.05
    assert error(model, x, include=["w0"]) < 0.3 * left


def test_a_constant_along_another_axis_is_no_bias() -> None:
    rng = np.random.default_rng(14)
    steps: list[Step] = [
        ("MatMul", ["x", "w0"], ["h"], {}),
        ("MatMul", ["h", "w"], ["z"], {}),
        ("Add", ["z", "places"], ["y"], {}),
    ]
    weights = {"w0": rng.standard_normal((3, 8)), "w": rng.standard_normal((8, 5)), "places": np.ones((5, 1))}
    x = rng.standard_normal((64, 5, 3)).astype(np.float32) + 1
    model = network(steps, ("n", 5, 3), weights)
    result = onnxprune.prune(model, ratio=0.75, calibration={"x": x})
    found = {t.name: numpy_helper.to_array(t) for t in onnx.ModelProto.FromString(_bytes(result)).graph.initializer}
    np.testing.assert_array_equal(found["places"], weights["places"])


def test_a_recurrent_state_is_made_up_for() -> None:
    """Hidden units that others copy are cut at no loss: the recurrent weights take over."""
    rng = np.random.default_rng(7)
    w, r, b = rng.standard_normal((1, 16, 3)), rng.standard_normal((1, 16, 4)) * 0.5, rng.standard_normal((1, 32)) * 0.2

    def twice(a: np.ndarray) -> np.ndarray:
        """Returns the rows of each gate twice, the same unit in two places."""
        gates = a.reshape(1, -1, 4, *a.shape[2:])
        return np.concatenate([gates, gates], axis=2).reshape(1, -1, *a.shape[2:])

    doubled = {
        "w": twice(w),
        "r": np.concatenate([twice(r) * 0.5] * 2, axis=2),
        "b": twice(b[..., None])[..., 0],
        "wo": rng.standard_normal((8, 3)),
        "one": np.array([1]),
    }
    steps: list[Step] = [
        ("LSTM", ["x", "w", "r", "b"], ["hidden"], {"hidden_size": 8}),
        ("Squeeze", ["hidden", "one"], ["flat"], {}),
        ("MatMul", ["flat", "wo"], ["y"], {}),
    ]
    model = network(steps, (12, "n", 3), doubled)
    x = rng.standard_normal((12, 96, 3)).astype(np.float32)
    dense = run(model, x[:, 48:])

    def left(**options: Any) -> float:
        feeds = [{"x": np.ascontiguousarray(x[:, k : k + 16])} for k in range(0, 48, 16)]
        result = onnxprune.prune(model, ratio=0.5, calibration=feeds, **options)
        found = run(onnx.ModelProto.FromString(_bytes(result)), x[:, 48:])
        return float(np.linalg.norm(found - dense) / np.linalg.norm(dense))

    none = left(compensate="none", criterion="obs")
    assert none > 0.05
    assert left(criterion="obs") < 0.05 * none


def attention(rotated: bool = False, seed: int = 8) -> tuple[onnx.ModelProto, np.ndarray]:
    """Returns a layer of attention with two heads of eight dims, whose keys have but four dimensions in each."""
    rng = np.random.default_rng(seed)
    width, heads, dims = 12, 2, 8
    key = np.concatenate(
        [rng.standard_normal((width, 4)) @ rng.standard_normal((4, dims)) for _ in range(heads)], axis=1
    )
    weights = {
        "wq": rng.standard_normal((width, heads * dims)) * 0.3,
        "bq": rng.standard_normal(heads * dims) * 0.3,
        "wk": key * 0.2,
        "wv": rng.standard_normal((width, heads * dims)),
        "wo": rng.standard_normal((heads * dims, 5)),
        "split": np.array([0, 0, heads, dims]),
        "join": np.array([0, 0, heads * dims]),
        "scale": np.array(0.35),
    }
    steps: list[Step] = [
        ("MatMul", ["x", "wq"], ["q0"], {}),
        ("Add", ["q0", "bq"], ["q1"], {}),
        ("Reshape", ["q1", "split"], ["q2"], {}),
        ("Transpose", ["q2"], ["q3"], {"perm": [0, 2, 1, 3]}),
        ("Relu" if rotated else "Identity", ["q3"], ["q4"], {}),
        ("Mul", ["q4", "scale"], ["q"], {}),
        ("MatMul", ["x", "wk"], ["k0"], {}),
        ("Reshape", ["k0", "split"], ["k1"], {}),
        ("Transpose", ["k1"], ["k"], {"perm": [0, 2, 3, 1]}),
        ("MatMul", ["q", "k"], ["s"], {}),
        ("Softmax", ["s"], ["p"], {"axis": -1}),
        ("MatMul", ["x", "wv"], ["v0"], {}),
        ("Reshape", ["v0", "split"], ["v1"], {}),
        ("Transpose", ["v1"], ["v"], {"perm": [0, 2, 1, 3]}),
        ("MatMul", ["p", "v"], ["o0"], {}),
        ("Transpose", ["o0"], ["o1"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["o1", "join"], ["o2"], {}),
        ("MatMul", ["o2", "wo"], ["y"], {}),
    ]
    return network(steps, ("n", "t", width), weights), rng.standard_normal((96, 9, width)).astype(np.float32)


@pytest.mark.parametrize("criterion", ["l1", "obs"])
def test_queries_take_over_for_dims_that_other_keys_tell(criterion: str) -> None:
    model, x = attention()
    only = {"include": ["wq", "wk"], "criterion": criterion}
    left = error(model, x, compensate="none", **only)
    assert left > 0.05
    assert error(model, x, **only) < 0.05 * left


def attention_as(form: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """Returns the same layer with an operator that attends, with turned keys, or with heads among samples."""
    written, x = attention()
    weights = {t.name: numpy_helper.to_array(t) for t in written.graph.initializer}
    weights |= {"among": np.array([-1, 9, 8]), "apart": np.array([-1, 2, 9, 8])}
    heads: list[Step] = [
        step
        for v, of in (("q1", "q"), ("k0", "k"), ("v0", "v"))
        for step in (
            ("Reshape", [v, "split"], [f"{of}_heads"], {}),
            ("Transpose", [f"{of}_heads"], [of], {"perm": [0, 2, 1, 3]}),
        )
    ]
    joined: list[Step] = [("Transpose", ["o"], ["o1"], {"perm": [0, 2, 1, 3]}), ("Reshape", ["o1", "join"], ["o2"], {})]
    middle: dict[str, list[Step]] = {
        "heads apart": [*heads, ("Attention", ["q", "k", "v"], ["o"], {}), *joined],
        "heads merged": [("Attention", ["q1", "k0", "v0"], ["o2"], {"q_num_heads": 2, "kv_num_heads": 2})],
        "MultiHeadAttention": [("MultiHeadAttention", ["q1", "k0", "v0"], ["o2"], {"num_heads": 2})],
        "FusedMatMul": [
            *heads,
            ("FusedMatMul", ["q", "k"], ["s"], {"transB": 1, "alpha": 0.35}),
            ("Softmax", ["s"], ["p"], {"axis": -1}),
            ("MatMul", ["p", "v"], ["o"], {}),
            *joined,
        ],
        "heads among samples": [
            *heads,
            *(("Reshape", [v, "among"], [f"{v}_all"], {}) for v in "qkv"),
            ("Transpose", ["k_all"], ["k_turned"], {"perm": [0, 2, 1]}),
            ("Mul", ["q_all", "scale"], ["q_scaled"], {}),
            ("MatMul", ["q_scaled", "k_turned"], ["s"], {}),
            ("Softmax", ["s"], ["p"], {"axis": -1}),
            ("MatMul", ["p", "v_all"], ["o_all"], {}),
            ("Reshape", ["o_all", "apart"], ["o"], {}),
            *joined,
        ],
    }
    steps: list[Step] = [
        ("MatMul", ["x", "wq"], ["q0"], {}),
        ("Add", ["q0", "bq"], ["q1"], {}),
        ("MatMul", ["x", "wk"], ["k0"], {}),
        ("MatMul", ["x", "wv"], ["v0"], {}),
        *middle[form],
        ("MatMul", ["o2", "wo"], ["y"], {}),
    ]
    used = {name for _, inputs, _, _ in steps for name in inputs}
    kept = {name: w for name, w in weights.items() if name in used}
    return network(steps, ("n", 9, 12), kept, opset=23 if form in ("heads apart", "heads merged") else 17), x


@pytest.mark.parametrize(
    "form", ["heads apart", "heads merged", "MultiHeadAttention", "FusedMatMul", "heads among samples"]
)
def test_queries_take_over_in_whatever_form_attention_is_written(form: str) -> None:
    model, x = attention_as(form)
    only = {"include": ["wq", "wk"], "criterion": "obs"}
    left = error(model, x, compensate="none", **only)
    assert left > 0.03
    assert error(model, x, **only) < 0.05 * left


def test_queries_behind_something_else_are_left_alone() -> None:
    model, x = attention(rotated=True)
    only = {"include": ["wq", "wk"], "criterion": "l1"}
    assert error(model, x, **only) == pytest.approx(error(model, x, compensate="none", **only), rel=0.02)


def test_where_values_lie_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = attention()
    one = _bytes(onnxprune.prune(model, ratio=0.5, calibration={"x": x}))
    monkeypatch.setattr(frontier, "room", lambda: 0)
    assert _bytes(onnxprune.prune(model, ratio=0.5, calibration={"x": x})) == one


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_samples_that_tell_nothing_make_nothing_worse(value: float) -> None:
    model, x = attention()
    blind = np.full_like(x[:8], value)
    far = []
    for mode in ("none", "lstsq"):
        result = onnxprune.prune(model, ratio=0.25, criterion="l1", compensate=mode, calibration={"x": blind})
        found = run(onnx.ModelProto.FromString(_bytes(result)), x)
        assert np.isfinite(found).all()
        far.append(np.linalg.norm(found - run(model, x)))
    assert far[1] <= 1.05 * far[0]


@pytest.mark.parametrize("reader", ["MatMul", "attention"])
def test_places_that_hold_no_numbers_do_not_keep_the_others_from_telling(reader: str) -> None:
    """As padded ones that attend to nothing: what they hold is replaced before the outputs."""
    rng = np.random.default_rng(12)
    if reader == "attention":
        inner, x = attention()
        only = {"include": ["wq", "wk"], "criterion": "obs"}
    else:
        steps, weights, _ = consumers()[reader]
        first: Step = ("MatMul", ["x", "w0"], ["h"], {})
        inner = network([first, *steps], ("n", 7, 3), weights | {"w0": rng.standard_normal((3, 8))})
        x, only = rng.standard_normal((128, 7, 3)).astype(np.float32), {"include": ["w0"], "criterion": "obs"}
    for node in inner.graph.node:
        node.input[:] = ["given" if name == "x" else name for name in node.input]
        node.output[:] = ["found" if name == "y" else name for name in node.output]
    before = [
        helper.make_node("ReduceMax", ["x"], ["largest"], axes=[-1]),
        helper.make_node("Sub", ["limit", "largest"], ["below"]),
        helper.make_node("Sqrt", ["below"], ["root"]),  # no number where it is below zero
        helper.make_node("Mul", ["x", "root"], ["given"]),
    ]
    behind = [
        helper.make_node("IsNaN", ["found"], ["nothing"]),
        helper.make_node("Where", ["nothing", "zero", "found"], ["y"]),
    ]
    nodes = [*before, *inner.graph.node, *behind]
    del inner.graph.node[:]
    inner.graph.node.extend(nodes)
    for name, value in (("limit", 2.2), ("zero", 0.0)):
        inner.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    share = (run(inner, x) == 0).all(axis=-1).mean()
    assert 0.02 < share < 0.9
    left = error(inner, x, compensate="none", **only)
    assert left > 0.05
    assert error(inner, x, **only) < 0.1 * left


def test_layers_that_cannot_be_refitted_are_named() -> None:
    rng = np.random.default_rng(9)
    steps: list[Step] = [
        ("MatMul", ["x", "w0"], ["h"], {}),
        ("Tile", ["w", "twice"], ["wide"], {}),
        ("MatMul", ["h", "wide"], ["y"], {}),
    ]
    twice = np.array([1, 2])
    given = {"w0": rng.standard_normal((3, 8)), "w": rng.standard_normal((8, 5)), "twice": twice}
    model = network(steps, ("n", 3), given)
    x = {"x": rng.standard_normal((64, 3)).astype(np.float32)}
    notes = onnxprune.prune(model, ratio=0.5, calibration=x).report.notes
    assert any("not refitted" in note and "MatMul_2" in note for note in notes)
    notes = onnxprune.prune(model, ratio=0.5, calibration=x, compensate="none", criterion="l1").report.notes
    assert not any("not refitted" in note for note in notes)


def test_a_bias_is_added_where_heads_share_an_axis_with_the_samples() -> None:
    rng = np.random.default_rng(13)
    heads, width = 4, 6
    steps: list[Step] = [
        ("MatMul", ["x", "first"], ["start"], {}),
        ("Relu", ["start"], ["bent"], {}),
        ("MatMul", ["bent", "w0"], ["h"], {}),
        ("Reshape", ["h", "apart"], ["folded"], {}),
        ("Conv", ["folded", "w"], ["z"], {"group": width}),
        ("LayerNormalization", ["z", "scale"], ["even"], {"axis": 1}),
        ("Reshape", ["even", "together"], ["flat"], {}),
        ("MatMul", ["flat", "w1"], ["y"], {}),
    ]
    given = {
        "first": rng.standard_normal((3, 10)),
        "w0": rng.standard_normal((10, heads * width * 5)),
        "w": rng.standard_normal((width, 1, 3)),
        "scale": np.ones((width, 3)),
        "w1": rng.standard_normal((heads * width * 3, 2)),
        "apart": np.array([-1, width, 5]),
        "together": np.array([-1, heads * width * 3]),
    }
    model = network(steps, ("n", 3), given)
    x = np.random.default_rng(1).standard_normal((64, 3)).astype(np.float32)
    result = onnxprune.prune(model, ratio=0.5, calibration={"x": x})
    found = onnx.ModelProto.FromString(_bytes(result))
    assert [len(node.input) for node in found.graph.node if node.op_type == "Conv"] == [3]
    assert result.report.validation is not None


def test_sizes_may_be_computed_before_a_layer_and_used_behind_it() -> None:
    rng = np.random.default_rng(12)
    steps: list[Step] = [
        ("Conv", ["x", "w0"], ["h"], {}),
        ("Shape", ["x"], ["shape"], {}),
        ("Slice", ["shape", "zero", "one"], ["samples"], {}),
        ("Concat", ["samples", "rest"], ["sizes"], {"axis": 0}),
        ("Conv", ["h", "w"], ["z"], {}),
        ("Resize", ["z", "", "", "sizes"], ["wide"], {}),
        ("Conv", ["wide", "w2"], ["y"], {}),
    ]
    weights = {
        "w0": rng.standard_normal((8, 3, 1, 1)),
        "w": rng.standard_normal((5, 8, 3, 3)),
        "w2": rng.standard_normal((4, 5, 1, 1)),
        "zero": np.array([0]),
        "one": np.array([1]),
        "rest": np.array([5, 11, 11]),
    }
    x = rng.standard_normal((64, 3, 8, 8)).astype(np.float32)
    model = network(steps, ("n", 3, 8, 8), weights)
    assert error(model, x, include=["w0"]) < 0.05 < error(model, x, include=["w0"], compensate="none")


def test_products_of_two_tables_are_no_heads() -> None:
    """Pictures and texts are compared so; nothing stands in front of the rows."""
    rng = np.random.default_rng(5)
    steps: list[Step] = [
        ("MatMul", ["x", "wq"], ["q"], {}),
        ("MatMul", ["x", "wk"], ["k"], {}),
        ("FusedMatMul", ["q", "k"], ["y"], {"transB": 1, "alpha": 0.35}),
    ]
    low = rng.normal(size=(12, 4)) @ rng.normal(size=(4, 8))
    model = network(steps, ("n", 12), {"wq": rng.normal(size=(12, 8)), "wk": low})
    x = rng.normal(size=(64, 12)).astype(np.float32)
    left = error(model, x, criterion="l1", compensate="none")
    assert left > 0.03
    assert error(model, x, criterion="obs") < 0.05 * left


@pytest.mark.parametrize("both", [False, True])
def test_what_a_type_cannot_hold_is_not_taken(both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    steps: list[Step] = [
        ("Gemm", ["x", "w0", "b0"], ["h"], {}),
        ("Relu", ["h"], ["r"], {}),
        ("Gemm", ["r", "w1", "b1"], ["s"], {}),
        ("Relu", ["s"], ["y"], {}),
    ]
    weights = {"w0": rng.normal(size=(6, 12)), "b0": np.zeros(12), "w1": rng.normal(size=(12, 4)), "b1": np.ones(4)}
    model = network(steps, ("n", 6), weights)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    x = rng.normal(size=(64, 6)).astype(np.float16)

    def mended() -> np.ndarray:
        return run(onnx.ModelProto.FromString(_bytes(onnxprune.prune(model, ratio=0.5, calibration={"x": x}))), x)

    def too_large(*args: Any) -> tuple[np.ndarray, np.ndarray]:
        found, w0 = args[4:6]
        return 1e9 * w0, found[1]

    monkeypatch.setattr(compensation, "toward_activation", lambda *args: args[4][:2])
    least = mended()
    monkeypatch.setattr(compensation, "toward_activation", too_large)
    if both:
        plain = compensation.refit_safely
        monkeypatch.setattr(compensation, "refit_safely", lambda *args: (1e9 * args[2], *plain(*args)[1:]))
        assert np.isfinite(mended()).all()
    else:
        np.testing.assert_array_equal(mended(), least)


def test_biases_are_added_to_files_of_the_oldest_version() -> None:
    """Initializers have to be inputs there, so a new bias is a Constant node, which takes no other node's number."""
    rng = np.random.default_rng(7)
    steps: list[Step] = [
        ("Conv", ["x", "w0"], ["a"], {}),
        ("Relu", ["a"], ["b"], {}),
        ("Conv", ["b", "w1"], ["c"], {"group": 2}),
        ("Relu", ["c"], ["d"], {}),
        ("Conv", ["d", "w2"], ["e"], {}),
        ("GlobalAveragePool", ["e"], ["y"], {}),
    ]
    shapes = {"w0": (8, 3, 3, 3), "w1": (12, 4, 3, 3), "w2": (4, 12, 1, 1)}
    model = network(steps, ("n", 3, 12, 12), {k: rng.normal(size=s) / 3 for k, s in shapes.items()}, opset=8)
    model.ir_version = 3
    for name, shape in shapes.items():
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    x = rng.normal(size=(64, 3, 12, 12)).astype(np.float32)
    result = onnxprune.prune(model, ratio=0.5, calibration={"x": x})
    found = onnx.ModelProto.FromString(_bytes(result))
    assert found.ir_version == 3
    assert "Constant" in {node.op_type for node in found.graph.node}
    assert error(model, x) < 0.5 * error(model, x, compensate="none")
