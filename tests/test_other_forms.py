"""Trained models keep what they know whatever form their weights are stored in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import onnxprune

MODELS = Path(__file__).resolve().parent.parent / "models"
PRODUCTS = {"Conv", "Gemm", "MatMul"}
LOST = 12  # of 600 pictures
SEEDS = 6  # of 8-bit weights: what rounding makes of them differs from seed to seed, and between processors


def rewritten(
    model: onnx.ModelProto, form: Callable[[np.ndarray, str], tuple[np.ndarray, onnx.NodeProto]]
) -> onnx.ModelProto:
    """Returns the model with another constant and a node between it and its layer, for every weight read once."""
    tensors = {t.name: t for t in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    for node in [n for n in model.graph.node if n.op_type in PRODUCTS]:
        name = node.input[1]
        if name not in tensors or readers[name] > 1:
            continue
        content, between = form(numpy_helper.to_array(tensors[name]), name)
        tensors[name].CopyFrom(numpy_helper.from_array(content, name))
        node.input[1] = between.output[0]
        model.graph.node.insert(0, between)
    return model


def cast(content: np.ndarray, name: str) -> tuple[np.ndarray, onnx.NodeProto]:
    return content.astype(np.float16), helper.make_node("Cast", [name], [f"{name}_read"], to=TensorProto.FLOAT)


def copied(content: np.ndarray, name: str) -> tuple[np.ndarray, onnx.NodeProto]:
    return content, helper.make_node("Identity", [name], [f"{name}_read"])


def turned(content: np.ndarray, name: str) -> tuple[np.ndarray, onnx.NodeProto]:
    axes = list(range(content.ndim))[::-1]
    return content.T.copy(), helper.make_node("Transpose", [name], [f"{name}_read"], perm=axes)


def normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with weights as their lengths times their directions, as weight normalisation has them."""
    rows = helper.make_attribute("axes", [1, 2, 3])
    for k, node in enumerate([n for n in model.graph.node if n.op_type == "Conv"]):
        name = node.input[1]
        held = next(t for t in model.graph.initializer if t.name == name)
        length = np.linalg.norm(numpy_helper.to_array(held).reshape(held.dims[0], -1), axis=1).reshape(-1, 1, 1, 1)
        model.graph.initializer.append(numpy_helper.from_array(length.astype(np.float32), f"gain{k}"))
        measure = helper.make_node("ReduceL2", [name], [f"length{k}"])
        measure.attribute.append(rows)
        steps = [
            measure,
            helper.make_node("Div", [name, f"length{k}"], [f"even{k}"]),
            helper.make_node("Mul", [f"even{k}", f"gain{k}"], [f"ready{k}"]),
        ]
        node.input[1] = f"ready{k}"
        for step in reversed(steps):
            model.graph.node.insert(0, step)
    return model


def in_a_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model as one call of a local function that is given all weights."""
    graph = model.graph
    inputs = [graph.input[0].name, *(t.name for t in graph.initializer)]
    outputs = [graph.output[0].name]
    model.functions.append(helper.make_function("own", "net", inputs, outputs, graph.node, model.opset_import))
    del graph.node[:]
    del graph.value_info[:]
    graph.node.append(helper.make_node("net", inputs, outputs, domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def right(model: Path) -> int:
    """Returns how many of the 600 test pictures a model gets right."""
    data = np.load(MODELS / "digits_test.npz")
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return int((session.run(None, {"input": data["input"]})[0].argmax(1) == data["labels"]).sum())


def kept(model: onnx.ModelProto | Path, folder: Path, seed: int = 0) -> int:
    """Returns how many pictures a model gets right with three tenths of its units gone."""
    out = folder / "pruned.onnx"
    onnxprune.prune(model, ratio=0.3, calibration=MODELS / "digits.npz", output=out, seed=seed)
    return right(out)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "name"), [(cast, "cnn"), (cast, "vit"), (copied, "cnn"), (turned, "mobilenet")])
def test_weights_that_a_node_makes_are_mended(
    form: Callable[[np.ndarray, str], tuple[np.ndarray, onnx.NodeProto]], name: str, tmp_path: Path
) -> None:
    path = MODELS / f"digits_{name}.onnx"
    assert kept(rewritten(onnx.load(path), form), tmp_path) >= right(path) - LOST


@pytest.mark.slow
def test_normalised_weights_are_mended(tmp_path: Path) -> None:
    path = MODELS / "digits_cnn.onnx"
    assert kept(normalised(onnx.load(path)), tmp_path) >= right(path) - LOST


@pytest.mark.slow
def test_weights_that_a_function_is_given_are_mended(tmp_path: Path) -> None:
    path = MODELS / "digits_resnet.onnx"
    assert kept(in_a_function(onnx.load(path)), tmp_path) >= right(path) - LOST


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")  # onnxruntime's quantizer warns of its own doings
def test_dynamically_quantized_weights_are_mended(tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    quantize_dynamic(MODELS / "digits_cnn.onnx", small, weight_type=QuantType.QUInt8)
    assert kept(small, tmp_path) >= right(small) - LOST


class Batches(CalibrationDataReader):
    """The calibration pictures, sixty-four at a time."""

    def __init__(self) -> None:
        x = np.load(MODELS / "digits.npz")["input"]
        self.batches = iter([{"input": x[k : k + 64]} for k in range(0, 256, 64)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("form", [QuantFormat.QOperator, QuantFormat.QDQ])
def test_statically_quantized_weights_are_mended(form: QuantFormat, tmp_path: Path) -> None:
    small = tmp_path / "small.onnx"
    quantize_static(MODELS / "digits_mobilenet.onnx", small, Batches(), quant_format=form)
    found = [kept(small, tmp_path, seed) for seed in range(SEEDS)]
    print(f"{form}: {right(small)} right, kept {found}")
    assert np.mean(found) >= right(small) - LOST
