"""Matrix products."""

from __future__ import annotations

import numpy as np
from rows import prove, table

from onnxprune.testing import Case, Consumer, Data, Weight

ONE = np.ones(1, np.float32)
ROWS = [
    Case("MatMul", (Data((0, 7, 6), (2,)), Weight((6, 8))), units=(6, 8)),
    Case("MatMul", (Data((0, 6)), Weight((6, 8))), opset=9, units=(6, 8)),
    Case("MatMul", (Weight((8, 7)), Data((0, 7, 5), (1,))), units=(7, 8)),
    Case("MatMul", (Data((0, 5, 6), (2,)), Weight((6,))), units=(6,)),
    Case("MatMul", (Data((0, 3, 4, 6), (3,)), Weight((3, 6, 8))), units=(6, 8), why="3 meets an axis of fixed size"),
    Case("MatMul", (Data((0, 5, 6), (2,), ("Sigmoid",)), Weight((6, 8))), units=(6, 8)),
    Case("MatMul", (Data((0, 5, 6), ()), Weight((6, 8))), units=(8,), why="reads a graph input"),
    Case(
        "MatMul",
        (Data((0, 3, 4, 6), (1, 3)), Data((0, 3, 6, 4), (1, 2))),
        units=(3,),
        summed=(6,),
        missing=True,
        why="q . k: heads, where more weights hang on them, else the same dims in every head",
    ),
    Case(
        "MatMul",
        (Data((0, 4, 6), (2,), ("Sigmoid",)), Data((0, 6, 4), (1,), ("Exp",))),
        units=(),
        why="neither factor is zero at cut slots",
    ),
    Case(
        "MatMul", (Data((0, 4, 6), (2,)), Data((0, 6, 4), (1,), ("Exp",))), units=(6,), why="one zero factor is enough"
    ),
    Case("Gemm", (Data((0, 6)), Weight((6, 8)), Weight((8,))), units=(6, 8)),
    Case("Gemm", (Data((0, 6)), Weight((8, 6)), Weight((8,))), {"transB": 1, "alpha": 0.5, "beta": 2.0}, units=(6, 8)),
    Case("Gemm", (Data((6, 0), (0,)), Weight((6, 8)), Weight((1, 8))), {"transA": 1}, 9, units=(6, 8)),
    Case("Gemm", (Data((0, 6)), Weight((6, 8))), opset=11, units=(6, 8)),
    Case("Gemm", (Data((0, 6)), Weight((6, 8)), ONE), units=(6, 8), summed=(6,), why="the addend is not cut"),
    Case("Einsum", (Data((0, 5, 6), (2,)), Weight((6, 8))), {"equation": "bij,jk->bik"}, units=(6, 8)),
    Case("Einsum", (Data((0, 5, 6), (2,)), Weight((8, 6))), {"equation": "...i, oi -> ...o"}, units=(6, 8)),
    Case("Einsum", (Data((0, 6)), Weight((6, 8))), {"equation": "ij,jk"}, units=(6, 8)),
    Case("Einsum", (Data((0, 6)), Data((0, 6))), {"equation": "bi,bi->b"}, units=(6,)),
    Case("Einsum", (Data((0, 5, 6), (2,)),), {"equation": "bij->jbi"}, units=(6,)),
    Case("Einsum", (Data((0, 5, 6), (2,)),), {"equation": "bij->bi"}, units=(6,)),
    Case("Einsum", (Data((0, 5, 6), (2,), ("Exp",)),), {"equation": "bij->bi"}, units=(), why="slots are not zero"),
    Case(
        "Einsum",
        (Data((0, 4, 3, 6), (2, 3)), Data((0, 4, 3, 6), (2, 3))),
        {"equation": "bqhd,bkhd->bhqk"},
        units=(3,),
        summed=(6,),
        missing=True,
        why="q . k: heads, where more weights hang on them, else the same dims in every head",
    ),
    Case("Einsum", (Data((0, 6, 6), (1,)),), {"equation": "bii->bi"}, units=(), why="a diagonal"),
    Case(
        "Einsum",
        (Data((0, 3, 4), (1, 2)), Weight((3, 4, 5))),
        {"equation": "bhd,hdo->bo"},
        units=(4, 5),
        missing=True,
        why="columns of (h, d)",
    ),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)
