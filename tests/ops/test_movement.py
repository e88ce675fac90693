"""Operators that only move elements."""

from __future__ import annotations

import numpy as np
from rows import prove, table

from onnxprune.testing import Case, Consumer, Data, Weight

X = Data((0, 6, 4))
SHIFTED = Data((0, 6, 4), (1,), ("Sigmoid",))
PAIR = (Data((0, 2, 4)), Data((0, 3, 4)))
BIG = 2**63 - 1


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


ROWS = [
    Case("Reshape", (X, ints(0, 24)), opset=9, units=(6,)),
    Case("Reshape", (X, ints(-1, 24)), units=(6,)),
    Case("Reshape", (X, ints(0, -1)), units=(6,)),
    Case("Reshape", (X, ints(-1, 2, 12)), units=(3,), why="columns of 2 x 3 channels"),
    Case("Reshape", (X, ints(0, 3, 2, 4)), units=(3,), why="rows of 3 x 2, which are finer than columns"),
    Case("Reshape", (X, ints(-1, 6, 2, 2)), {"allowzero": 1}, 14, units=(6,)),
    Case("Reshape", (Data((0, 6, 4), (2,)), ints(0, 4, 6)), units=(2,), why="4 columns come round every 2 cells"),
    Case("Reshape", (Data((0, 6, 4), (2,)), ints(0, 24)), units=(4,)),
    Case("Reshape", (Data((0, 6, 4), (1, 2)), ints(0, 24)), units=(4,), why="columns of (6, 4)", missing=True),
    Case("Reshape", (Weight((6, 8)), ints(6, 2, 4)), units=(4, 6), why="a weight"),
    Case("Flatten", (X,), units=(6,)),
    Case("Flatten", (X,), {"axis": -2}, 11, units=(6,)),
    Case("Flatten", (Data((0, 6, 4), (2,)),), {"axis": 2}, 9, units=(4,)),
    Case("Flatten", (X,), {"axis": 2}, units=(), why="merged with the batch", missing=True),
    Case("Transpose", (X,), {"perm": [0, 2, 1]}, units=(6,)),
    Case("Transpose", (X,), {"perm": [1, 2, 0]}, 9, units=(6,)),
    Case("Transpose", (X,), units=(6,)),
    Case(
        "Transpose", (Data((0, 3, 5), (1, 2)),), {"perm": [0, 2, 1]}, units=(5,), why="columns of (3, 5)", missing=True
    ),
    Case("Transpose", (Weight((4, 6)),), units=(4, 6), why="a weight"),
    Case("Squeeze", (Data((0, 6, 1)),), {"axes": [2]}, 11, units=(6,)),
    Case("Squeeze", (Data((0, 6, 1)), ints(-1)), opset=13, units=(6,)),
    Case("Squeeze", (Data((0, 6, 1)),), opset=11, units=(6,)),
    Case("Squeeze", (Data((0, 6, 1)),), opset=13, units=(6,)),
    Case("Squeeze", (Data((0, 2, 1, 4)),), opset=11, units=(2,), why="one channel left is no axis to squeeze"),
    Case("Squeeze", (Data((0, 2, 1, 4)),), opset=13, units=(2,), why="one channel left is no axis to squeeze"),
    Case("Squeeze", (Data((0, 2, 3)),), opset=13, units=(2,), stuck=True, why="nothing to squeeze, until one is left"),
    Case("Unsqueeze", (X,), {"axes": [1, -1]}, 11, units=(6,)),
    Case("Unsqueeze", (X, ints(3, 0)), opset=13, units=(6,)),
    Case("Concat", PAIR, {"axis": 1}, units=(2, 3)),
    Case("Concat", PAIR, {"axis": -2}, 11, units=(2, 3)),
    Case("Concat", (PAIR[0], Data((0, 3, 4), ())), {"axis": 1}, units=(2,), why="a graph input behind it"),
    Case("Concat", (Data((0, 2, 4), (2,)), Data((0, 3, 4), (2,))), {"axis": 1}, units=(4,)),
    Case(
        "Concat",
        (Data((0, 2, 4), (2,)), Data((0, 3, 4), ())),
        {"axis": 1},
        units=(),
        why="meets a fixed axis",
        missing=True,
    ),
    Case("Concat", (X, X, Data((0, 6, 4), (1,), ("Sigmoid",))), {"axis": 2}, units=(6,), summed=()),
    Case(
        "Concat",
        (Data((0, 2, 5), (1, 2)), Data((0, 3, 5), (1, 2))),
        {"axis": 1},
        units=(5,),
        why="columns",
        missing=True,
    ),
    Case(
        "Concat", (Data((0, 2, 5), (1, 2)), Data((0, 3, 5), (2,))), {"axis": 1}, units=(5,), why="columns", missing=True
    ),
    Case("Split", (X,), {"axis": 1, "split": [2, 4]}, 11, outputs=2, units=(2, 4), summed=(6,)),
    Case("Split", (X,), {"axis": 1}, 11, outputs=2, units=(3, 3), summed=(6,), why="the sizes are written down"),
    Case("Split", (X, ints(4, 2)), {"axis": -2}, 13, outputs=2, units=(2, 4), summed=(6,)),
    Case("Split", (X,), {"axis": 1}, 13, outputs=3, units=(2, 2, 2), summed=(6,), why="the sizes become an input"),
    Case("Split", (X,), {"axis": 1, "num_outputs": 2}, 18, outputs=2, units=(3, 3), summed=(6,)),
    Case("Split", (Data((0, 5, 4)),), {"axis": 1, "num_outputs": 2}, 18, outputs=2, units=(2, 3), summed=(5,)),
    Case("Split", (X,), {"axis": 2, "num_outputs": 2}, 18, outputs=2, units=(6,)),
    Case("Slice", (X,), {"starts": [1], "ends": [4], "axes": [1]}, 9, units=(3, 3), summed=(6,), why="read or not"),
    Case("Slice", (X,), {"starts": [0, -2], "ends": [BIG, BIG]}, 9, units=(2, 4), summed=(6,)),
    Case("Slice", (X, ints(1), ints(4), ints(1)), opset=10, units=(3, 3), summed=(6,)),
    Case("Slice", (X, ints(-4), ints(BIG), ints(-2)), opset=13, units=(2, 4), summed=(6,)),
    Case("Slice", (X, ints(-1), ints(-7), ints(1), ints(-1)), units=(6,), why="turned round"),
    Case("Slice", (X, ints(-2), ints(-BIG), ints(1), ints(-1)), units=(1, 5), summed=(6,), why="turned round"),
    Case(
        "Slice",
        (X, ints(0), ints(6), ints(1), ints(2)),
        units=(3,),
        missing=True,
        why="the stride stays 2",
    ),
    Case("Slice", (X, ints(1), ints(6), ints(1), ints(2)), units=(3,), missing=True, why="the stride stays 2"),
    Case("Slice", (X, ints(-2), ints(-BIG), ints(1), ints(-3)), units=(2,), missing=True, why="the stride stays -3"),
    Case("Slice", (X, ints(0, 1), ints(2, 3), ints(0, 2)), units=(6,), why="the batch is sliced too"),
    Case("Slice", (X, ints(1), ints(3), ints(2)), units=(6,)),
    Case("Tile", (X, ints(1, 2, 3)), units=(6,)),
    Case("Tile", (Data((0, 1, 4), (2,)), ints(1, 3, 1)), opset=9, units=(4,)),
    Case("Pad", (X, ints(0, 2, 0, 0, 1, 0)), opset=17, domain="com.microsoft", units=(6,), why="padding stays"),
    Case("Pad", (X,), {"pads": [0, 2, 0, 0, 1, 0]}, 10, units=(6,), why="padding stays"),
    Case("Pad", (X, ints(0, 2, 0, 0, 1, 3)), opset=11, units=(6,)),
    Case("Pad", (X, ints(0, 0, 1, 0, 0, 1), np.array(1.5, np.float32)), opset=13, units=(6,), summed=()),
    Case("Pad", (X, ints(0, 1, 0, 0, 1, 0), np.array(1.5, np.float32)), opset=13, units=(6,), summed=()),
    Case("Pad", (X, ints(2, 1), None, ints(-2)), opset=18, units=(6,)),
    Case("Pad", (X, ints(0, 0, 1, 0, 0, 2)), {"mode": "reflect"}, units=(6,)),
    Case(
        "Pad", (X, ints(0, 1, 0, 0, 1, 0)), {"mode": "edge"}, units=(), why="padded with its own values", missing=True
    ),
    Case("Pad", (X, ints(0, -1, 0, 0, -2, 0)), units=(3, 3), summed=(6,), why="a slice"),
    Case("Pad", (X, ints(0, -1, 0, 0, 2, 0)), units=(1, 5), summed=(6,), why="a slice and padding"),
    Case("DepthToSpace", (Data((0, 8, 3, 3)),), {"blocksize": 2}, 9, units=(2,)),
    Case("DepthToSpace", (Data((0, 8, 3, 3)),), {"blocksize": 2, "mode": "DCR"}, 11, units=(2,)),
    Case("DepthToSpace", (Data((0, 12, 2, 2)),), {"blocksize": 2, "mode": "CRD"}, 13, units=(3,)),
    Case("SpaceToDepth", (Data((0, 3, 4, 4)),), {"blocksize": 2}, units=(3,)),
    Case(
        "SpaceToDepth",
        (Data((0, 3, 4, 4), (2,)),),
        {"blocksize": 2},
        units=(),
        why="space goes into the channels",
        missing=True,
    ),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)
