"""Quantized weights as the real numbers that they stand for, and back.

A layer of a quantized model reads DequantizeLinear(integers), or DequantizeLinear(QuantizeLinear(numbers)) as models
trained with simulated rounding are exported. What data tell of such a layer is told in real numbers, on a twin of the
model, node for node, whose weights are real constants. What they are to become is rounded back into the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxprune.engine.coupling import Coupling, Use
from onnxprune.engine.units import Units
from onnxprune.graph.constants import Constants, constants
from onnxprune.ops.zero_points import along

__all__ = ["in_reals", "rounded"]

BIAS = 2  # where Conv, ConvTranspose and Gemm read theirs
WHOLE_BYTES = frozenset({"int8", "uint8", "int16", "uint16", "int32"})  # a fit rounded to fewer bits is worth little


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant that one node reads as real numbers and the model holds in quantized form.

    Attributes:
        steps: the DequantizeLinear and, if there is one, the QuantizeLinear before it.
        holder: the name of the constant that holds it, as integers or, before a QuantizeLinear, as real numbers.
        held: what that constant holds.
        scales: the scale as it is.
        zero: the zero point as it broadcasts against the weight.
        dtype: the type of the integers.
        owned: nothing else reads the scale.
    """

    steps: tuple[ir.Node, ...]
    holder: str
    held: np.ndarray
    scales: np.ndarray
    zero: np.ndarray
    dtype: np.dtype
    owned: bool

    @property
    def name(self) -> str:
        """The name of the real numbers."""
        return str(self.steps[0].outputs[0].name)

    @property
    def reader(self) -> tuple[ir.Node, int]:
        """The node and the input that read them."""
        ((node, slot),) = self.steps[0].outputs[0].uses()
        return node, slot

    @property
    def is_bias(self) -> bool:
        """Whether they are added to what a node makes of its factors."""
        return self.reader[1] == BIAS

    def integers(self) -> np.ndarray:
        """Returns the integers, as float64."""
        if len(self.steps) == 1:
            return self.held.astype(np.float64)
        return self._nearest(self.held, self.scales, np.iinfo(self.dtype).min, np.iinfo(self.dtype).max)

    def reals(self) -> np.ndarray:
        """Returns the real numbers, in the scale's type."""
        return np.asarray((self.integers() - self.zero) * self._spread(self.scales), self.scales.dtype)

    def tensor(self) -> ir.TensorProtocol:
        """Returns the real numbers as a tensor."""
        return ir.Tensor(self.reals(), name=self.name)

    def growth(self, reals: np.ndarray) -> np.ndarray:
        """Returns the factor, at least 1, by which the scale must grow for new numbers to fit into the range."""
        low, high = self._range()
        bound = np.where(reals < 0, low - self.zero, high - self.zero) * self._spread(self.scales)
        over = np.divide(reals, bound, out=np.ones(reals.shape), where=bound != 0)
        axes = tuple(k for k, n in enumerate(self._spread(self.scales).shape) if n == 1)
        return np.asarray(over.max(axis=axes, initial=1.0)).reshape(self.scales.shape)

    def holding(self, reals: np.ndarray, growth: np.ndarray) -> np.ndarray:
        """Returns what the constant is to hold for new numbers, in its own type."""
        if len(self.steps) > 1:
            return reals.astype(self.held.dtype)
        return self._nearest(reals, self.scales * growth, *self._range()).astype(self.held.dtype)

    def _range(self) -> tuple[float, float]:
        """Returns the smallest and the largest integer to write: as far from the zero point as one of the old ones.

        Weights of 7 bits keep to them: beyond, sums of products in 16 bits overflow on some processors.
        """
        bounds = np.iinfo(self.dtype)
        used = float(np.abs(self.integers() - self.zero).max(initial=0))
        most = bounds.max if self.is_bias or not used else used
        return max(float(self.zero.min()) - most, bounds.min), min(float(self.zero.max()) + most, bounds.max)

    def _nearest(self, reals: np.ndarray, scales: np.ndarray, low: float, high: float) -> np.ndarray:
        return np.asarray(np.clip(np.rint(reals.astype(np.float64) / self._spread(scales)) + self.zero, low, high))

    def _spread(self, scales: np.ndarray) -> np.ndarray:
        """Returns scales as they broadcast against the weight, in float64."""
        return _spread(self.steps[0], scales, self.held.shape)


def in_reals(units: Units) -> Units:
    """Returns the same units of a model whose quantized weights are real constants; itself where there are none.

    Its nodes have the same numbers: a Constant stands where a DequantizeLinear stood.
    """
    coupling = units.coupling
    found = list(_found(coupling))
    if not found:
        return units
    model = coupling.model.clone()
    nodes, number = list(model.graph), {node: k for k, node in enumerate(coupling.nodes)}
    moved: dict[int, Use] = {}
    for s in found:
        old, at, slot = nodes[number[s.steps[0]]], number[s.reader[0]], s.reader[1]
        tensor = ir.LazyTensor(s.tensor, ir.DataType.from_numpy(s.scales.dtype), ir.Shape(s.held.shape), name=s.name)
        new = ir.node("Constant", [], attributes={"value": tensor}, name=old.name)
        old.outputs[0].replace_all_uses_with(new.outputs[0])
        old.outputs[0].name, new.outputs[0].name = None, s.name
        model.graph.insert_before(old, new)
        model.graph.remove(old, safe=True)
        seen = coupling.seen[at][slot]
        use = Use(at, slot, s.name, s.held.shape, () if seen is None else seen.arrays)
        moved |= {number[step]: use for step in s.steps}
    uses = [moved.get(use.node, use) for use in coupling.uses]
    return replace(units, coupling=replace(coupling, model=model, uses=uses))


def rounded(coupling: Coupling, reals: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns new contents of a model's own constants for new real ones of its twin.

    Where new numbers don't fit into the range of the old ones their scale grows, and with it that of the bias, which
    runtimes take for the product of the factors' scales. A scale that something else reads stays.
    """
    found = {s.name: s for s in _found(coupling)}
    biases = {s.reader[0]: s for s in found.values() if s.is_bias}
    written = {name: content for name, content in reals.items() if name not in found}
    grown: dict[str, np.ndarray] = {}
    for s in (found[name] for name in reals if name in found and not found[name].is_bias):
        bias = biases.get(s.reader[0])
        together = [s] if bias is None else [s, bias]
        growth = s.growth(reals[s.name])
        if (growth > 1).any() and all(x.owned and x.scales.size == s.scales.size for x in together):
            grown |= {x.name: growth.reshape(x.scales.shape) for x in together}
    for s in (found[name] for name in {**reals, **grown} if name in found):
        growth = grown.get(s.name, np.ones(()))
        written[s.holder] = s.holding(reals[s.name] if s.name in reals else s.reals(), growth)
        if (growth > 1).any():
            names = {str(step.inputs[1].name) for step in s.steps if step.inputs[1] is not None}
            written |= dict.fromkeys(names, (s.scales * growth).astype(s.scales.dtype))
    return written


def _found(coupling: Coupling) -> Iterator[Stored]:
    """Yields the quantized weights and biases of nodes of the graph, one reader each."""
    tensors = constants(coupling.model.graph)
    readers = Counter(v.name for node in coupling.nodes for v in node.inputs if v is not None)
    readers.update(v.name for v in coupling.model.graph.outputs)
    top = set(coupling.nodes)
    for node in coupling.nodes:
        if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
            continue
        before = node.inputs[0].producer()
        steps = (node, before) if before is not None and before.op_type == "QuantizeLinear" else (node,)
        uses = [use for step in steps for v in step.outputs for use in v.uses()]
        if len(uses) == len(steps) and {use.node for use in uses} <= top:
            found = _stored(steps, tensors, readers)
            if found is not None:
                yield found


def _stored(steps: tuple[ir.Node, ...], tensors: Constants, readers: Counter[str | None]) -> Stored | None:
    """Returns what these nodes make of a constant of its own; None for anything computed, blocks, or under 8 bits."""
    names = [[None if v is None else v.name for v in step.inputs] for step in steps]
    holder = names[-1][0]
    constant = [name for own in names for name in own[1:] if name] + [holder]
    if not all(name in tensors for name in constant) or readers[holder] > 1 or holder is None:
        return None
    scales = [tensors[str(own[1])].numpy() for own in names]
    points = [tensors[own[2]].numpy() for own in names if len(own) > 2 and own[2]]
    held = tensors[holder].numpy()
    dtype = held.dtype if len(steps) == 1 else points[-1].dtype if points else np.dtype(np.uint8)
    alike = all(np.array_equal(scales[0], x) for x in scales) and all(np.array_equal(points[0], x) for x in points)
    if not alike or scales[0].ndim > 1 or not (scales[0] > 0).all() or dtype.name not in WHOLE_BYTES:
        return None
    zero = _spread(steps[0], points[0] if points else np.zeros(()), held.shape)
    read = Counter(own[1] for own in names)
    owned = all(readers[name] == count for name, count in read.items())
    return Stored(steps, holder, held, scales[0], zero, dtype, owned)


def _spread(step: ir.Node, numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns scales or zero points as they broadcast against a weight of this shape, in float64."""
    spread = along(step, numbers, shape) if numbers.size > 1 else numbers.reshape((1,) * len(shape))
    return spread.astype(np.float64)
