"""Elementwise operators."""

from __future__ import annotations

import numpy as np
from rows import prove, table

from onnxprune.testing import Case, Consumer, Data, Weight

BOOL, INT32, UINT8 = "Cast:9", "Cast:6", "Cast:2"
X = Data((0, 8, 5))
TWO, HALF, MINUS = (np.array(v, np.float32) for v in (2, 0.5, -0.5))
EXPONENTS = np.linspace(0.5, 2, 8, dtype=np.float32).reshape(8, 1)


def through(*ops: str) -> Data:
    return Data((0, 8, 5), (1,), ops)


STAYS_ZERO = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Tanh", "Erf", "Sin", "Tan", "Atan", "Sinh", "Asinh", "Abs"),
    *(
        "Neg",
        "Sign",
        "Floor",
        "Ceil",
        "Round",
        "Identity",
        "Softsign",
        "HardSwish",
        "Mish",
        "ThresholdedRelu",
        "Shrink",
    ),
)
ROWS = [
    *(Case(op, (X,), units=(8,)) for op in STAYS_ZERO),
    Case("Swish", (X,), opset=24, units=(8,)),
    Case("Asin", (through("Softsign"),), units=(8,)),
    Case("Atanh", (through("Softsign"),), units=(8,)),
    Case("Sqrt", (through("Abs"),), units=(8,)),
    Case("Cast", (X,), {"to": 6}, units=(8,)),
    Case("Cast", (X,), {"to": 11}, 9, units=(8,)),
    Case("BitCast", (X,), {"to": 6}, 26, units=(8,)),
    Case("CastLike", (X, np.zeros(3, np.float64)), units=(8,), why="only the type of the second input is read"),
    Case("Shrink", (X,), {"lambd": -0.5, "bias": 0.25}, units=(8,), summed=(), why="0 is moved by the bias"),
    Case("Dropout", (X,), {"ratio": 0.3}, 7, units=(8,)),
    Case("Dropout", (X, HALF), opset=12, units=(8,)),
    Case("Dropout", (X, HALF), opset=13, outputs=2, units=(8,), summed=(), why="the mask is 1 at cut slots"),
    *(Case(op, (X,), units=(8,), summed=()) for op in ("Sigmoid", "HardSigmoid", "Exp", "Softplus", "Cos", "Cosh")),
    Case("Acos", (through("Softsign"),), units=(8,), summed=()),
    Case("Acosh", (through("Abs", "Exp"),), units=(8,), summed=()),
    Case("Acosh", (through("Abs"),), units=(), why="not a number at 0"),
    Case("Log", (through("Sigmoid"),), units=(8,), summed=()),
    Case("Log", (through("Abs"),), units=(), why="infinite at 0", missing=True),
    Case("Reciprocal", (through("Sigmoid"),), units=(8,), summed=()),
    Case("Reciprocal", (X,), units=(), why="infinite at 0", missing=True),
    *(Case(op, (X,), units=(8,), summed=()) for op in ("IsNaN", "IsInf")),
    Case("Not", (through("Relu", BOOL),), units=(8,), summed=()),
    *(Case(op, (through("Relu", BOOL), through("Relu", BOOL)), units=(8,), summed=()) for op in ("And", "Or", "Xor")),
    *(
        Case(op, (X, Weight((8, 1))), opset=16, units=(8,), summed=())
        for op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
    ),
    *(
        Case(op, (through("Round", INT32), through("Round", INT32)), units=(8,), summed=())
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
    ),
    Case("BitwiseNot", (through("Round", INT32),), units=(8,), summed=()),
    Case(
        "BitShift",
        (through("Abs", "Round", UINT8), np.array(1, np.uint8)),
        {"direction": "LEFT"},
        units=(8,),
        summed=(),
    ),
    Case("Bernoulli", (through("Sign", "Relu"),), units=(8,), summed=()),
    *(Case(op, (X, Weight((8, 1))), units=(8,)) for op in ("Add", "Sub", "Max", "Min", "Sum", "Mean", "Mul")),
    *(Case(op, (X, X, Weight((8, 5))), units=(8,)) for op in ("Sum", "Mean", "Max", "Min")),
    *(Case(op, (X, TWO), units=(8,), summed=()) for op in ("Add", "Sub", "Max")),
    Case("Max", (X, np.zeros(1, np.float32)), units=(8,), why="0 is zero at every slot"),
    Case("Mul", (X, TWO), units=(8,)),
    Case("Mul", (X, through("Sigmoid")), units=(8,), why="one zero factor is enough"),
    Case("Add", (X, through("Sigmoid")), units=(8,), summed=()),
    Case("Add", (X, Data((0, 8, 5), ())), units=(), why="a graph input has a fixed size", missing=True),
    Case("Add", (X, Data((0, 1, 5), ())), units=(8,), summed=(), why="broadcast over the channels"),
    Case(
        "Add",
        (Data((0, 8, 1)), Data((0, 1, 3), (2,))),
        units=(8,),
        summed=(),
        why="rows or columns, not both",
        missing=True,
    ),
    Case(
        "Mul",
        (Data((0, 3, 5), (1, 2)), Weight((3, 1))),
        units=(5,),
        why="a row's slot lives as long as one cell does",
        missing=True,
    ),
    Case("PRelu", (X, Weight((8, 1))), units=(8,)),
    Case("PRelu", (X, Weight((1,))), opset=9, units=(8,)),
    Case("Mod", (X, TWO), {"fmod": 1}, units=(8,)),
    Case("Mod", (X, Weight((8, 1))), {"fmod": 1}, units=(8,), why="a constant divisor stays whole"),
    Case("Div", (X, TWO), units=(8,)),
    Case("Div", (X, Weight((8, 1))), units=(8,), why="a constant divisor stays whole"),
    Case("Div", (X, through("Sigmoid")), units=(8,)),
    Case("Div", (TWO, through("Sigmoid")), units=(8,), summed=()),
    Case("Pow", (X, TWO), units=(8,)),
    Case("Pow", (through("Abs"), HALF), opset=12, units=(8,)),
    Case("Pow", (through("Abs"), EXPONENTS), units=(8,), why="a table of exponents stays whole"),
    Case("Pow", (through("Abs"), MINUS), units=(), why="infinite at 0", missing=True),
    Case("Pow", (through("Sigmoid"), MINUS), units=(8,), summed=()),
    Case("Pow", (X, np.zeros(1, np.float32)), units=(8,), summed=(), why="0 ** 0 is 1"),
    Case("Where", (np.arange(40).reshape(8, 5) % 3 == 0, X, X), units=(), why="a table of booleans is of a fixed size"),
    Case("Where", (Data((0, 8, 5), (1,), ("Relu", BOOL)), X, TWO), units=(8,), summed=()),
    Case("Where", (Data((0, 8, 5), (1,), ("Relu", BOOL)), X, np.zeros((), np.float32)), units=(8,)),
    Case("Where", (Data((0, 1, 5), (), ("Relu", BOOL)), X, Weight((8, 1))), units=(8,)),
    Case("Clip", (X, np.array(0, np.float32), np.array(6, np.float32)), units=(8,)),
    Case("Clip", (X, None, np.array(1, np.float32)), opset=11, units=(8,)),
    Case("Clip", (X, np.array(1, np.float32)), units=(8,), summed=(), why="0 lies outside"),
    Case("Clip", (X,), {"min": 0.0, "max": 6.0}, 6 + 1, units=(8,)),
    Case("Clip", (X,), {"min": 0.5}, 6 + 1, units=(8,), summed=(), why="0 lies outside"),
    Case("Gelu", (X,), {"approximate": "tanh"}, units=(8,)),
    *(Case(op, (X,), domain="com.microsoft", units=(8,)) for op in ("Gelu", "QuickGelu", "FastGelu")),
    *(
        Case(op, (Data((0, 5, 8), (2,)), Weight((8,))), domain="com.microsoft", units=(8,))
        for op in ("FastGelu", "BiasGelu")
    ),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)
