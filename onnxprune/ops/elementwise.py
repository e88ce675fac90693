"""Elementwise operators of any arity: labels that meet by broadcasting are tied.

Spec: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.engine.tensors import Tensor, Zero
from onnxprune.ops.registry import Operator, Site, operator


def elementwise(*names: str, zero: Zero, domain: str = "") -> Operator:
    """Registers elementwise operators; `zero` says when a cut slot of the result is exactly zero."""
    home = operator(*names, domain=domain, doc=f"elementwise: all indices that meet are tied; zero slots: {zero}")
    home.coupling(lambda op: op.unify(*op.given(), zero=zero))
    home.pointwise = True
    return home


# f(0) = 0, so a cut slot stays zero
elementwise(
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Tanh", "Erf", "Sin", "Tan", "Asin", "Atan", "Sinh", "Asinh"),
    *("Atanh", "Abs", "Neg", "Sign", "Sqrt", "Floor", "Ceil", "Round", "Identity", "Cast", "Softsign", "Swish"),
    *("HardSwish", "Mish", "ThresholdedRelu", "BitCast"),
    zero="all",
)
elementwise("FastGelu", "BiasGelu", "QuickGelu", "Gelu", domain="com.microsoft", zero="all")
elementwise("PRelu", zero="first")
elementwise("Add", "Sub", "Sum", "Mean", zero="all")
elementwise("Mul", zero="any")
elementwise(
    *("Sigmoid", "HardSigmoid", "Exp", "Softplus", "Cos", "Cosh", "Acos", "Not", "IsNaN"),
    *("IsInf", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor", "BitShift"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "Bernoulli"),
    zero="none",
)

div = operator(
    "Div",
    "Mod",
    doc="elementwise; a divisor made of constants stays whole, labels of others that would be zero are frozen",
)
div.nonzero_slots = frozenset({1})
infinite = operator(
    *("Log", "Reciprocal", "Acosh"),
    doc="elementwise; what is made of constants stays whole, other labels that would be zero when cut are frozen",
)
infinite.nonzero_slots = frozenset({0})
extreme = operator(
    "Max", "Min", doc="elementwise; a cut slot is zero if it is in all operands (the number 0 is everywhere)"
)
like = operator("CastLike", doc="elementwise on the first input; of the second only the type is read")
pow_ = operator(
    "Pow", doc="elementwise; a table of exponents stays whole, labels of a base under a negative exponent are frozen"
)
pow_.nonzero_slots = frozenset({1})
where = operator("Where", doc="elementwise; a cut slot is zero if it is in both branches")
clip = operator("Clip", doc="elementwise; a cut slot stays zero if 0 lies inside the bounds")
shrink = operator("Shrink", doc="elementwise; a cut slot stays zero if 0 lies inside the threshold")
dropout = operator("Dropout", doc="elementwise on data and mask")
for home in (div, infinite, extreme, like, pow_, where, clip, shrink, dropout):
    home.pointwise = True


def freeze_zero_axes(op: Site, t: Tensor, why: str) -> None:
    """Marks labels on the axes of `t` whose cut slots are zero as ones that stay."""
    for a in t.arrays:
        if any(k in t.zero for k, n in enumerate(a.shape) if n > 1):
            op.freeze(a, why)


def nonzero(op: Site, slot: int, why: str) -> Tensor:
    """Returns an input that must not become zero: whole where it is made of constants, else what would be stays."""
    if (kept := op.whole(slot)) is not None:
        return kept
    freeze_zero_axes(op, op[slot], why)
    return op[slot]


@div.coupling
def couple_div(op: Site) -> Tensor:
    """A divisor whose cut slots are zero would divide by zero in the masked original; a constant one is not masked."""
    return op.unify(op[0], nonzero(op, 1, "a divisor would be zero where it is cut"), zero="first")


@infinite.coupling
def couple_infinite(op: Site) -> Tensor:
    """f(0) is no number, so what would be zero in the masked original stays."""
    return op.unify(nonzero(op, 0, f"{op.op} of a slot that would be zero where it is cut"), zero="none")


@pow_.coupling
def couple_pow(op: Site) -> Tensor:
    """0 ** e is 0 for a positive exponent and infinite for a negative one; an exponent table must not be masked."""
    table = nonzero(op, 1, "an exponent would be zero where it is cut")
    exponent = op.value(1)
    if exponent is None or (exponent < 0).any():
        freeze_zero_axes(op, op[0], "a base would be zero where it is cut, under an exponent that can be negative")
    return op.unify(op[0], table, zero="first" if exponent is not None and (exponent > 0).all() else "none")


@extreme.coupling
def couple_extreme(op: Site) -> Tensor:
    """The number 0 is zero at every slot, as in Max(x, 0)."""
    out = op.unify(*op.given())
    return zero_like(op, out, [k for k in range(len(op.inputs)) if op.has(k)])


@like.coupling
def couple_like(op: Site) -> Tensor:
    """Only the type of the second input is read."""
    return op.unify(op[0])


def zero_like(op: Site, out: Tensor, slots: Sequence[int]) -> Tensor:
    """Returns `out` with the zero axes that all of these inputs share, those left out that are the number 0."""
    numbers = [k for k in slots if op[k].arrays or (v := op.value(k)) is None or v.any()]
    shifted = [{axis + len(out.shape) - len(op[k].shape) for axis in op[k].zero} for k in numbers]
    shared = frozenset[int]().union(*shifted[:1]).intersection(*shifted)
    return Tensor(out.shape, out.arrays, frozenset(k for k in shared if out.labelled(k)))


@where.coupling
def couple_where(op: Site) -> Tensor:
    """The condition decides slot by slot; zero where both branches are."""
    return zero_like(op, op.unify(op[0], op[1], op[2], zero="none"), (1, 2))


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
    """Data and mask have the labels of the input; the mask is not zero at cut slots."""
    y = op.unify(op[0])
    return [y, *[Tensor(y.shape, y.arrays)] * (len(op.node.outputs) - 1)]
