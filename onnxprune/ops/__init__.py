"""Operator families: importing this package registers every rule."""

from onnxprune.ops import (
    conv,
    elementwise,
    indexing,
    matmul,
    movement,
    normalization,
    pooling,
    quantized,
    recurrent,
    reduction,
    sizes_in_graph,
)
from onnxprune.ops.registry import REGISTRY, Need, Node, Operator, Scale, Site, Sized, Unsupported, lookup, operator

__all__ = [
    "REGISTRY",
    "Need",
    "Node",
    "Operator",
    "Scale",
    "Site",
    "Sized",
    "Unsupported",
    "conv",
    "elementwise",
    "indexing",
    "lookup",
    "matmul",
    "movement",
    "normalization",
    "operator",
    "pooling",
    "quantized",
    "recurrent",
    "reduction",
    "sizes_in_graph",
]
