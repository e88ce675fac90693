"""Pooling and resizing."""

from __future__ import annotations

import numpy as np
from rows import prove, table

from onnxprune.testing import Case, Consumer, Data

X = Data((0, 8, 6, 6))
SHIFTED = Data((0, 8, 6, 6), (1,), ("Sigmoid",))
K = {"kernel_shape": [2, 3]}
MS = "com.microsoft"
PAIR = np.array([2, 3], np.int32)
ROIS = np.array([[0, 0, 4, 4], [1, 0, 3, 5], [2, 2, 5, 5]], np.float32)


def scales(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


ROWS = [
    Case("MaxPool", (X,), {**K, "strides": [2, 2], "pads": [1, 1, 0, 1]}, 8, units=(8,)),
    Case("MaxPool", (SHIFTED,), {**K, "dilations": [2, 1]}, 12, units=(8,), summed=()),
    Case("MaxPool", (X,), {**K, "ceil_mode": 1}, 12, outputs=2, units=(), why="indices into the whole tensor"),
    Case("MaxPool", (Data((0, 3, 6, 6), (2,)),), K, units=(), why="the window slides over axis 2", missing=True),
    Case("MaxPool", (Data((0, 3, 6, 6), (1, 2)),), K, units=(3,), why="whole channels of (c, h)", missing=True),
    Case("MaxPool", (Data((0, 8, 6)),), {"kernel_shape": [3]}, units=(8,)),
    Case("AveragePool", (X,), {**K, "pads": [1, 1, 0, 1], "count_include_pad": 1}, units=(8,)),
    Case("AveragePool", (SHIFTED,), {**K, "ceil_mode": 1, "strides": [2, 2]}, 10, units=(8,), summed=()),
    Case("LpPool", (X,), {**K, "p": 2}, 11, units=(8,)),
    *(Case(op, (X,), units=(8,)) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")),
    Case("GlobalAveragePool", (SHIFTED,), units=(8,), summed=()),
    Case("GlobalAveragePool", (Data((0, 8, 6, 6), (3,)),), units=(), why="a mean over the axis"),
    Case("Upsample", (X,), {"scales": [1.0, 1.0, 2.0, 2.0]}, 7, units=(8,)),
    Case("Upsample", (X, scales(1, 1, 2, 1.5)), {"mode": "linear"}, 9, units=(8,)),
    Case("Upsample", (X, scales(1, 2, 1, 1)), opset=9, units=(), why="the channels are resampled", missing=True),
    Case("Resize", (X, scales(1, 1, 2, 2)), opset=10, units=(8,)),
    Case("Resize", (X, np.zeros(0, np.float32), scales(1, 1, 2, 0.5)), opset=11, units=(8,)),
    Case("Resize", (X, None, scales(1, 1, 2, 2)), {"mode": "cubic"}, 13, units=(8,)),
    Case("Resize", (X, None, None, np.array([9, 5])), {"axes": [2, 3], "mode": "linear"}, 18, units=(8,)),
    Case("Resize", (X, None, None, np.array([8, 9, 5])), {"axes": [1, 2, 3]}, 18, units=(8,), why="sizes follow"),
    Case("Resize", (X, None, None, np.array([5, 8])), {"axes": [3, 1]}, 19, units=(8,), why="sizes follow"),
    Case(
        "Resize",
        (X, None, scales(0.5), None),
        {"axes": [1]},
        18,
        units=(),
        why="the channels are resampled",
        missing=True,
    ),
    Case("Resize", (Data((0, 3, 6, 6), (2,)), None, scales(1, 1, 1, 2)), units=(6,), why="an axis of unchanged size"),
    Case("GridSample", (X, Data((0, 4, 3, 2), (), ("Tanh",))), opset=16, units=(8,)),
    Case("GridSample", (X, Data((0, 4, 3, 2), (), ("Tanh",))), {"padding_mode": "border"}, 20, units=(8,)),
    Case("GridSample", (SHIFTED, Data((0, 4, 3, 2), (), ("Tanh",))), opset=20, units=(8,), summed=()),
    Case("GridSample", (Data((0, 8, 6, 6), (2,)), Data((0, 4, 3, 2), ())), units=(), why="positions are computed"),
    Case(
        "GridSample",
        (Data((0, 8, 6, 6), ()), Data((0, 4, 3, 2), (1,))),
        units=(),
        why="positions are computed",
        missing=True,
    ),
    Case("RoiAlign", (X, ROIS, np.array([0, 1, 0])), {"output_height": 2, "output_width": 2}, 16, units=(8,)),
    Case("RoiAlign", (X, ROIS, np.array([0, 1, 0])), {"mode": "max", "output_height": 2}, 10, units=(8,)),
    Case(
        "MaxRoiPool",
        (X, np.concatenate([np.zeros((3, 1), np.float32), ROIS], 1)),
        {"pooled_shape": [2, 2]},
        units=(8,),
    ),
    Case("GridSample", (X, Data((0, 3, 4, 2), (), ("Tanh",))), opset=17, domain=MS, units=(8,)),
    Case("CropAndResize", (X, ROIS / 6, np.array([0, 1, 0], np.int32), PAIR), opset=17, domain=MS, units=(8,)),
    Case("CenterCropPad", (X, np.array([4, 9])), {"axes": [2, 3]}, 18, units=(8,)),
    Case(
        "CenterCropPad", (X, np.array([4, 6])), {"axes": [1, 2]}, 18, units=(), missing=True, why="channels are cropped"
    ),
    Case("Col2Im", (Data((0, 12, 6)), np.array([3, 4]), np.array([2, 2])), opset=18, units=(3,)),
    Case("Col2Im", (Data((0, 12, 6), (2,)), np.array([3, 4]), np.array([2, 2])), opset=18, units=(), why="places"),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)
