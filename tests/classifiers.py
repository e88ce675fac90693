"""Small classifiers and labelled data whose figures are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def scores_as_inputs(classes: int, bias: np.ndarray | None = None, batch: int | str = "n") -> onnx.ModelProto:
    """Returns a model whose scores are its inputs, plus a bias."""
    weights = {"w": np.eye(classes, dtype=np.float32)}
    weights["b"] = np.zeros(classes, np.float32) if bias is None else bias.astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, classes])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


RUINED = 3


def one_class_ruined(folder: Path) -> tuple[Path, Path, Path]:
    """Returns paths of a model, of one that never tells class 3 but is as good on average, and of labelled data.

    1,000 samples of ten classes. The original takes 100 samples of the other classes for class 3; the second model,
    which knows no class 3, tells these right and all of class 3 wrong.
    """
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 100)
    x = rng.uniform(0, 0.5, (1000, 10)).astype(np.float32)
    x[np.arange(1000), labels] = 2.0
    others = rng.permutation(np.flatnonzero(labels != RUINED))
    x[others[:100], RUINED] = 2.5
    order = rng.permutation(1000)
    bias = np.zeros(10)
    bias[RUINED] = -100
    original, ruined, data = folder / "original.onnx", folder / "ruined.onnx", folder / "data.npz"
    onnx.save(scores_as_inputs(10), original)
    onnx.save(scores_as_inputs(10, bias), ruined)
    np.savez(data, x=x[order], labels=labels[order])
    return original, ruined, data
