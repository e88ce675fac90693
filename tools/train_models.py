"""Trains the small models under models/ and writes them, their data and the table of models/README.md.

    python tools/train_models.py            all of them
    python tools/train_models.py vit lstm   these

Needs the `models` extra. The same machine and the same packages give the same bytes again.
"""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import digit_nets
import digits
import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper
from skl2onnx import to_onnx
from skl2onnx.helpers.onnx_helper import select_model_inputs_outputs
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from digits import Digits

FOLDER = Path(__file__).resolve().parent.parent / "models"
MAX_BYTES = 1_000_000
STACK_TRACE = "pkg.torch.onnx.stack_trace"
SOURCE_PATH = re.compile(rb"(?:/[\w.+-]+){2,}\.py\b")


def mlp(data: Digits) -> onnx.ModelProto:
    """Returns scikit-learn's MLPClassifier, 64-256-128-10, as skl2onnx writes it, with a Flatten in front.

    scikit-learn takes rows of 64 pixels; the Flatten gives this model the input of all the others. Of skl2onnx's two
    outputs, the label and the probabilities, only the second is kept.
    """
    net = MLPClassifier((256, 128), alpha=1e-2, random_state=digits.SEED)
    with threadpool_limits(1):
        net.fit(data.train.reshape(len(data.train), -1), data.train_labels)
    rows = np.zeros((1, 64), np.float32)
    model = to_onnx(net, rows, name="digits_mlp", target_opset=17, options={"zipmap": False})
    _, probabilities = model.graph.output
    model = select_model_inputs_outputs(model, [probabilities.name])
    model.graph.output[0].CopyFrom(probabilities)  # select_model_inputs_outputs loses its type
    return without_unused_initializers(with_flatten(model))


def cnn(data: Digits) -> onnx.ModelProto:
    """Returns the CNN with its BatchNormalization nodes left in, in inference mode."""
    net = digits.train(digit_nets.cnn(), data)
    model = torchscript(net, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False)
    left = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if len(left) != 4 or any(attribute.name == "training_mode" and attribute.i for attribute in left[0].attribute):
        raise RuntimeError("cnn: BatchNormalization was folded, or is in training mode: see torch.onnx.export")
    return model


def resnet(data: Digits) -> onnx.ModelProto:
    """Returns the ResNet, its BatchNorm folded by the exporter."""
    return dynamo(digits.train(digit_nets.resnet(), data))


def mobilenet(data: Digits) -> onnx.ModelProto:
    """Returns the net like MobileNet, its BatchNorm folded by the exporter."""
    return torchscript(digits.train(digit_nets.mobilenet(), data))


def vit(data: Digits) -> onnx.ModelProto:
    """Returns the vision transformer."""
    return dynamo(digits.train(digit_nets.ViT(), data, epochs=100, rate=1e-3))


def lstm(data: Digits) -> onnx.ModelProto:
    """Returns the bidirectional LSTM."""
    return torchscript(digits.train(digit_nets.LSTM(), data, epochs=100, rate=5e-3))


def with_flatten(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model with an input (batch, 1, 8, 8) named "input" instead of rows of 64 pixels."""
    rows = model.graph.input[0].name
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 1, 8, 8]))
    model.graph.node.insert(0, helper.make_node("Flatten", ["input"], [rows], name="Flatten", axis=1))
    return model


def without_unused_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model without the tensors that only an output taken off had needed."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def torchscript(net: nn.Module, **options: Any) -> onnx.ModelProto:
    """Returns the net as PyTorch's older exporter writes it."""
    dynamic = {"input": {0: "batch"}, "logits": {0: "batch"}}
    return exported(net, batch=1, dynamo=False, opset_version=17, dynamic_axes=dynamic, **options)


def dynamo(net: nn.Module) -> onnx.ModelProto:
    """Returns the net as PyTorch's newer exporter writes it; batch 1 would be taken for a constant there."""
    dynamic = ({0: torch.export.Dim("batch")},)
    return exported(net, batch=2, dynamo=True, opset_version=18, dynamic_shapes=dynamic, external_data=False)


def exported(net: nn.Module, batch: int, **options: Any) -> onnx.ModelProto:
    """Returns what torch.onnx.export writes for this net and these options."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        example = (torch.zeros(batch, 1, 8, 8),)
        torch.onnx.export(net, example, path, input_names=["input"], output_names=["logits"], **options)
        return onnx.load(path)


@dataclass(frozen=True)
class Entry:
    """How to make one model, and what models/README.md says about it that the file does not."""

    make: Callable[[Digits], onnx.ModelProto]
    architecture: str
    exporter: str  # {} stands for the version that the file names
    exercises: str


ENTRIES = {
    "mlp": Entry(
        mlp,
        "MLP, 64-256-128-10, gives probabilities",
        "scikit-learn, skl2onnx {}",
        "MatMul + Add instead of Gemm, Flatten of a picture, Softmax at the end, a Cast that changes nothing",
    ),
    "cnn": Entry(
        cnn,
        "4 convolutions (32, 32, 64, 64), hidden layer of 64",
        "PyTorch {}, TorchScript exporter",
        "BatchNormalization left in the graph, MaxPool, Flatten of channels x 2 x 2 into a Gemm",
    ),
    "resnet": Entry(
        resnet,
        "ResNet of 5 basic blocks (16, 32, 64 channels)",
        "PyTorch {}, torch.export exporter",
        "residual streams, 1x1 shortcuts with stride, folded BatchNormalization, metadata of the exporter",
    ),
    "mobilenet": Entry(
        mobilenet,
        "MobileNetV3-like, 5 inverted residuals (64 to 128 wide)",
        "PyTorch {}, TorchScript exporter",
        "depthwise convolutions, squeeze-excite gates, HardSwish, narrow residual streams",
    ),
    "vit": Entry(
        vit,
        "ViT, 3 blocks, width 64, 4 heads, feed-forward 128",
        "PyTorch {}, torch.export exporter",
        "heads, q, k and v in one MatMul, class token, LayerNormalization over the stream, sizes computed from Shape",
    ),
    "lstm": Entry(
        lstm,
        "2 bidirectional LSTM layers of 48, mean over the rows",
        "PyTorch {}, TorchScript exporter",
        "recurrent cells, both directions merged by Transpose and Reshape, initial states sized at run time",
    ),
}


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns the model without the stack traces, which name folders of the machine that exported it."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        kept = [prop for prop in holder.metadata_props if prop.key != STACK_TRACE]
        del holder.metadata_props[:]
        holder.metadata_props.extend(kept)
    return model


def write(model: onnx.ModelProto, path: Path) -> None:
    """Writes the model after checking that it is valid, small, and free of paths."""
    onnx.checker.check_model(model, full_check=True)
    data = model.SerializeToString(deterministic=True)
    if found := SOURCE_PATH.search(data):
        raise RuntimeError(f"{path.name}: names a path, {found.group().decode()}: take that out in clean()")
    if len(data) >= MAX_BYTES:
        raise RuntimeError(f"{path.name}: {len(data):,} bytes, at most {MAX_BYTES:,} are allowed: make it narrower")
    path.write_bytes(data)


def row(name: str, data: Digits) -> str:
    """Returns the model's row in the table; numbers are measured on its file."""
    entry, path = ENTRIES[name], FOLDER / f"digits_{name}.onnx"
    model = onnx.load(path)
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    weights = (tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
    parameters = sum(int(np.prod(tensor.dims)) for tensor in weights)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"input": data.test})
    accuracy = float(np.mean(np.argmax(scores, axis=1) == data.test_labels))
    cells = (
        f"`{path.name}`",
        entry.architecture,
        entry.exporter.format(model.producer_version),
        str(opset),
        f"{parameters:,}",
        f"{path.stat().st_size:,}",
        f"{accuracy:.2%}",
        entry.exercises,
        f"`python tools/train_models.py {name}`",
    )
    return f"| {' | '.join(cells)} |"


def write_table(data: Digits) -> None:
    """Rewrites the rows of the table in models/README.md, from the files that stand beside it."""
    readme = FOLDER / "README.md"
    rows = [row(name, data) for name in ENTRIES if (FOLDER / f"digits_{name}.onnx").exists()]
    text = re.sub(r"(?<=---\|\n)(?:\| `digits_.*\n)*", lambda _: "\n".join(rows) + "\n", readme.read_text(), count=1)
    readme.write_text(text)


def main(names: list[str]) -> None:
    """Makes the models named, or all of them."""
    if unknown := sorted(set(names) - set(ENTRIES)):
        sys.exit(f"no such model: {', '.join(unknown)}; there are {', '.join(ENTRIES)}")
    data = digits.load()
    digits.write(data, FOLDER)
    for name in names or ENTRIES:
        # Anew for every model: what comes out must not depend on which others are made.
        digits.make_deterministic()
        write(clean(ENTRIES[name].make(data)), FOLDER / f"digits_{name}.onnx")
    write_table(data)


if __name__ == "__main__":
    main(sys.argv[1:])
