"""Elementwise operators of any arity: labels that meet by broadcasting are tied.

Spec: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import numpy as np

from onnxprune.ops.registry import Operator, Site, operator
from onnxprune.tensors import Tensor, Zero


def elementwise(*names: str, zero: Zero, domain: str = "") -> Operator:
    """Registers elementwise operators; `zero` says when a cut slot of the result is exactly zero."""
    home = operator(*names, domain=domain, doc=f"elementwise: all indices that meet are tied; zero slots: {zero}")
    home.coupling(lambda op: op.unify(*op.given(), zero=zero))
    return home


# f(0) = 0, so a cut slot stays zero
elementwise(
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Tanh", "Erf", "Sin", "Tan", "Asin", "Atan", "Sinh", "Asinh"),
    *("Atanh", "Abs", "Neg", "Sign", "Sqrt", "Floor", "Ceil", "Round", "Identity", "Cast", "Softsign", "Swish"),
    *("HardSwish", "Mish", "ThresholdedRelu", "BitCast"),
    zero="all",
)
elementwise("FastGelu", "BiasGelu", "QuickGelu", "Gelu", domain="com.microsoft", zero="all")
elementwise("PRelu", "CastLike", "Mod", zero="first")
elementwise("Add", "Sub", "Sum", "Mean", "Max", "Min", zero="all")
elementwise("Mul", zero="any")
elementwise(
    *("Sigmoid", "HardSigmoid", "Exp", "Log", "Softplus", "Reciprocal", "Cos", "Cosh", "Acos", "Acosh", "Not", "IsNaN"),
    *("IsInf", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor", "BitShift"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Bernoulli"),
    zero="none",
)

div = operator("Div", doc="elementwise; labels of a divisor that would be zero when cut are frozen")
pow_ = operator("Pow", doc="elementwise; labels of an exponent table are frozen")
where = operator("Where", doc="elementwise; a cut slot is zero if it is in both branches")
clip = operator("Clip", doc="elementwise; a cut slot stays zero if 0 lies inside the bounds")
shrink = operator("Shrink", doc="elementwise; a cut slot stays zero if 0 lies inside the threshold")
dropout = operator("Dropout", doc="elementwise on data and mask")


def freeze_zero_axes(op: Site, t: Tensor, why: str) -> None:
    """Marks labels on the axes of `t` whose cut slots are zero as ones that stay."""
    for a in t.arrays:
        if any(k in t.zero for k, n in enumerate(a.shape) if n > 1):
            op.freeze(a, why)


@div.coupling
def couple_div(op: Site) -> Tensor:
    """A divisor whose cut slots are zero would divide by zero in the masked original."""
    freeze_zero_axes(op, op[1], "a divisor would be zero where it is cut")
    return op.unify(op[0], op[1], zero="first")


@pow_.coupling
def couple_pow(op: Site) -> Tensor:
    """0 ** e is 0 for a positive exponent; an exponent table must not be masked."""
    freeze_zero_axes(op, op[1], "an exponent would be zero where it is cut")
    exponent = op.value(1)
    return op.unify(op[0], op[1], zero="first" if exponent is not None and (exponent > 0).all() else "none")


@where.coupling
def couple_where(op: Site) -> Tensor:
    """The condition decides slot by slot; zero where both branches are."""
    branches = op.unify(op[1], op[2], zero="all")
    out = op.unify(op[0], op[1], op[2], zero="none")
    shift = len(out.shape) - len(branches.shape)
    return Tensor(out.shape, out.arrays, frozenset(k + shift for k in branches.zero))


@clip.coupling
def couple_clip(op: Site) -> Tensor:
    """0 stays 0 if the bounds are known and lie around it."""
    low = _bound(op, "min", 1, -np.inf)
    high = _bound(op, "max", 2, np.inf)
    return op.unify(op[0], zero="all" if low <= 0 <= high else "none")


def _bound(op: Site, name: str, slot: int, default: float) -> float:
    """Returns a bound of Clip (attribute before opset 11, input after), NaN where it is not known."""
    if not op.has(slot):
        return float(op.attr(name, default))
    bound = op.value(slot)
    return float(bound.reshape(-1)[0]) if bound is not None else np.nan


@shrink.coupling
def couple_shrink(op: Site) -> Tensor:
    """f(0) = 0 unless the threshold is negative."""
    return op.unify(op[0], zero="all" if op.attr("lambd", 0.5) >= 0 else "none")


@dropout.coupling
def couple_dropout(op: Site) -> list[Tensor]:
    """Data and mask have the labels of the input."""
    return [op.unify(op[0])] * len(op.node.outputs)
