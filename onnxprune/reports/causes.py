"""What a frozen channel owes its staying to: from a node that only meets what stays, back to the one that decides."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.labels import Reason
from onnxprune.engine.tensors import FOLLOWS, Tensor

__all__ = ["Causes"]


class Causes:
    """The reasons of one coupled model, followed to where they begin."""

    def __init__(self, coupling: Coupling) -> None:
        self._coupling = coupling
        self._index = {coupling.where(k): k for k in range(len(coupling.nodes))}
        self._own: dict[tuple[str, str], Reason] = {}
        for reason in coupling.labels.reasons:
            self._own.setdefault((reason.node, reason.op), reason)

    def of(self, reason: Reason) -> Reason:
        """Returns the reason why something stays that another reason only follows; itself where it follows none."""
        seen = set()
        while reason.why in FOLLOWS and reason.node in self._index and reason.node not in seen:
            seen.add(reason.node)
            source = self._source(self._index[reason.node])
            if source is None:
                break
            reason = source
        return reason

    def _source(self, index: int) -> Reason | None:
        """Returns why what a node meets stays: the nearest node before it that reads labels and passes none on."""
        found = list(self._held(index))
        seen = {v.name for v in found}
        for value in found:
            maker = self._coupling.makers.get(str(value.name))
            if maker is None:
                return Reason(str(value.name), "", "an input of the graph")
            if any(t is not None and t.arrays for t in self._coupling.seen[maker]):
                decides = (self._coupling.where(maker), self._coupling.nodes[maker].op_type)
                return self._own.get(decides, Reason(*decides, "nothing of what it gives can be cut"))
            fresh = [v for v in self._held(maker) if v.name not in seen]
            seen |= {v.name for v in fresh}
            found += fresh
        return None

    def _held(self, index: int) -> Iterator[ir.Value]:
        """Yields the inputs of a node that have no labels and are no constants."""
        for value, t in zip(self._coupling.nodes[index].inputs, self._coupling.seen[index], strict=False):
            if value is not None and _fixed(t) and value.name in self._coupling.tensors:
                yield value


def _fixed(t: Tensor | None) -> bool:
    return t is not None and not t.arrays and max(t.shape, default=1) > 1
