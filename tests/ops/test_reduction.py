"""Reductions, Softmax and what runs along an axis."""

from __future__ import annotations

import numpy as np
import pytest
from hostile import floats, model_of, tensor
from onnx import helper, numpy_helper
from rows import prove, table

from onnxprune.testing import Case, Consumer, Data, check_model

X = Data((0, 6, 5))
SHIFTED = Data((0, 6, 5), (1,), ("Sigmoid",))
BOTH = Data((0, 2, 6), (1, 2))


def axes(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


EXACT = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
EXTREME = ("ReduceMax", "ReduceMin")
ROWS = [
    *(Case(op, (X, axes(1)), opset=18, units=(6,)) for op in (*EXACT, "ReduceMean")),
    *(Case(op, (X, axes(1)), {"keepdims": 0}, 18, units=(6,)) for op in (*EXACT, "ReduceMean")),
    *(Case(op, (X,), {"axes": [1], "keepdims": 0}, 11, units=(6,)) for op in (*EXACT, "ReduceMean")),
    *(Case(op, (X,), {"axes": [-1, 1]}, 11, units=(6,)) for op in (*EXACT, "ReduceMean")),
    *(Case(op, (X, axes(2)), opset=18, units=(6,)) for op in (*EXACT, "ReduceMean")),
    *(Case(op, (SHIFTED, axes(2)), opset=18, units=(6,), summed=()) for op in (*EXACT, "ReduceMean")),
    *(Case(op, (SHIFTED, axes(1)), opset=18, units=(), why="slots are not zero") for op in (*EXACT, "ReduceMean")),
    *(Case(op, (X,), {"keepdims": 1}, 18, units=(6,), why="all axes") for op in (*EXACT, "ReduceMean")),
    *(Case(op, (X,), {"noop_with_empty_axes": 1}, 18, units=(6,), why="no axes") for op in (*EXACT, "ReduceMean")),
    *(Case(op, (BOTH, axes(1, 2)), opset=18, units=(6,), missing=True, why="columns of (2, 6)") for op in EXACT),
    Case("ReduceMean", (BOTH, axes(1, 2)), opset=18, units=(6,), why="columns of (2, 6), restored by a factor"),
    *(
        Case(op, (BOTH, axes(2)), opset=18, units=(6,), missing=True, why="columns of (2, 6)")
        for op in (*EXACT, "ReduceMean")
    ),
    Case("ReduceSum", (X, axes(1)), opset=13, units=(6,)),
    Case("ReduceMean", (X,), {"axes": [1]}, 13, units=(6,)),
    *(Case(op, (X, axes(2)), opset=18, units=(6,)) for op in (*EXTREME, "ReduceProd")),
    *(Case(op, (X, axes(1)), opset=18, units=(6,), why="an extreme with 0") for op in EXTREME),
    *(Case(op, (X,), {"axes": [1], "keepdims": 0}, 13, units=(6,), why="an extreme with 0") for op in EXTREME),
    *(Case(op, (X,), {"noop_with_empty_axes": 1}, 18, units=(6,), why="no axes") for op in EXTREME),
    *(Case(op, (X,), opset=18, units=(6,), why="all axes") for op in EXTREME),
    *(Case(op, (SHIFTED, axes(1)), opset=18, units=(), why="looks at every slot") for op in EXTREME),
    Case("ReduceProd", (X, axes(1)), opset=18, units=(), why="looks at every slot"),
    *(Case(op, (SHIFTED, axes(2)), opset=18, units=(6,), summed=()) for op in ("ReduceLogSum", "ReduceLogSumExp")),
    Case(
        "ReduceLogSum",
        (Data((0, 6, 5), (1,), ("Abs",)), axes(2)),
        opset=18,
        units=(),
        why="the logarithm of 0",
        missing=True,
    ),
    Case("ReduceLogSumExp", (X, axes(2)), opset=18, units=(6,), summed=()),
    *(
        Case(op, (X,), {"axes": [1]}, 13, units=(), why="looks at every slot")
        for op in ("ReduceLogSum", "ReduceLogSumExp")
    ),
    *(Case(op, (X,), {"axis": 2}, 13, units=(6,), summed=()) for op in ("Softmax", "LogSoftmax", "Hardmax")),
    *(Case(op, (X,), opset=13, units=(6,), summed=()) for op in ("Softmax", "LogSoftmax", "Hardmax")),
    *(
        Case(op, (X,), {"axis": 1}, 13, units=(), why="normalised together")
        for op in ("Softmax", "LogSoftmax", "Hardmax")
    ),
    *(Case(op, (X,), {"axis": 2}, 11, units=(6,), summed=()) for op in ("Softmax", "LogSoftmax", "Hardmax")),
    *(Case(op, (X,), opset=11, units=(), why="axis 1 and all behind it") for op in ("Softmax", "LogSoftmax")),
    Case("Hardmax", (X,), opset=11, units=(), missing=True, why="axis 1 and all behind it"),
    Case("Softmax", (Data((0, 6, 5), (2,)),), {"axis": 1}, 11, units=(), why="axis 1 and all behind it"),
    Case("Softmax", (Data((0, 6, 5), (2,)),), {"axis": 1}, 13, units=(5,), summed=()),
    Case("Softmax", (Data((0, 3, 4), (1, 2)),), {"axis": -1}, units=(3,), summed=(), why="whole rows"),
    Case("CumSum", (X, np.array(2)), opset=14, units=(6,)),
    Case(
        "CumSum",
        (X, np.array(1)),
        {"reverse": 1, "exclusive": 1},
        11,
        units=(6,),
        summed=(),
        why="zero slots add nothing",
    ),
    Case("CumSum", (SHIFTED, np.array(1)), units=(), missing=True, why="slots are not zero: only the last could go"),
    Case("LpNormalization", (X,), {"axis": 2}, units=(6,)),
    Case("LpNormalization", (X,), {"axis": 1, "p": 1}, units=(6,), why="zero slots add nothing to the norm"),
    Case("LpNormalization", (SHIFTED,), {"axis": 1}, units=(), why="slots are not zero"),
    Case("LRN", (Data((0, 6, 5, 5)),), {"size": 3}, units=(), why="a window over the channels", missing=True),
    Case("LRN", (Data((0, 6, 5, 5), (2,)),), {"size": 3}, units=(5,)),
    Case(
        "MeanVarianceNormalization", (Data((0, 6, 5, 5)),), opset=13, units=(), why="0 / 0 in onnxruntime", missing=True
    ),
    Case("MeanVarianceNormalization", (Data((0, 6, 5)),), {"axes": [1, 2]}, 13, units=(), why="normalised together"),
    Case("TopK", (X, np.array([3])), outputs=2, units=(6,), summed=(), why="indices are not zero"),
    Case("TopK", (X, np.array([3])), {"axis": 1}, 11, outputs=2, units=(), why="picks along the axis"),
    *(Case(op, (X,), {"axis": 2, "keepdims": 0}, 13, units=(6,), summed=()) for op in ("ArgMax", "ArgMin")),
    *(Case(op, (X,), {"axis": 1}, 11, units=(), why="an index into the axis") for op in ("ArgMax", "ArgMin")),
    Case("Trilu", (Data((0, 3, 6, 6)),), units=(3,)),
    Case("Trilu", (X, np.array(1)), {"upper": 0}, 14, units=(), why="depends on the position", missing=True),
    Case("CumProd", (X, np.array(2)), opset=26, units=(6,), summed=()),
    Case("CumProd", (X, np.array(1)), opset=26, units=(), missing=True, why="runs along the channels"),
    Case("DFT", (Data((0, 6, 5, 1)),), {"axis": 2}, 17, units=(6,)),
    Case("DFT", (Data((0, 6, 5, 1)), None, np.array(-3)), {"onesided": 1}, 20, units=(), why="transformed as a whole"),
    Case("Trilu", (Data((0, 6, 4, 5)),), opset=17, domain="com.microsoft", units=(6,)),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)


@pytest.mark.parametrize(("reader", "units"), [("TopK", (12,)), ("Relu", (7, 12))])
def test_scores_that_candidates_are_picked_by_stay(reader: str, units: tuple[int, ...]) -> None:
    """Class scores are mostly negative: the largest of them and a cut one's 0 would always be 0."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w0"], ["h"]),
        node("Relu", ["h"], ["active"]),
        node("MatMul", ["active", "w1"], ["scores"]),
        node("ReduceMax", ["scores"], ["best"], axes=[-1], keepdims=0),
        node("Sigmoid", ["best"], ["sure"]),
        node(reader, ["sure", "two"], ["y", "which"]) if reader == "TopK" else node(reader, ["sure"], ["y"]),
    ]
    two = numpy_helper.from_array(np.array([2]), "two")
    out = floats("y", "N", 2 if reader == "TopK" else 5)
    weights = [tensor("w0", 3, 12), tensor("w1", 12, 7, seed=1), two]
    outcome = check_model(model_of(nodes, weights, inputs=[floats("x", "N", 5, 3)], outputs=[out]))
    assert outcome.wrong == ()
    assert outcome.units == units, outcome.frozen
