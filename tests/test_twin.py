"""Layers that read their weights otherwise than they are held are refitted like others: quantized, turned, cast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune

INPUTS, MIDDLE, OUTPUTS = 3, 8, 5
MS = "com.microsoft"
STEP, H_SCALE = np.float32(0.02), np.float32(0.12)


def constants_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], rank: int) -> onnx.ModelProto:
    """Returns `x` -> eight channels `h`, which three inputs tell, in 8 bits -> these nodes -> `y`."""
    rng = np.random.default_rng(3)
    first = rng.standard_normal((MIDDLE, INPUTS) + (1, 1) * (rank == 4)).astype(np.float32)
    start = (
        helper.make_node("Conv", ["x", "first"], ["h"])
        if rank == 4
        else helper.make_node("Gemm", ["x", "first"], ["h"], transB=1)
    )
    steps = [
        start,
        helper.make_node("QuantizeLinear", ["h", "h_scale", "h_zero"], ["h_q"]),
        helper.make_node("DequantizeLinear", ["h_q", "h_scale", "h_zero"], ["h_real"]),
        *nodes,
    ]
    given = {"first": first, "h_scale": H_SCALE, "h_zero": np.uint8(128), **constants}
    graph = helper.make_graph(
        steps,
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS, 9, 9] if rank == 4 else ["n", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(c), name) for name, c in given.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def weights(*shape: int, most: int = 127, zero: int = 0, dtype: str = "int8") -> np.ndarray:
    return (np.random.default_rng(4).integers(-most, most + 1, shape) + zero).astype(dtype)


def layers() -> dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], int]]:
    """Returns nodes that read `h_real`, their constants, and the rank of the activations."""
    plain = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"], axis=0),
        helper.make_node("Conv", ["h_real", "w_real"], ["y"]),
    ]
    turned = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"], axis=1),
        helper.make_node("MatMul", ["h_real", "w_real"], ["y"]),
    ]
    biased = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "b_scale", "b_zero"], ["b_real"], axis=0),
        helper.make_node("Conv", ["h_real", "w_real", "b_real"], ["y"]),
    ]
    simulated = [
        helper.make_node("QuantizeLinear", ["w", "w_scale", "w_zero"], ["w_q"], axis=0),
        helper.make_node("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w_real"], axis=0),
        helper.make_node("Conv", ["h_real", "w_real"], ["y"]),
    ]
    spread = np.random.default_rng(5).uniform(0.5, 2, OUTPUTS).astype(np.float32) * STEP
    square = (OUTPUTS, MIDDLE, 3, 3)
    one = {"w_scale": STEP, "w_zero": np.int8(0)}
    each = {"w_scale": spread, "w_zero": np.zeros(OUTPUTS, np.int8)}
    bias = {
        "b": np.random.default_rng(6).integers(-2000, 2000, OUTPUTS).astype(np.int32),
        "b_scale": H_SCALE * spread,
        "b_zero": np.zeros(OUTPUTS, np.int32),
    }
    return {
        "one scale": (plain, {"w": weights(*square), **one}, 4),
        "a scale for each output": (biased, {"w": weights(*square), **each, **bias}, 4),
        "unsigned": (
            turned,
            {"w": weights(MIDDLE, OUTPUTS, zero=128, dtype="uint8"), "w_scale": STEP, "w_zero": np.uint8(128)},
            2,
        ),
        "seven bits": (biased, {"w": weights(*square, most=63), **each, **bias}, 4),
        "sixteen bits": (
            plain,
            {"w": weights(*square, dtype="int16", most=3000), "w_scale": STEP / 20, "w_zero": np.int16(0)},
            4,
        ),
        "simulated": (simulated, {"w": weights(*square).astype(np.float32) * STEP, **one}, 4),
        "dynamic": (dynamic("MatMulInteger"), {"w": weights(MIDDLE, OUTPUTS, most=63), **each, **offset()}, 2),
        "dynamic convolution": (dynamic("ConvInteger"), {"w": weights(*square), **one, **offset(1, 1)}, 4),
        **laid_out(),
        **rounding(),
    }


def rounding() -> dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], int]]:
    """Returns layers that take integers and round what they make to integers."""
    given = ["h_q", "h_scale", "h_zero", "w", "w_scale", "w_zero"]
    made, last = ["y_scale", "y_zero"], helper.make_node("DequantizeLinear", ["y_q", "y_scale", "y_zero"], ["y"])
    numbers = {"w_scale": STEP, "w_zero": np.int8(0), "y_scale": np.float32(0.2), "y_zero": np.uint8(120)}
    each = {"w_scale": np.linspace(0.01, 0.03, OUTPUTS, dtype=np.float32), "w_zero": np.zeros(OUTPUTS, np.int8)}
    bias = {"b": np.random.default_rng(6).integers(-900, 900, OUTPUTS).astype(np.int32)}
    flat = {"w": weights(MIDDLE, OUTPUTS, most=63), **numbers}  # more than 7 bits overflow on some processors
    return {
        "QLinearConv": (
            [helper.make_node("QLinearConv", [*given, *made], ["y_q"], strides=[2, 2]), last],
            {"w": weights(OUTPUTS, MIDDLE, 1, 1, most=63), **numbers},
            4,
        ),
        "QLinearConv, a scale for each output": (
            [helper.make_node("QLinearConv", [*given, *made, "b"], ["y_q"]), last],
            {"w": weights(OUTPUTS, MIDDLE, 1, 1, most=63), **numbers, **each, **bias},
            4,
        ),
        "QLinearMatMul": ([helper.make_node("QLinearMatMul", [*given, *made], ["y_q"]), last], flat, 2),
        "QGemm": ([helper.make_node("QGemm", [*given, "b", *made], ["y_q"], domain=MS), last], {**flat, **bias}, 2),
        "QGemm that gives real numbers": ([helper.make_node("QGemm", [*given, "b"], ["y"], domain=MS)], flat | bias, 2),
    }


def offset(*more: int) -> dict[str, np.ndarray]:
    return {"offset": np.random.default_rng(8).standard_normal((OUTPUTS, *more)).astype(np.float32)}


def dynamic(op: str) -> list[onnx.NodeProto]:
    """Returns a product as onnxruntime's dynamic quantization writes it, with a bias."""
    return [
        helper.make_node("DynamicQuantizeLinear", ["h_real"], ["d", "d_scale", "d_zero"]),
        helper.make_node("Mul", ["d_scale", "w_scale"], ["scales"]),
        helper.make_node(op, ["d", "w", "d_zero", "w_zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["cast", "scales"], ["product"]),
        helper.make_node("Add", ["product", "offset"], ["y"]),
    ]


def laid_out() -> dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], int]]:
    """Returns layers whose weights or biases other nodes turn, cast, or give another shape first."""
    real = weights(OUTPUTS, MIDDLE).astype(np.float32) * STEP
    conv = real.reshape(OUTPUTS, MIDDLE, 1, 1)
    quantized = {"w_scale": STEP, "w_zero": np.int8(0)}
    return {
        "turned": (
            [helper.make_node("Transpose", ["w"], ["v"]), helper.make_node("MatMul", ["h_real", "v"], ["y"])],
            {"w": real},
            2,
        ),
        "cast": (
            [
                helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT),
                helper.make_node("Conv", ["h_real", "v"], ["y"]),
            ],
            {"w": conv.astype(np.float16)},
            4,
        ),
        "copied, with a bias in another shape": (
            [
                helper.make_node("Identity", ["w"], ["v"]),
                helper.make_node("Reshape", ["b", "channels"], ["c"]),
                helper.make_node("Conv", ["h_real", "v"], ["z"]),
                helper.make_node("Add", ["z", "c"], ["y"]),
            ],
            {"w": conv, "b": real[:, 0], "channels": np.array([1, -1, 1, 1])},
            4,
        ),
        "put together from two, in another order": (
            [
                helper.make_node("Slice", ["w", "three", "eight"], ["last"]),
                helper.make_node("Slice", ["w", "none", "three"], ["first_ones"]),
                helper.make_node("Concat", ["last", "first_ones", "more"], ["v"], axis=0),
                helper.make_node("MatMul", ["h_real", "v"], ["y"]),
            ],
            {"w": real.T[:6].copy(), "more": real.T[6:].copy()}
            | {"none": np.array([0]), "three": np.array([3]), "eight": np.array([8])},
            2,
        ),
        "turned integers": (
            [
                helper.make_node("Transpose", ["w"], ["v"]),
                helper.make_node("DequantizeLinear", ["v", "w_scale", "w_zero"], ["w_real"]),
                helper.make_node("MatMul", ["h_real", "w_real"], ["y"]),
            ],
            {"w": weights(OUTPUTS, MIDDLE), **quantized},
            2,
        ),
        "turned behind integers": (
            [
                helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"]),
                helper.make_node("Transpose", ["w_real"], ["v"]),
                helper.make_node("MatMul", ["h_real", "v"], ["y"]),
            ],
            {"w": weights(OUTPUTS, MIDDLE), **quantized},
            2,
        ),
    }


def run(model: onnx.ModelProto | Path, x: np.ndarray) -> np.ndarray:
    given = model if isinstance(model, Path) else model.SerializeToString()
    return np.asarray(ort.InferenceSession(given, providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0])


def pruned(model: onnx.ModelProto, x: np.ndarray, out: Path, **options: Any) -> tuple[onnx.ModelProto, float]:
    """Returns the model with half the channels, and the relative error of its outputs on other inputs."""
    half = len(x) // 2
    onnxprune.prune(model, ratio=0.5, calibration={"x": x[:half]}, output=out, **options)
    dense = run(model, x[half:])
    return onnx.load(out), float(np.linalg.norm(run(out, x[half:]) - dense) / np.linalg.norm(dense - dense.mean(0)))


def inputs(rank: int) -> np.ndarray:
    shape = (64, INPUTS, 9, 9) if rank == 4 else (512, INPUTS)
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", layers())
def test_a_layer_makes_up_for_channels_that_the_others_tell(name: str, tmp_path: Path) -> None:
    nodes, constants, rank = layers()[name]
    model, x = model_of(nodes, constants, rank), inputs(rank)
    _, left = pruned(model, x, tmp_path / "left.onnx", compensate="none")
    found, mended = pruned(model, x, tmp_path / "mended.onnx")
    assert left > 0.2
    assert mended < 0.05
    now = constants_of(found)
    assert now["w"].dtype == constants["w"].dtype
    sizes = [sum(content[name].size for name in ("w", "more") if name in content) for content in (now, constants)]
    assert sizes[0] == sizes[1] // 2


@pytest.mark.parametrize("name", ["a scale for each output", "seven bits"])
def test_scales_keep_what_runtimes_take_for_granted(name: str, tmp_path: Path) -> None:
    nodes, constants, rank = layers()[name]
    model, _ = pruned(model_of(nodes, constants, rank), inputs(rank), tmp_path / "out.onnx")
    now = constants_of(model)
    assert np.abs(now["w"].astype(int)).max() <= np.abs(constants["w"].astype(int)).max()
    assert (now["w_scale"] >= constants["w_scale"]).all()
    assert (now["w_scale"] > constants["w_scale"]).any()
    np.testing.assert_allclose(now["b_scale"], now["h_scale"] * now["w_scale"], rtol=1e-6)
    assert now["b"].dtype == np.int32
    assert [n.op_type for n in model.graph.node] == ["Conv", "QuantizeLinear", *["DequantizeLinear"] * 3, "Conv"]


def test_what_a_layer_rounds_to_stays(tmp_path: Path) -> None:
    nodes, constants, rank = rounding()["QLinearConv, a scale for each output"]
    model, _ = pruned(model_of(nodes, constants, rank), inputs(rank), tmp_path / "out.onnx")
    now = constants_of(model)
    assert [n.op_type for n in model.graph.node] == [
        *("Conv", "QuantizeLinear", "DequantizeLinear", "QLinearConv", "DequantizeLinear")
    ]
    assert not model.functions
    assert (now["w_scale"] >= constants["w_scale"]).all()
    assert (now["y_scale"], now["y_zero"], now["b"].dtype) == (constants["y_scale"], constants["y_zero"], np.int32)


@pytest.mark.parametrize("how", ["shared bias", "scales computed", "weights read twice"])
def test_layers_that_round_and_cannot_be_written_are_left_alone(how: str, tmp_path: Path) -> None:
    nodes, constants, rank = rounding()["QLinearConv, a scale for each output"]
    layer, last = nodes[0], nodes[1]
    if how == "scales computed":
        layer.input[4] = "scales"
        nodes = [helper.make_node("Abs", ["w_scale"], ["scales"]), layer, last]
    else:
        other = onnx.NodeProto()
        other.CopyFrom(layer)
        other.output[0], twice = "z_q", {"shared bias": "w", "weights read twice": "b"}[how]
        other.input[{"w": 3, "b": 8}[twice]] = "of_its_own"
        constants["of_its_own"] = constants[twice] // 2
        sum_ = ["y_q", "y_scale", "y_zero", "z_q", "y_scale", "y_zero", "y_scale", "y_zero"]
        last = helper.make_node("DequantizeLinear", ["sum", "y_scale", "y_zero"], ["y"])
        nodes = [layer, other, helper.make_node("QLinearAdd", sum_, ["sum"], domain=MS), last]
    model, x = model_of(nodes, constants, rank), inputs(rank)
    found, _ = pruned(model, x, tmp_path / "out.onnx", criterion="l1")
    left, _ = pruned(model, x, tmp_path / "left.onnx", criterion="l1", compensate="none")
    np.testing.assert_array_equal(constants_of(found)["w"], constants_of(left)["w"])


def test_what_weights_of_four_bits_cost_can_be_measured(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["h_real", "across"], ["z"]),
        helper.make_node("Relu", ["z"], ["bent"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["w_real"], axis=0, block_size=2),
        helper.make_node("MatMul", ["bent", "w_real"], ["y"]),
    ]
    rng = np.random.default_rng(10)
    constants = {
        "across": rng.standard_normal((MIDDLE, 6)).astype(np.float32),
        "w": rng.integers(-8, 8, (6, OUTPUTS)).astype(ml_dtypes.int4),
        "w_scale": rng.uniform(0.1, 0.2, (3, OUTPUTS)).astype(np.float32),
    }
    model, x = model_of(nodes, constants, 2), inputs(2)
    out = tmp_path / "out.onnx"
    result = onnxprune.prune(model, target={"macs": 0.7}, calibration={"x": x}, output=out)
    assert result.report.macs.after <= 0.7 * result.report.macs.before
    assert constants_of(onnx.load(out))["w"].dtype == ml_dtypes.int4


def test_a_scale_that_something_else_reads_stays(tmp_path: Path) -> None:
    nodes, constants, rank = layers()["one scale"]
    more = [
        *nodes[:-1],
        helper.make_node("Conv", ["h_real", "w_real"], ["z"]),
        helper.make_node("Mul", ["z", "w_scale"], ["y"]),
    ]
    model, error = pruned(model_of(more, constants, rank), inputs(rank), tmp_path / "out.onnx")
    assert constants_of(model)["w_scale"] == STEP
    assert error < 0.3


def test_a_bias_with_a_zero_point_for_each_entry_is_cut_as_integers(tmp_path: Path) -> None:
    nodes, constants, rank = layers()["a scale for each output"]
    after = [
        *nodes[:-1],
        helper.make_node("Conv", ["h_real", "w_real", "b_real"], ["z"]),
        helper.make_node("Conv", ["z", "last"], ["y"]),
    ]
    last = np.random.default_rng(8).standard_normal((2, OUTPUTS, 1, 1)).astype(np.float32)
    model = model_of(after, {**constants, "last": last}, rank)
    found, _ = pruned(model, inputs(rank), tmp_path / "out.onnx")
    now = constants_of(found)
    assert now["b"].dtype == np.int32
    assert (
        now["b"].shape
        == now["b_zero"].shape
        == now["b_scale"].shape
        == (now["w"].shape[0],)
        == (OUTPUTS - OUTPUTS // 2,)
    )


def test_layers_of_a_local_function_are_refitted_and_get_no_new_inputs(tmp_path: Path) -> None:
    """Constants that are given to a function can be changed, but a node in it can't get a bias."""
    w = np.random.default_rng(9).standard_normal((OUTPUTS, MIDDLE, 1, 1)).astype(np.float32)
    model = model_of([helper.make_node("layer", ["h_real", "w"], ["y"], domain="own")], {"w": w}, 4)
    imports = [helper.make_opsetid("", 21)]
    body = [helper.make_node("Conv", ["a", "weight"], ["b"])]
    model.functions.append(helper.make_function("own", "layer", ["a", "weight"], ["b"], body, imports))
    model.opset_import.append(helper.make_opsetid("own", 1))
    found, mended = pruned(model, inputs(4), tmp_path / "out.onnx")
    assert mended < 0.05
    assert list(found.functions[0].input) == ["a", "weight"]
    assert constants_of(found)["w"].shape == (OUTPUTS, MIDDLE // 2, 1, 1)


def shared(copied: bool) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """Returns two convolutions at different strides with one weight and one bias, as heads over a pyramid have."""
    w, b = ("w_copy", "b_copy") if copied else ("w", "b")
    nodes = [
        *([helper.make_node("Identity", [x], [f"{x}_copy"]) for x in "wb"] if copied else []),
        helper.make_node("Conv", ["h_real", "w", "b"], ["fine"]),
        helper.make_node("Conv", ["h_real", w, b], ["coarse"], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["fine"], ["fine_mean"]),
        helper.make_node("GlobalMaxPool", ["coarse"], ["coarse_most"]),
        helper.make_node("Concat", ["fine_mean", "coarse_most"], ["y"], axis=1),
    ]
    rng = np.random.default_rng(10)
    square = rng.standard_normal((OUTPUTS, MIDDLE, 3, 3)).astype(np.float32)
    return nodes, {"w": square, "b": rng.standard_normal(OUTPUTS).astype(np.float32)}


@pytest.mark.parametrize("copied", [False, True])
def test_weights_that_several_nodes_read_are_refitted_for_all_of_them(copied: bool, tmp_path: Path) -> None:
    model, x = model_of(*shared(copied), 4), inputs(4)
    _, left = pruned(model, x, tmp_path / "left.onnx", compensate="none")
    found, mended = pruned(model, x, tmp_path / "mended.onnx")
    assert left > 0.2
    assert mended < 0.05
    assert sorted(constants_of(found)) == sorted(constants_of(model))
    assert constants_of(found)["w"].shape == (OUTPUTS, MIDDLE // 2, 3, 3)


def test_a_weight_that_something_else_reads_too_is_left_as_it_is(tmp_path: Path) -> None:
    nodes, constants = shared(copied=False)
    more = [
        *nodes[:-1],
        helper.make_node("ReduceSum", ["w"], ["sum"]),
        helper.make_node("Concat", ["fine_mean", "coarse_most"], ["both"], axis=1),
        helper.make_node("Add", ["both", "sum"], ["y"]),
    ]
    found, _ = pruned(model_of(more, constants, 4), inputs(4), tmp_path / "out.onnx")
    assert constants_of(found)["w"].shape == (OUTPUTS, MIDDLE // 2, 3, 3)
    assert np.isin(constants_of(found)["w"], constants["w"]).all()


def test_a_weight_that_is_read_both_ways_round_is_left_as_it_is(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["h_real", "w"], ["code"]),
        helper.make_node("Gemm", ["code", "w"], ["y"], transB=1),
    ]
    w = np.random.default_rng(11).standard_normal((MIDDLE, OUTPUTS)).astype(np.float32)
    found, _ = pruned(model_of(nodes, {"w": w}, 2), inputs(2), tmp_path / "out.onnx")
    assert np.isin(constants_of(found)["w"], w).all()
