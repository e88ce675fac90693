"""Convolutions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rows import prove, table

from onnxprune.testing import Case, Consumer, Data, Weight, check_model

X = Data((0, 6, 7, 7))
OFFSETS = Data((0, 8, 6, 6), ())
ROWS = [
    Case("Conv", (X, Weight((8, 6, 3, 3)), Weight((8,))), units=(6, 8)),
    Case(
        "Conv", (X, Weight((8, 6, 3, 3))), {"strides": [2, 2], "pads": [1, 0, 1, 0], "dilations": [2, 1]}, units=(6, 8)
    ),
    Case("Conv", (X, Weight((8, 6, 3, 3))), {"auto_pad": "SAME_UPPER", "kernel_shape": [3, 3]}, 11, units=(6, 8)),
    Case("Conv", (Data((0, 6, 9)), Weight((8, 6, 3)), Weight((8,))), opset=9, units=(6, 8)),
    Case("Conv", (Data((0, 4, 3, 4, 4)), Weight((5, 4, 2, 2, 2)), Weight((5,))), units=(4, 5)),
    Case("Conv", (Data((0, 6, 5, 5), (1,), ("Sigmoid",)), Weight((8, 6, 3, 3))), units=(6, 8)),
    Case("Conv", (Data((0, 6, 5, 5), ()), Weight((8, 6, 3, 3)), Weight((8,))), units=(8,), why="reads a graph input"),
    Case("Conv", (Data((0, 6, 5, 5), (2,)), Weight((8, 6, 3, 3))), units=(8,), why="slides over axis 2", missing=True),
    Case(
        "Conv",
        (Data((0, 6, 5, 5), (1, 2)), Weight((8, 6, 3, 3))),
        units=(6, 8),
        why="whole channels of (c, h)",
        missing=True,
    ),
    Case("Conv", (X, Weight((6, 1, 3, 3)), Weight((6,))), {"group": 6}, units=(6,), why="depthwise"),
    Case(
        "Conv", (Data((0, 4, 5, 5)), Weight((8, 1, 3, 3)), Weight((8,))), {"group": 4}, units=(4,), why="2 outputs each"
    ),
    Case("Conv", (Data((0, 8, 5, 5)), Weight((12, 2, 3, 3)), Weight((12,))), {"group": 4}, units=(2, 3)),
    Case("Conv", (Data((0, 8, 5, 5), ()), Weight((12, 2, 3, 3))), {"group": 4}, units=(3,), why="reads a graph input"),
    Case("Conv", (Data((0, 8, 9)), Weight((12, 4, 3))), {"group": 2}, units=(4, 6)),
    Case("ConvTranspose", (X, Weight((6, 8, 3, 3)), Weight((8,))), units=(6, 8)),
    Case("ConvTranspose", (X, Weight((6, 8, 2, 2))), {"strides": [2, 2], "output_padding": [1, 1]}, units=(6, 8)),
    Case("ConvTranspose", (Data((0, 6, 9)), Weight((6, 8, 3)), Weight((8,))), {"pads": [1, 1]}, 11, units=(6, 8)),
    Case(
        "ConvTranspose",
        (X, Weight((6, 4, 3, 3)), Weight((8,))),
        {"group": 2},
        units=(3, 4),
        missing=True,
        why="the same channels in every group",
    ),
    Case("ConvTranspose", (X, Weight((6, 1, 3, 3)), Weight((6,))), {"group": 6}, units=(6,), why="depthwise"),
    Case("DeformConv", (X, Weight((8, 6, 2, 2)), OFFSETS, Weight((8,))), opset=19, units=(6, 8)),
    Case(
        "DeformConv",
        (X, Weight((8, 6, 2, 2)), Data((0, 16, 6, 6), ())),
        {"offset_group": 2},
        19,
        units=(8,),
        missing=True,
        why="channels with offsets of their own",
    ),
    Case(
        "DeformConv",
        (X, Weight((8, 3, 2, 2)), OFFSETS),
        {"group": 2},
        22,
        units=(3, 4),
        why="columns of both groups",
    ),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)


def test_outputs_of_a_weight_that_data_scale_can_go() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 18]>
        modulated (float[N, 3, 5, 5] x, float[1, 4] style) => (float[N, 2, 5, 5] y)
        <float[6, 3, 1, 1] a, float[4, 6] m, float[8, 6, 3, 3] w, float[2, 8, 1, 1] o, int64[4] split = {1, 6, 1, 1},
         int64[3] axes = {1, 2, 3}, float small = {0.01}>
        { h = Conv (x, a)
          s = MatMul (style, m)
          scale = Reshape (s, split)
          scaled = Mul (w, scale)
          square = Mul (scaled, scaled)
          sum = ReduceSum (square, axes)
          safe = Add (sum, small)
          norm = Sqrt (safe)
          weight = Div (scaled, norm)
          z = Conv <pads = [1, 1, 1, 1]> (h, weight)
          y = Conv (z, o) }""")
    rng = np.random.default_rng(0)
    for name, shape in {"a": (6, 3, 1, 1), "m": (4, 6), "w": (8, 6, 3, 3), "o": (2, 8, 1, 1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    outcome = check_model(model)
    assert outcome.wrong == ()
    assert outcome.units == (6, 8), outcome.frozen
    assert outcome.cuts


@pytest.mark.parametrize("names", [{"Conv", "ConvTranspose", "DeformConv"}])
def test_every_operator_of_the_family_has_a_row(names: set[str]) -> None:
    assert {c.op for c in ROWS} == names
