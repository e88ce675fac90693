"""Weights that nodes compute from constants: standardised or normalised ones, sums of a weight and an adapter.

A refit's new numbers can't be told back through arithmetic, so that what is computed becomes the constant.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxprune.engine.reads import JOINING, LAYING
from onnxprune.errors import OnnxPruneError
from onnxprune.graph.constants import Constants
from onnxprune.graph.dependence import givens, made_of
from onnxprune.graph.edit import add_constant, sweep
from onnxprune.graph.partial import run_nodes
from onnxprune.ops import lookup

__all__ = ["with_computed_weights"]

OLD = 4  # IR version below which initializers are inputs too
REAL = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


def with_computed_weights(model: ir.Model) -> ir.Model:
    """Returns a model whose linear layers read constants where they read what is computed from constants alone.

    Weights that are only moved, cast or made of integers on the way stay: there is a way back (reads.py), or integers
    keep the file small. So do those whose constants are smaller than what is made of them.

    Args:
        model: it is not changed, and returned where there is no such weight.
    """
    if model.ir_version < OLD:
        return model
    given = givens(model)
    made = made_of(model, given, but=("DequantizeLinear",))
    ways = {name: way for name, node in made.items() if _is_weight(node, name, made) and (way := _way(name, made))}
    if not ways:
        return model
    held = model.clone()
    values = {str(v.name): v for node in held.graph for v in node.outputs}
    gone = set[str]()
    for name, way in ways.items():
        inner = {v.name for node in way for v in node.outputs}
        read = {str(v.name) for node in way for v in node.inputs if v is not None and v.name and v.name not in inner}
        tensor = _computed(model, way, name, {k: given[k] for k in read})
        if tensor is not None:
            fresh = add_constant(held, name, tensor, next(iter(held.graph)))
            values[name].replace_all_uses_with(fresh)
            gone.update(str(v.name) for node in way for v in node.outputs)
    sweep(held, [values[name] for name in made if name in gone])
    return held if gone else model


def _is_weight(node: ir.Node, name: str, made: Mapping[str, ir.Node]) -> bool:
    """Returns whether a linear layer reads a value, and nothing that is computed from constants does."""
    value = next(v for v in node.outputs if v.name == name)
    uses = list(value.uses())
    if value.is_graph_output() or not uses or any(str(use.node.outputs[0].name) in made for use in uses):
        return False
    if any(use.node.graph is not node.graph for use in uses):
        return False
    homes = [lookup(use.node) for use in uses if use.idx > 0]
    return any(home is not None and home.linear.rule is not None for home in homes)


def _way(name: str, made: Mapping[str, ir.Node]) -> list[ir.Node]:
    """Returns the nodes that compute a value, in order; none where they only move numbers."""
    found, open_ = {made[name]}, [made[name]]
    while open_:
        before = {made[str(v.name)] for v in open_.pop().inputs if v is not None and v.name in made}
        open_ += before - found
        found |= before
    way = [node for node in dict.fromkeys(made.values()) if node in found]
    return [] if {node.op_type for node in way} <= LAYING | JOINING else way


def _computed(model: ir.Model, way: list[ir.Node], name: str, read: Constants) -> ir.TensorProtocol | None:
    """Returns what nodes make of constants; None where it is no weight, or larger than they are."""
    try:
        content = run_nodes(model, way, name, read, {})
    except OnnxPruneError:
        return None
    tensor = ir.Tensor(content)
    small = content.nbytes <= sum(t.nbytes for t in read.values())
    return tensor if tensor.dtype in REAL and content.ndim > 1 and small else None
