"""The rest of a network behind a change, run on the dense network's live values with the changed weights fed in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.frontier import Feed, Frontier, Spool, bias_name, inputs_of, wide
from onnxprune.graph.constants import is_constant
from onnxprune.graph.runtime import open_session, run

MOST_BYTES = 1 << 30  # of constants in one session; a message ends at twice as much


@dataclass(frozen=True, eq=False)
class Change:
    """New contents of constants, and of biases where there were none.

    Attributes:
        contents: for each variant the new contents by name (`bias_name` for new biases); all have the same names.
        slots: where new biases go: input slot by node.
    """

    contents: tuple[Feed, ...] = ()
    slots: Mapping[int, int] | None = None

    def first_node(self, coupling: Coupling) -> int:
        """Returns the first node that reads anything changed; 0 if nothing is."""
        names = {name for content in self.contents for name in content}
        readers = {k for k, node in enumerate(coupling.nodes) if not names.isdisjoint(inputs_of(node))}
        return min(readers | set(self.slots or ()), default=0)


@dataclass(frozen=True, eq=False)
class _Part:
    session: ort.InferenceSession
    reads: tuple[str, ...]
    wanted: tuple[str, ...]
    fed: tuple[str, ...]


class Suffix:
    """Everything behind the first node that a change meets, ready to run; runs may go side by side."""

    def __init__(self, coupling: Coupling, change: Change, providers: Sequence[str]) -> None:
        self.outputs = tuple(str(v.name) for v in coupling.model.graph.outputs)
        self.start = change.first_node(coupling)
        plan = Frontier(coupling, [], providers, Spool(), [(n, len(coupling.nodes)) for n in self.outputs])
        example = change.contents[0] if change.contents else {}
        slots = change.slots or {}
        plan.biases.update({k: (slot, example[bias_name(k)]) for k, slot in slots.items()})
        self.parts = [self._part(plan, numbers, example, providers) for numbers in self._split(plan, example)]

    def run(self, values: Sequence[Feed], content: Feed) -> list[Feed]:
        """Returns the outputs for each batch.

        Args:
            values: the dense network's live values before `start`, the outputs made before it among them.
            content: one of the change's contents.
        """
        fed = {n: wide(content[n]) for part in self.parts for n in part.fed}
        found: list[Feed] = []
        for batch in values:
            live: dict[str, np.ndarray] = {}
            for part in self.parts:
                read = {n: live[n] if n in live else batch[n] for n in part.reads}
                made = run(part.session, part.wanted, read | {n: fed[n] for n in part.fed})
                live.update(zip(part.wanted, made, strict=True))
            found.append({n: live[n] if n in live else batch[n] for n in self.outputs})
        return found

    def _split(self, plan: Frontier, fed: Feed) -> Iterator[list[int]]:
        """Yields the numbers of the nodes that outputs need, so many at a time as go into one session."""
        needed, numbers = set(self.outputs), []
        for k in range(len(plan.nodes) - 1, self.start - 1, -1):
            node = plan.nodes[k]
            if not is_constant(node) and any(v.name in needed for v in node.outputs):
                needed |= set(inputs_of(node))
                numbers.append(k)
        part: list[int] = []
        size = 0
        for k in reversed(numbers):
            more = sum(plan.tensors[n].nbytes for n in inputs_of(plan.nodes[k]) if n in plan.tensors and n not in fed)
            if part and size + more > MOST_BYTES:
                yield part
                part, size = [], 0
            part.append(k)
            size += more
        if part:
            yield part

    def _part(self, plan: Frontier, numbers: list[int], example: Feed, providers: Sequence[str]) -> _Part:
        nodes = [plan.nodes[k] for k in numbers]
        made = dict.fromkeys(str(v.name) for n in nodes for v in n.outputs if v.name)
        names = list(dict.fromkeys(name for n in nodes for name in inputs_of(n)))
        names += [bias_name(k) for k in numbers if k in plan.biases]
        fed = {n: np.asarray(example[n]) for n in names if n in example}
        reads = [n for n in names if n not in made and n not in plan.tensors and n not in fed]
        wanted = [n for n in made if plan.last_use.get(n, -1) > numbers[-1]]
        session = open_session(plan.segment(numbers, reads, wanted, fed), providers, optimise=True)
        return _Part(session, tuple(reads), tuple(wanted), tuple(fed))


__all__ = ["Change", "Suffix"]
