"""Two runs of small models: sizes, contents of shape arithmetic, what is static, and what is said where one fails."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, ProviderError, RunError
from onnxprune.graph.trace import CONTENTS_LIMIT, Trace, trace

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
Inputs = dict[str, tuple[int, Sequence[int | str | None]]]


def node(op: str, reads: str, writes: str, **attributes: Any) -> onnx.NodeProto:
    """Return a node from names in one string each; `_` stands for an input left out."""
    return helper.make_node(op, ["" if n == "_" else n for n in reads.split()], writes.split(), **attributes)


def proto(
    nodes: Sequence[onnx.NodeProto],
    inputs: Inputs,
    constants: dict[str, Any] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 9,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """Return a model whose output is the last node's."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, shape) for n, (t, shape) in inputs.items()],
        [onnx.ValueInfoProto(name=nodes[-1].output[0])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, functions=functions)


def traced(
    nodes: Sequence[onnx.NodeProto], inputs: Inputs, constants: dict[str, Any] | None = None, **more: Any
) -> Trace:
    """Return the trace, after checking all it tells against onnxruntime running the plain model on the same feeds."""
    model = proto(nodes, inputs, constants, **more)
    found = trace(ir.from_proto(model))
    names = [o for n in model.graph.node for o in n.output if o and o in found.shapes]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for k in (0, 1):
        for name, value in zip(names, session.run(names, found.feeds[k]), strict=True):
            assert found.shapes[name][k] == value.shape, name
            assert found.dtypes[name] == value.dtype, name
            if name in found.values:
                np.testing.assert_array_equal(found.values[name][k], value, err_msg=name)
    return found


TABLE = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
MERGE = [  # (n, s, 8) -> (n, s * 2, 4), all sizes computed
    node("Gather", "table ids", "e"),
    node("Shape", "e", "shape"),
    node("Gather", "shape zero", "n"),
    node("Gather", "shape one", "s"),
    node("Mul", "s two", "s2"),
    node("Unsqueeze", "n axis", "n1"),
    node("Unsqueeze", "s2 axis", "s21"),
    node("Concat", "n1 s21 four", "target", axis=0),
    node("Reshape", "e target", "y"),
]
NUMBERS = {
    "table": TABLE,
    "zero": np.array(0),
    "one": np.array(1),
    "two": np.array(2),
    "axis": np.array([0]),
    "four": np.array([4]),
}


# ---------------------------------------------------------------- sizes and contents
def test_batch_and_length_differ_between_the_runs() -> None:
    found = traced(MERGE, {"ids": (INT64, ["n", "s"])}, NUMBERS)
    (n, s), (n2, s2) = found.shapes["ids"]
    assert n >= 2
    assert n != n2
    assert s != s2
    assert found.shapes["y"] == ((n, 2 * s, 4), (n2, 2 * s2, 4))
    assert found.shapes["table"] == ((40, 8), (40, 8))


def test_shape_arithmetic_is_static_with_its_contents_in_both_runs() -> None:
    found = traced(MERGE, {"ids": (INT64, ["n", "s"])}, NUMBERS)
    (n, s), (n2, s2) = found.shapes["ids"]
    assert [v.tolist() for v in found.values["target"]] == [[n, 2 * s, 4], [n2, 2 * s2, 4]]
    assert {"shape", "s2", "target", "table", "zero"} <= found.static
    assert not {"ids", "e", "y"} & found.static
    assert not {"ids", "e", "y"} & found.values.keys()
    np.testing.assert_array_equal(found.values["table"][0], TABLE)


def test_fed_ids_stay_inside_the_table() -> None:
    found = traced(MERGE, {"ids": (INT64, ["n", "s"])}, NUMBERS)
    for feed in found.feeds:
        assert feed["ids"].min() >= 0
        assert feed["ids"].max() < 40


def test_a_model_of_fixed_sizes_runs_once() -> None:
    found = traced([node("Relu", "x", "y")], {"x": (FLOAT, [2, 5])})
    assert found.shapes == {"x": ((2, 5), (2, 5)), "y": ((2, 5), (2, 5))}
    assert found.feeds[0]["x"] is found.feeds[1]["x"]


def test_a_length_fixed_by_a_table_leaves_the_batch_to_differ() -> None:
    nodes = [node("Gather", "table ids", "e"), node("Add", "e positions", "y")]
    positions = np.ones((10, 8), np.float32)
    found = traced(nodes, {"ids": (INT64, ["n", "s"])}, {"table": TABLE, "positions": positions})
    (n, s), (n2, s2) = found.shapes["ids"]
    assert (s, s2) == (10, 10)
    assert n != n2


def test_a_batch_that_must_be_one_is_found() -> None:
    found = traced([node("Squeeze", "x zero", "y")], {"x": (FLOAT, ["n", "s"])}, {"zero": np.array([0])})
    (n, s), (n2, s2) = found.shapes["x"]
    assert n == n2 == 1
    assert s != s2


def test_sizes_that_hang_together_are_varied_one_by_one() -> None:
    """`a` and `b` may be any length, `c` only 16: all together fails, and so do all lengths without the batch."""
    nodes = [node("Add", "c fixed", "c2"), node("Concat", "a b c2", "y", axis=1)]
    inputs: Inputs = {"a": (FLOAT, ["n", "a"]), "b": (FLOAT, ["n", "b"]), "c": (FLOAT, ["n", "c"])}
    found = traced(nodes, inputs, {"fixed": np.ones((1, 16), np.float32)})
    a, b, c = (tuple(x != y for x, y in zip(*found.shapes[k], strict=True)) for k in "abc")
    assert a == b == (True, True)
    assert c == (True, False)


def test_sizes_of_one_kind_are_told_apart() -> None:
    """Height and width alike in both runs would let one stand for the other."""
    found = traced([node("Transpose", "x", "y", perm=[0, 1, 3, 2])], {"x": (FLOAT, ["n", 3, "h", "w_"])})
    _, _, h, w = found.shapes["x"][1]
    assert h != w


def test_sizes_that_must_be_alike_are_so() -> None:
    found = traced([node("MatMul", "x x", "y")], {"x": (FLOAT, ["n", "h", "w_"])})
    first, second = found.shapes["x"]
    assert second[1] == second[2] != first[1]


def test_pictures_of_open_size() -> None:
    weights = {"w": np.random.default_rng(1).normal(size=(40, 3, 7, 7)).astype(np.float32)}
    nodes = [node("Conv", "x w", "c", strides=[4, 4]), node("GlobalAveragePool", "c", "y")]
    found = traced(nodes, {"x": (FLOAT, ["n", 3, "h", "w_"])}, weights)
    assert found.shapes["x"][0][2:] != found.shapes["x"][1][2:]
    assert min(found.shapes["c"][0]) > 1
    assert found.shapes["y"][0] == (found.shapes["x"][0][0], 40, 1, 1)


def test_an_attention_mask_and_tokens_run_together() -> None:
    nodes = [
        node("Gather", "table ids", "e"),
        node("Transpose", "e", "t", perm=[0, 2, 1]),
        node("MatMul", "e t", "scores"),
        node("Unsqueeze", "mask axes", "m"),
        node("Cast", "m", "visible", to=BOOL),
        node("Where", "visible scores low", "masked"),
        node("Softmax", "masked", "p", axis=-1),
        node("MatMul", "p e", "y"),
    ]
    constants = {"table": TABLE, "axes": np.array([1]), "low": np.float32(-1e9)}
    found = traced(nodes, {"ids": (INT64, ["a", "s"]), "mask": (INT64, ["b", "s"])}, constants)
    n, s = found.shapes["ids"][0]
    assert found.shapes["mask"][0] == (n, s)
    assert found.shapes["scores"][0] == (n, s, s)


# ---------------------------------------------------------------- weights
@pytest.mark.parametrize("written", ["initializer", "constant"])
def test_large_weights_count_with_their_real_values(written: str) -> None:
    """The weight is fed from outside; what is computed from it alone is known, if it is small."""
    weight = np.random.default_rng(2).normal(size=(200, 64)).astype(np.float32)
    nodes = [node("MatMul", "x w", "y"), node("Slice", "w starts ends", "head"), node("Identity", "w", "copy")]
    if written == "constant":
        nodes.insert(0, node("Constant", "", "w", value=numpy_helper.from_array(weight)))
    constants = {"starts": np.array([0]), "ends": np.array([3])} | ({"w": weight} if written == "initializer" else {})
    found = traced(nodes, {"x": (FLOAT, ["n", 200])}, constants)
    np.testing.assert_array_equal(found.values["head"][0], weight[:3])
    np.testing.assert_array_equal(found.values["w"][1], weight)
    assert {"w", "head", "copy"} <= found.static


def test_contents_end_at_the_limit() -> None:
    large = np.zeros((CONTENTS_LIMIT // 64 + 1, 64), np.float32)
    found = traced([node("MatMul", "x w", "y"), node("Abs", "w", "a")], {"x": (FLOAT, ["n", len(large)])}, {"w": large})
    assert {"w", "a"} <= found.static
    assert not {"w", "a"} & found.values.keys()
    assert found.shapes["a"][0] == large.shape


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    weight = np.random.default_rng(3).normal(size=(100, 64)).astype(np.float32)
    body = helper.make_graph([node("Add", "y b", "z")], "then", [], [onnx.ValueInfoProto(name="z")])
    body.initializer.append(numpy_helper.from_array(np.arange(64, dtype=np.float32), "b"))
    other = helper.make_graph([node("Identity", "y", "z_")], "else", [], [onnx.ValueInfoProto(name="z_")])
    nodes = [node("MatMul", "x w", "y"), node("If", "yes", "out", then_branch=body, else_branch=other)]
    model = proto(nodes, {"x": (FLOAT, ["n", 100])}, {"w": weight, "yes": np.array(True)})
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    found = trace(ir.load(path))
    assert found.shapes["out"] == ((2, 64), (3, 64))
    np.testing.assert_array_equal(found.values["w"][0], weight)


def test_more_weights_than_memory_should_hold_are_never_read(tmp_path: Path) -> None:
    """1.1 GB in a file without blocks: the run is on zeros, and says nothing about contents that follow from them."""
    rows, columns = 1 << 14, (1 << 14) + 64
    with (tmp_path / "w.data").open("wb") as file:
        file.truncate(rows * columns * 4 + 4096)
    model = proto([node("MatMul", "x w", "y"), node("Slice", "w starts ends", "head")], {"x": (FLOAT, ["n", rows])})
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array([k, k]), n) for k, n in enumerate(["starts", "ends"])
    )
    weight = onnx.TensorProto(name="w", data_type=FLOAT, dims=[rows, columns], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.data")
    weight.external_data.add(key="offset", value="4096")
    model.graph.initializer.append(weight)
    del model.graph.output[:]
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = trace(ir.load(tmp_path / "m.onnx"))
    assert found.shapes["y"][0] == (2, columns)
    assert "head" in found.static
    assert "head" not in found.values


def test_zeros_in_the_place_of_weights_take_the_memory_of_the_largest(tmp_path: Path) -> None:
    rows, columns = 1 << 13, 1 << 13
    with (tmp_path / "w.data").open("wb") as file:
        file.truncate(rows * columns * 4)
    nodes = [node("MatMul", f"x w{k}", f"y{k}") for k in range(5)]
    model = proto(nodes, {"x": (FLOAT, ["n", rows])})
    for k in range(5):
        weight = onnx.TensorProto(name=f"w{k}", data_type=FLOAT, dims=[rows, columns])
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="w.data")
        model.graph.initializer.append(weight)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    tracemalloc.start()
    try:
        assert trace(ir.load(tmp_path / "m.onnx")).shapes["y4"][0] == (2, columns)
        assert rows * columns * 4 < tracemalloc.get_traced_memory()[1] < 2 * rows * columns * 4
    finally:
        tracemalloc.stop()


def test_half_precision() -> None:
    weight = np.random.default_rng(4).normal(size=(80, 64)).astype(np.float16)
    found = traced([node("MatMul", "x w", "y")], {"x": (TensorProto.FLOAT16, ["n", 80])}, {"w": weight})
    assert found.dtypes["y"] == np.float16


def test_bfloat16_tables_come_with_their_contents() -> None:
    nodes = [node("Cast", "t", "b", to=TensorProto.BFLOAT16), node("Cast", "b", "f", to=FLOAT), node("Mul", "x f", "y")]
    model = proto(nodes, {"x": (FLOAT, ["n", 3])}, {"t": np.array([1, 2.5, -3], np.float32)})
    found = trace(ir.from_proto(model))
    assert str(found.dtypes["b"]) == "bfloat16"
    assert found.values["b"][0].astype(np.float32).tolist() == [1, 2.5, -3]


def test_old_models_list_their_weights_among_the_inputs() -> None:
    weight = np.random.default_rng(5).normal(size=(80, 64)).astype(np.float32)
    inputs: Inputs = {"x": (FLOAT, ["n", 80]), "w": (FLOAT, [80, 64])}
    found = traced([node("MatMul", "x w", "y")], inputs, {"w": weight}, opset=8, ir_version=3)
    assert list(found.feeds[0]) == ["x"]
    assert "w" in found.static


# ---------------------------------------------------------------- other types, names, graphs
def test_sequences_are_left_out_and_what_comes_out_of_them_is_not() -> None:
    nodes = [
        node("SplitToSequence", "x", "parts", axis=1),
        node("ConcatFromSequence", "parts", "z", axis=1),
        node("Relu", "z", "y"),
    ]
    found = traced(nodes, {"x": (FLOAT, ["n", 4])})
    assert "parts" not in found.shapes
    assert {"z", "y"} <= found.shapes.keys()


def test_operators_that_only_onnxruntime_knows_are_traced() -> None:
    nodes = [node("FusedMatMul", "x w", "z", domain="com.microsoft", alpha=0.5), node("Relu", "z", "y")]
    found = traced(nodes, {"x": (FLOAT, ["n", 4])}, {"w": np.ones((4, 6), np.float32)}, domains=["com.microsoft"])
    assert found.shapes["y"][0] == (2, 6)


def test_a_local_function_is_traced_at_its_call() -> None:
    function = helper.make_function(
        "my",
        "SizeOf",
        ["a"],
        ["size", "twice"],
        [node("Shape", "a", "size"), node("Add", "a a", "twice")],
        [helper.make_opsetid("", 17)],
    )
    nodes = [node("SizeOf", "x", "size twice", domain="my"), node("Reshape", "twice size", "y")]
    found = traced(nodes, {"x": (FLOAT, ["n", 4])}, functions=[function], domains=["my"])
    assert "size" in found.static
    assert not {"twice", "y"} & found.static
    assert found.values["size"][1].tolist() == list(found.shapes["x"][1])


def test_names_of_the_probes_never_meet_names_of_the_model() -> None:
    names = [f"onnxprune_probe_{k}" for k in range(3)]
    nodes = [node("Relu", "x", names[2]), node("Abs", names[2], names[1]), node("Shape", names[1], names[0])]
    found = traced(nodes, {"x": (FLOAT, ["n", 4])})
    assert found.values[names[0]][0].tolist() == [2, 4]


def test_outputs_without_a_name_are_no_values() -> None:
    found = traced([helper.make_node("Dropout", ["x"], ["y", ""])], {"x": (FLOAT, ["n", 4])})
    assert set(found.shapes) == {"x", "y"}


# ---------------------------------------------------------------- static
def test_random_numbers_are_not_static() -> None:
    nodes = [node("RandomNormal", "", "noise", shape=[4]), node("Add", "x noise", "y"), node("Shape", "noise", "s")]
    found = trace(ir.from_proto(proto(nodes, {"x": (FLOAT, ["n", 4])})))
    assert "noise" not in found.static
    assert "noise" not in found.values
    assert found.values["s"][0].tolist() == [4]


def test_sizes_read_off_the_data_are_not_static() -> None:
    """The number of entries that are not zero is a size, but one that the next input changes."""
    nodes = [
        node("Relu", "x", "r"),
        node("NonZero", "r", "where"),
        node("Shape", "where", "found"),
        node("ConstantOfShape", "found", "filled"),
        node("Shape", "filled", "again"),
        node("Shape", "r", "size"),
    ]
    found = traced(nodes, {"x": (FLOAT, [3, 4])})
    assert not {"where", "found", "filled", "again"} & found.static
    assert not {"where", "found", "filled", "again"} & found.values.keys()
    assert "size" in found.static
    assert found.shapes["where"][0] != found.shapes["where"][1]


def branches(then: Sequence[onnx.NodeProto], otherwise: Sequence[onnx.NodeProto]) -> dict[str, onnx.GraphProto]:
    return {
        key: helper.make_graph(nodes, key, [], [onnx.ValueInfoProto(name=nodes[-1].output[0])])
        for key, nodes in (("then_branch", then), ("else_branch", otherwise))
    }


def test_an_if_decided_by_sizes_keeps_sizes_static() -> None:
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape one", "width"),
        node("Equal", "width one", "thin"),
        node("If", "thin", "z", **branches([node("Squeeze", "x one1", "a")], [node("Identity", "x", "b")])),
        node("Shape", "z", "size"),
    ]
    found = traced(nodes, {"x": (FLOAT, ["n", "w"])}, {"one": np.array(1), "one1": np.array([1])})
    assert {"thin", "size"} <= found.static
    assert "z" not in found.static


def test_an_if_decided_by_data_makes_sizes_unsteady() -> None:
    nodes = [
        node("ReduceMax", "x", "top", keepdims=0),
        node("Greater", "top zero", "any"),
        node("If", "any", "z", **branches([node("Concat", "x x", "a", axis=1)], [node("Identity", "x", "b")])),
        node("Shape", "z", "size"),
    ]
    found = traced(nodes, {"x": (FLOAT, ["n", 4])}, {"zero": np.float32(0)})
    assert not {"any", "z", "size"} & found.static


def test_same_seed_same_trace() -> None:
    model = ir.from_proto(proto(MERGE, {"ids": (INT64, ["n", "s"])}, NUMBERS))
    a, b, c = trace(model, seed=1), trace(model, seed=1), trace(model, seed=2)
    assert a.shapes == b.shapes == c.shapes
    np.testing.assert_array_equal(a.feeds[1]["ids"], b.feeds[1]["ids"])
    assert not np.array_equal(a.feeds[0]["ids"], c.feeds[0]["ids"])


# ---------------------------------------------------------------- failing
def test_no_size_that_works_is_said_with_onnxruntimes_reason() -> None:
    model = proto([node("Reshape", "x target", "y")], {"x": (FLOAT, ["n", 3])}, {"target": np.array([7, 11])})
    with pytest.raises(ModelError, match=r"none of the \d+ input sizes.*'x' \[2, 3\].*cannot be reshaped") as caught:
        trace(ir.from_proto(model))
    assert "\n" not in str(caught.value)
    assert "onnxruntime_src" not in str(caught.value)


def test_an_operator_that_nobody_knows_is_a_matter_of_the_runtime() -> None:
    model = proto([node("Foo", "x", "y", domain="my")], {"x": (FLOAT, [1])}, domains=["my"])
    with pytest.raises(ProviderError, match=r"my:Foo.*not a registered"):
        trace(ir.from_proto(model))


def test_types_that_do_not_fit_are_a_matter_of_the_model() -> None:
    model = proto([node("Add", "x i", "y")], {"x": (FLOAT, [1]), "i": (INT64, [1])})
    with pytest.raises(ModelError, match="Add"):
        trace(ir.from_proto(model))


def test_a_missing_provider_is_named() -> None:
    model = proto([node("Relu", "x", "y")], {"x": (FLOAT, [1])})
    with pytest.raises(ProviderError, match=r"NoSuchExecutionProvider.*CPUExecutionProvider"):
        trace(ir.from_proto(model), providers=("NoSuchExecutionProvider",))


@pytest.mark.parametrize(
    ("op", "reads", "amount"),
    [
        ("ConstantOfShape", "amount", np.array([1 << 40])),
        ("Expand", "x amount", np.array([1 << 38, 4])),
        ("Tile", "x amount", np.array([1 << 34, 1])),
        ("Resize", "x _ amount", np.array([1e6, 1e6], np.float32)),
    ],
)
def test_bombs_are_an_error_of_the_model(op: str, reads: str, amount: np.ndarray) -> None:
    model = proto([node(op, reads, "y")], {"x": (FLOAT, [1, 4])}, {"amount": amount})
    with pytest.raises(ModelError, match="bytes"):
        trace(ir.from_proto(model))


def test_a_loop_without_end_is_stopped() -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "c", "c2"), node("Add", "a a", "a2")],
        "body",
        [value("i", INT64, []), value("c", BOOL, []), value("a", FLOAT, [1])],
        [value("c2", BOOL, []), value("a2", FLOAT, [1])],
    )
    model = proto(
        [node("Loop", "n yes x", "y", body=body)], {"x": (FLOAT, [1])}, {"n": np.array(1 << 62), "yes": np.array(True)}
    )
    with pytest.raises(RunError, match="longer than the timeout"):
        trace(ir.from_proto(model), timeout=0.3)
