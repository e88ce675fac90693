"""Operator families: importing this package registers every rule."""

from onnxprune.ops import (
    attention,
    conv,
    elementwise,
    fused,
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
    "attention",
    "conv",
    "elementwise",
    "fused",
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
