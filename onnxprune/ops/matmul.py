"""Matrix products: MatMul, Gemm, Einsum.

Spec: https://onnx.ai/onnx/operators/onnx__MatMul.html, https://onnx.ai/onnx/operators/onnx__Einsum.html
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters

import numpy as np

from onnxprune.engine.tensors import Tensor, drop_axes, insert_axes
from onnxprune.ops.contraction import LinearContraction, contraction
from onnxprune.ops.linear import LinearProduct, linear_gemm, linear_matmul
from onnxprune.ops.registry import Node, Shape, Site, Unsupported, operator

matmul = operator("MatMul", doc="contracts the inner axes; batch axes are tied by broadcasting")
gemm = operator("Gemm", doc="contracts the inner axes; the addend is elementwise")
einsum = operator("Einsum", doc="contracts the letters that are not in the result")
gemm.linear(linear_gemm)


@matmul.coupling
def couple_matmul(op: Site) -> Tensor:
    """Contracts the last axis of the first with the last but one of the second factor."""
    return matrix_product(op, op[0], op[1], [op.is_static(0), op.is_static(1)])


def matrix_product(op: Site, a: Tensor, b: Tensor, static: Sequence[bool]) -> Tensor:
    """Returns numpy's matmul of two labelled tensors; static factors produce their free axes."""
    drop = []
    if len(a.shape) == 1:
        a, drop = insert_axes(a, [0]), [-2]
    if len(b.shape) == 1:
        b, drop = insert_axes(b, [1]), [*drop, -1]
    batch = ascii_letters[: max(len(a.shape), len(b.shape)) - 2]
    left, right = batch[len(batch) - len(a.shape) + 2 :] + "YZ", batch[len(batch) - len(b.shape) + 2 :] + "ZX"
    y = op.product_of(f"{left},{right}->{batch}YX", [a, b], static)
    return drop_axes(y, [k % len(y.shape) for k in drop])


@matmul.linear
def linear_product(node: Node) -> LinearProduct | LinearContraction | None:
    """Returns a MatMul as a matrix, or as one for each index of axes that the weight has before its last two."""
    left, right = len(node.shape(0)), len(node.shape(1))
    if left < 2 or right < 3:
        return linear_matmul(node)
    batch = ascii_letters[: max(left, right) - 2]
    terms = batch[len(batch) - left + 2 :] + "YZ", batch[len(batch) - right + 2 :] + "ZX", batch + "YX"
    return contraction(terms, node.shape(0), node.shape(1))


@gemm.coupling
def couple_gemm(op: Site) -> Tensor:
    """Contracts; transA and transB say which axes."""
    a, b = ("ca" if op.attr("transA", 0) else "ac"), ("bc" if op.attr("transB", 0) else "cb")
    y = op.product(f"{a},{b}->ab", 0, 1)
    addend = op.get(2)
    return y if addend is None else op.unify(y, addend)


@einsum.coupling
def couple_einsum(op: Site) -> Tensor:
    """Contracts; an ellipsis stands for letters of its own, right-aligned."""
    terms, result = spell_out(op.attr("equation"), [len(t.shape) for t in op.given()])
    if any(len(set(t)) < len(t) for t in [*terms, result]):
        raise Unsupported("a letter stands twice in one term")
    return op.product(f"{','.join(terms)}->{result}", *range(len(terms)))


@einsum.linear
def linear_einsum(node: Node) -> LinearContraction | None:
    """Returns a contraction of two factors, the second of which is a weight, as a matrix."""
    if len(node.node.inputs) != 2:
        return None
    (x, w), y = spell_out(node.attr("equation"), [len(node.shape(0)), len(node.shape(1))])
    if any(len(set(t)) < len(t) for t in (x, w, y)):
        return None
    return contraction((x, w, y), node.shape(0), node.shape(1))


def spell_out(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Returns the terms and the result of an Einsum equation, each axis one letter."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [c for c in ascii_letters if c not in equation]
    longest = max((r - len(t) + 3 for t, r in zip(terms, ranks, strict=True) if "..." in t), default=0)
    dots = "".join(free[:longest])
    if not arrow:
        letters = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        result = ("..." if "..." in left else "") + "".join(letters)
    spelled = [
        t.replace("...", dots[longest - (r - len(t) + 3) :]) if "..." in t else t
        for t, r in zip(terms, ranks, strict=True)
    ]
    return spelled, result.replace("...", dots)


@matmul.macs
def macs_matmul(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """Every output element takes one MAC per contracted index."""
    assert x[0] is not None
    return int(np.prod(y[0]) * x[0][-1])


@gemm.macs
def macs_gemm(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """Every output element takes one MAC per contracted index."""
    assert x[0] is not None
    return int(np.prod(y[0]) * x[0][0 if op.attr("transA", 0) else 1])


@einsum.macs
def macs_einsum(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """One MAC per point of the whole index space."""
    shapes = [s for s in x if s is not None]
    terms, _ = spell_out(op.attr("equation"), [len(s) for s in shapes])
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, n in zip(term, shape, strict=True):
            sizes[letter] = max(n, sizes.get(letter, 1))
    return int(np.prod(list(sizes.values())))
