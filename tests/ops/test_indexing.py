"""Gathering and scattering."""

from __future__ import annotations

import numpy as np
from rows import prove, table

from onnxprune.testing import Case, Consumer, Data, Feed, Weight

X = Data((0, 6, 4))
STEPS = Data((0, 6, 4), (2,))
PLACES = Data((0, 6, 4), (2,), ("Sigmoid", "Cast:7"))
CACHE = Data((0, 2, 6, 4), (3,))
BLOCK = np.stack(np.meshgrid([0, 2], [1, 2, 4], indexing="ij"), -1)
ROWS = [
    Case("Gather", (X, np.array([0, 2, 2, 5])), {"axis": 1}, 11, units=(3, 3), summed=(6,), why="read or not"),
    Case("Gather", (X, np.array([-1, 0, 3], np.int32)), {"axis": -2}, units=(3, 3), summed=(6,)),
    Case("Gather", (X, np.array(2)), {"axis": 1}, units=(5,), why="the channel that is read stays"),
    Case(
        "Gather", (X, np.array([[0, 1], [2, 3]])), {"axis": 1}, units=(2, 2), summed=(4,), why="columns of the indices"
    ),
    Case("Gather", (X, np.array([1, 3])), {"axis": 2}, units=(6,)),
    Case("Gather", (X, np.array(1)), {"axis": 2}, units=(6,)),
    Case("Gather", (Weight((10, 8)), Feed((0, 5), 10)), units=(8,), why="an embedding"),
    Case("Gather", (Weight((10, 8)), Feed((0,), 10)), opset=11, units=(8,)),
    Case("GatherND", (Data((0, 6, 5), (2,)), Feed((0, 3, 1), 6)), {"batch_dims": 1}, 12, units=(5,)),
    Case("GatherND", (X, Feed((0, 3, 1), 6)), {"batch_dims": 1}, 13, units=(), why="read at computed positions"),
    Case("GatherND", (Weight((6, 4, 8)), Feed((0, 2), 4)), units=(8,)),
    Case("ScatterND", (Data((0, 5)), np.array([[0], [1]]), Weight((2, 5))), opset=13, units=(5,)),
    Case("ScatterND", (Data((0, 5)), np.array([[1]]), Weight((1, 5))), {"reduction": "add"}, 16, units=(5,)),
    Case("ScatterND", (Data((0, 3, 5), (2,)), np.array([[0, 2], [1, 1]]), Weight((2, 5))), opset=18, units=(5,)),
    Case("ScatterND", (Data((0, 3, 5), (1,)), np.array([[0, 2], [1, 1]]), Weight((2, 5))), units=(), why="written at"),
    Case("ScatterND", (Data((6, 0), (0,)), np.array([[1], [3], [-2]]), Data((3, 0), (0,))), opset=13, units=(3, 3)),
    Case(
        "ScatterND", (Data((6, 0), (0,)), np.array([[3], [1]]), Data((2, 0), (0,))), {"reduction": "add"}, units=(2, 4)
    ),
    Case("ScatterND", (Data((3, 6, 0), (1,)), BLOCK, Data((2, 3, 0), (1,))), units=(3, 3), why="a block of two axes"),
    Case(
        "ScatterND",
        (Data((6, 0), (0,)), np.array([[1], [3], [1]]), Data((3, 0), (0,))),
        units=(),
        missing=True,
        why="twice",
    ),
    Case("GatherND", (Weight((6, 4, 8)), Feed((0, 2), 4)), opset=17, domain="com.microsoft", units=(8,)),
    Case(
        "Gather",
        (Weight((7, 4)), Data((0, 6), (1,), ("Sigmoid", "Cast:7"))),
        units=(4,),
        missing=True,
        why="columns of rows at positions that are computed from channels",
    ),
    Case("GatherElements", (STEPS, Feed((0, 3, 4), 6)), {"axis": 1}, 11, units=(), why="positions are an input"),
    Case("GatherElements", (STEPS, PLACES), {"axis": 1}, 13, units=(4,)),
    Case("GatherElements", (STEPS, PLACES), {"axis": 2}, 13, units=(), missing=True, why="read at computed positions"),
    Case("ScatterElements", (STEPS, PLACES, STEPS), {"axis": 1}, 11, units=(4,)),
    Case("ScatterElements", (STEPS, PLACES, STEPS), {"axis": 1, "reduction": "add"}, 18, units=(4,)),
    Case(
        "ScatterElements", (X, PLACES, Data((0, 6, 4), ())), {"axis": 1}, 18, units=(), missing=True, why="written at"
    ),
    Case("Scatter", (STEPS, PLACES, STEPS), {"axis": 1}, 9, units=(4,)),
    Case("TensorScatter", (CACHE, Data((0, 2, 2, 4), (3,)), Feed((0,), 4)), opset=24, units=(4,)),
    Case(
        "TensorScatter",
        (CACHE, Data((0, 2, 2, 4), ()), Feed((0,), 4)),
        opset=24,
        units=(),
        missing=True,
        why="what is written stays",
    ),
    Case("Compress", (STEPS, np.array([1, 0, 1, 1, 0, 1], bool)), {"axis": 1}, 11, units=(4,)),
    Case(
        "Compress",
        (X, np.array([1, 0, 1, 1, 0, 1], bool)),
        {"axis": 1},
        11,
        units=(),
        missing=True,
        why="picked at run time",
    ),
    Case("ReverseSequence", (STEPS, Feed((0,), 7, 1)), {"time_axis": 1, "batch_axis": 0}, 10, units=(4,)),
    Case("ReverseSequence", (X, Feed((0,), 7, 1)), {"time_axis": 1, "batch_axis": 0}, 10, units=(), why="turned round"),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)
