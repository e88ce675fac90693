"""Numbers that constants alone make, and that would keep a weight whole beside the part of it that is left.

A norm that divides a weight is that of the whole weight, after the cut too. Where exporters leave it in the graph,
the file would hold the weight twice: in full for its norm, and what is left of it. So such numbers become constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.cutting import Cutting
from onnxprune.graph.dependence import givens, made_of

__all__ = ["Precomputed", "precomputed"]


@dataclass(frozen=True)
class Precomputed:
    """What a cut makes constants.

    Attributes:
        contents: numbers by the name of their value.
        gone: nodes that computed them, by number, and nothing else.
    """

    contents: dict[str, np.ndarray]
    gone: frozenset[int]


def precomputed(cutting: Cutting) -> Precomputed:
    """Returns the values that would keep weights whole which others read cut, where they are smaller than these."""
    coupling = cutting.coupling
    if coupling.flat is not None:
        return Precomputed({}, frozenset())
    made = made_of(coupling.model, givens(coupling.model))
    makers = {name: coupling.makers[name] for name, node in made.items() if len(node.outputs) == 1}
    found = set[str]()
    for name in {use.name for use in coupling.uses if cutting.touches(use)}:
        read = {(k, slot): _size(cutting, k, slot) for k, slot in coupling.readers.get(name, ())}
        for (k, _), size in read.items():
            if size > min(read.values()) and (value := _end(cutting, makers, k, size)) is not None:
                found.add(value)
    contents = {name: coupling.trace.values[name][0] for name in sorted(found)}
    return Precomputed(contents, _gone(coupling, makers, found))


def _size(cutting: Cutting, index: int, slot: int) -> int:
    """Returns how many numbers of a weight an input of a node gets after the cut."""
    use = cutting.coupling.uses_of.get(index, {}).get(slot)
    if use is not None:
        return int(np.prod(cutting.shape_of(use)))
    value = cutting.coupling.nodes[index].inputs[slot]
    return 0 if value is None else int(np.prod(cutting.coupling.trace.shapes[str(value.name)][0]))


def _end(cutting: Cutting, makers: dict[str, int], index: int, size: int) -> str | None:
    """Returns the smallest value on the way from a node that nothing is cut of; None where none is below a size."""
    coupling = cutting.coupling
    best, least = None, size
    while (name := str(coupling.nodes[index].outputs[0].name)) in makers and name not in coupling.read_elsewhere:
        t, count = coupling.tensors.get(name), int(np.prod(coupling.trace.shapes[name][0]))
        cut = any(cutting.touches(use) for use in coupling.uses_of.get(index, {}).values())
        if cut or (t is not None and cutting.cut_axes(t)) or count > least or (best is not None and count == least):
            break
        readers = coupling.readers.get(name, [])
        if count < least and readers and name in coupling.trace.values:
            best, least = name, count
        if len(readers) != 1:
            break
        index = readers[0][0]
    return best


def _gone(coupling: Coupling, makers: dict[str, int], found: set[str]) -> frozenset[int]:
    """Returns the nodes that nothing is left of but values that become constants."""
    gone, waiting, behind = set[int](), list(found), set[str]()
    while waiting:
        name = waiting.pop()
        if name in makers and name not in behind:
            behind.add(name)
            waiting += [str(v.name) for v in coupling.nodes[makers[name]].inputs if v is not None]
    for name in sorted(behind, key=makers.__getitem__, reverse=True):
        unread = {k for k, _ in coupling.readers.get(name, ())} <= gone and name not in coupling.read_elsewhere
        if name in found or unread:
            gone.add(makers[name])
    return frozenset(gone)
