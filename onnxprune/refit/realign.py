"""Made-up inputs through real BatchNormalizations: statistics of what is fed stand in for the stored ones.

Inputs that were made up do not have the statistics that a network was trained on. Where BatchNormalization is still in
the graph, normalising by what the made-up inputs really give brings every layer behind it back to the distribution it
knows. The weights are refitted in such a network and taken over into the one with the stored statistics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.frontier import Frontier, Spool
from onnxprune.graph.constants import constants
from onnxprune.graph.edit import replace_constant
from onnxprune.ops.normalization import in_training

MEAN, VARIANCE = 3, 4  # inputs of BatchNormalization


def realigned(
    coupling: Coupling, batches: Iterable[Mapping[str, np.ndarray]], providers: Sequence[str], spool: Spool
) -> Coupling:
    """Returns the coupled model with the statistics of these inputs in its BatchNormalizations, in node order.

    A statistic that several nodes share stays as it is.
    """
    tensors = constants(coupling.model.graph)
    readers = Counter(v.name for n in coupling.nodes for v in n.inputs if v is not None)
    frontier = Frontier(coupling, batches, providers, spool, [])
    for index, node in enumerate(coupling.nodes):
        if node.op_type != "BatchNormalization" or in_training(node):
            continue
        x, mean, variance = (node.inputs[k] for k in (0, MEAN, VARIANCE))
        if x is None or mean is None or variance is None or not x.name or not mean.name or not variance.name:
            continue
        if any(name not in tensors or readers[name] > 1 for name in (mean.name, variance.name)):
            continue
        frontier.advance(index)
        stats = _statistics(values[x.name] for values in frontier.values)
        for name, found in zip((mean.name, variance.name), stats, strict=True):
            frontier.weights[name] = found.astype(tensors[name].numpy().dtype)
    if not frontier.weights:
        return coupling
    model = coupling.model.clone()
    for name, content in frontier.weights.items():
        replace_constant(model, name, ir.Tensor(content, dtype=tensors[name].dtype, name=tensors[name].name))
    return replace(coupling, model=model)


def _statistics(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and variance of each channel (axis 1) over all parts."""
    count, total, square = 0, np.zeros(()), np.zeros(())
    for p in parts:
        axes = tuple(k for k in range(p.ndim) if k != 1)
        count += p.size // p.shape[1]
        total = total + p.sum(axis=axes, dtype=np.float64)
        square = square + np.square(p, dtype=np.float64).sum(axis=axes)
    mean = total / count
    return mean, np.maximum(square / count - mean**2, 0)
