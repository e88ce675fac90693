"""Where operator families hang what they know: coupling, MACs, sizes and attributes, one home per family.

`conv = operator("Conv")` registers names; `@conv.coupling`, `@conv.macs` and `@conv.sizes` hang rules on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from onnxprune.engine.labels import Labels, Reason
from onnxprune.engine.tensors import Tensor, Verbs, leaf
from onnxprune.graph.trace import Trace

Shape = tuple[int, ...]
Pair = tuple[np.ndarray, np.ndarray]


class Unsupported(Exception):
    """A rule's word that it does not know this form of its operator: the node becomes a barrier, with this reason."""


class Node:
    """One node as rules see it: attributes with defaults, versions, and the shapes and contents of a trace."""

    def __init__(self, node: ir.Node, version: int, trace: Trace) -> None:
        self.node = node
        self.op = node.op_type
        self.version = version
        self.trace = trace

    def attr(self, name: str, default: Any = None) -> Any:
        """Returns an attribute's value, or `default` where the node has none of that name."""
        a = self.node.attributes.get(name)
        return default if a is None else a.value

    def name(self, slot: int) -> str | None:
        """Returns the name of input `slot`, or None where it is absent."""
        v = self.node.inputs[slot] if slot < len(self.node.inputs) else None
        return None if v is None else v.name

    def has(self, slot: int) -> bool:
        """Returns whether input `slot` is given."""
        return self.name(slot) is not None

    def shape(self, slot: int) -> Shape:
        """Returns the shape of input `slot` in the first run; raises Unsupported where it is not known."""
        return self._known(self.name(slot))[0]

    def out_shape(self, k: int = 0) -> Shape:
        """Returns the shape of output `k` in the first run; raises Unsupported where it is not known."""
        return self._known(self.node.outputs[k].name)[0]

    def out_dynamic(self, k: int = 0) -> tuple[bool, ...]:
        """Returns, for each axis of output `k`, whether its size differs between the runs."""
        a, b = self._known(self.node.outputs[k].name)
        return tuple(m != n for m, n in zip(a, b, strict=True))

    def _known(self, name: str | None) -> tuple[Shape, Shape]:
        pair = self.trace.shapes.get(name or "")
        if pair is None or len(pair[0]) != len(pair[1]):
            raise Unsupported("its shape is not known")
        return pair

    def values(self, slot: int) -> Pair | None:
        """Returns the contents of input `slot` in both runs where they do not depend on the data, else None."""
        return self.trace.values.get(self.name(slot) or "")

    def value(self, slot: int) -> np.ndarray | None:
        """Returns the contents of input `slot` where they are the same in both runs, else None."""
        pair = self.values(slot)
        return pair[0] if pair is not None and np.array_equal(*pair) else None

    def is_static(self, slot: int) -> bool:
        """Returns whether input `slot` is independent of the data of the graph's inputs."""
        return self.name(slot) in self.trace.static


class Site(Node, Verbs):
    """One node as its coupling rule sees it: labelled inputs (`site[0]`) and the verbs."""

    def __init__(
        self,
        node: ir.Node,
        version: int,
        trace: Trace,
        labels: Labels,
        inputs: Sequence[Tensor | None],
        where: str,
        approximate: bool = False,
    ) -> None:
        Node.__init__(self, node, version, trace)
        Verbs.__init__(
            self, labels, Reason(where, node.op_type, "every result depends on all channels of the axis"), approximate
        )
        self.inputs = list(inputs)
        self.claims: dict[int, tuple[np.ndarray, ...]] = {}
        self.produced: list[np.ndarray] = []
        self.contracted: list[np.ndarray] = []
        self.direct: frozenset[int] = (
            frozenset()
        )  # inputs that are constants used here only: their labels may be claimed
        # inputs that stay whole: a node may stand before, which picks what is left
        self.pickable: frozenset[int] = frozenset()
        self.picked: dict[int, Tensor] = {}

    def __getitem__(self, slot: int) -> Tensor:
        """Returns the labelled input; raises Unsupported where it is absent."""
        t = self.inputs[slot] if slot < len(self.inputs) else None
        if t is None:
            raise Unsupported(f"input {slot} is missing")
        return t

    def get(self, slot: int) -> Tensor | None:
        """Returns the labelled input, or None where it is absent."""
        return self.inputs[slot] if slot < len(self.inputs) else None

    def given(self) -> list[Tensor]:
        """Returns the labelled inputs that are there."""
        return [t for t in self.inputs if t is not None]

    def whole(self, slot: int) -> Tensor | None:
        """Returns an input without zeros, made of constants alone, with labels of its own.

        It is never set to zero: what is left of it is picked right before this node. None where that can't be.
        """
        content = self.value(slot) if slot in self.pickable else None
        if content is None or not content.all() or max(content.shape, default=1) == 1:
            return None
        self.picked[slot] = leaf(self.labels, content.shape, zero=False)
        return self.picked[slot]

    def produce(self, labels: np.ndarray) -> None:
        """Says that a parameter here makes these indices: they can be units."""
        self.produced.append(labels)

    def product(self, equation: str, *slots: int) -> Tensor:
        """Returns the contraction of these inputs; a parameter among them produces its free axes."""
        return self.product_of(equation, [self[s] for s in slots], [self.is_static(s) for s in slots])

    def product_of(self, equation: str, tensors: Sequence[Tensor], static: Sequence[bool]) -> Tensor:
        """Returns the contraction of tensors; those that are static produce their free axes if another is not."""
        terms, result = equation.split("->")
        for t, term in zip(tensors, terms.split(","), strict=True):
            self.contracted += [
                a for a in t.arrays if any(term[k] not in result for k, n in enumerate(a.shape) if n > 1)
            ]
        if not all(static):
            for t, term, fixed in zip(tensors, terms.split(","), static, strict=True):
                for a in t.arrays if fixed else ():
                    if all(term[k] in result for k, n in enumerate(a.shape) if n > 1):
                        self.produce(a)
        return self.contract(equation, *tensors)


Output = Tensor | Sequence[Tensor | None]


@dataclass(frozen=True)
class Need:
    """What a node must find in an input that carries sizes (an array for each run), or in an attribute (one value).

    `static` holds for both runs and all others (with 0, 1 or -1 for what varies), where there is such a thing, once the
    `attributes` are what they are here (None: not given).
    """

    where: int | str
    values: Any
    static: np.ndarray | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """What restores a statistic over a cut axis: a factor on a constant input, or a node behind an output.

    Attributes:
        factor: the number.
        output: the output that the node stands behind.
        slot: the constant input that is multiplied.
        by: operator of the node.
    """

    factor: float
    output: int | None = None
    slot: int | None = None
    by: Literal["Mul", "Max", "Min"] = "Mul"


class Sized(Protocol):
    """One node as its size rule sees it, after the cut; `run` is 0 or 1."""

    node: ir.Node
    op: str
    version: int
    approximate: bool

    def attr(self, name: str, default: Any = None) -> Any:
        """Returns an attribute of the original node, or `default` where it has none of that name."""
        ...

    def has(self, slot: int) -> bool:
        """Returns whether input `slot` is given."""
        ...

    def old(self, slot: int, run: int = 0) -> Shape:
        """Returns the input's shape before the cut."""
        ...

    def new(self, slot: int, run: int = 0) -> Shape:
        """Returns the input's shape after the cut."""
        ...

    def old_out(self, k: int = 0, run: int = 0) -> Shape:
        """Returns the output's shape before the cut."""
        ...

    def new_out(self, k: int = 0, run: int = 0) -> Shape:
        """Returns the output's shape after the cut."""
        ...

    def before(self, slot: int, run: int = 0) -> np.ndarray | None:
        """Returns the contents of an input before the cut, None where they depend on data."""
        ...

    def arriving(self, slot: int, run: int = 0) -> np.ndarray | None:
        """Returns the contents that arrive after the cut and the edits so far, None where they depend on data."""
        ...

    def entry(self, slot: int, k: int, run: int = 0) -> int | None:
        """Returns entry `k` of the list of sizes that arrives at an input, None where just this one depends on data."""
        ...

    def kept(self, slot: int, axis: int) -> np.ndarray:
        """Returns the positions of an input's axis that stay."""
        ...

    def kept_out(self, axis: int, k: int = 0) -> np.ndarray:
        """Returns the positions of an output's axis that stay."""
        ...

    def cut_axes(self, slot: int) -> tuple[int, ...]:
        """Returns the axes of an input that lose positions."""
        ...


def differs(op: Sized, slot: int, wanted: Iterable[np.ndarray]) -> bool:
    """Returns whether something else than `wanted`, an array for each run, arrives at an input in some run."""
    arriving = ((w, op.arriving(slot, run)) for run, w in enumerate(wanted))
    return any(a is None or not np.array_equal(w, a) for w, a in arriving)


def ranks(op: Sized, axis: int) -> np.ndarray:
    """Returns where each position of an axis of the first input stands after the cut, -1 where it is gone."""
    found = np.full(op.old(0)[axis], -1)
    found[op.kept(0, axis)] = np.arange(op.new(0)[axis])
    return found


def arriving_sizes(op: Sized, slot: int, run: int) -> np.ndarray | None:
    """Returns the list of sizes for the output that arrives in a run; None where all of it depends on data.

    Of those that depend on data where others don't, it holds what the run gave.

    Raises:
        Unsupported: the cut changes a size that depends on data.
    """
    whole = op.arriving(slot, run)
    if whole is not None:
        return whole
    count = op.old(slot, run)[0]
    old, new = (sizes[len(sizes) - count :] for sizes in (op.old_out(0, run), op.new_out(0, run)))
    entries = [op.entry(slot, at, run) for at in range(count)]
    if any(e is None and n != m for e, n, m in zip(entries, old, new, strict=True)):
        raise Unsupported("a size that depends on data stands where the cut changes it")
    known = any(e is not None for e in entries)
    return np.array([n if e is None else e for e, n in zip(entries, new, strict=True)], np.int64) if known else None


SizeRule = Callable[[Sized], Iterable[Need | Scale]]
MacsRule = Callable[[Node, Sequence[Shape | None], Sequence[Shape]], int]
Rule = TypeVar("Rule", bound=Callable[..., Any])


class Slot(Generic[Rule]):
    """A place for one rule of an operator; filling it twice raises."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.rule: Rule | None = None

    def __call__(self, rule: Rule) -> Rule:
        """Hangs `rule` here; used as a decorator."""
        if self.rule is not None:
            raise ValueError(f"{self.what} is registered twice")
        self.rule = rule
        return rule


@dataclass(frozen=True)
class Quantized:
    """Where the scale and the zero point of a quantized input or output stand; k is input k, ~k is output k."""

    scale: int | None = None
    zero: int | None = None


class Operator:
    """All that the program knows of one operator family."""

    def __init__(
        self,
        names: Sequence[str],
        domain: str,
        size_slots: Iterable[int],
        doc: str,
        quantized: Mapping[int, Quantized] | None = None,
    ) -> None:
        self.names, self.domain, self.doc = tuple(names), domain, doc
        self.size_slots = frozenset(size_slots)  # inputs that carry sizes, indices or bounds
        self.quantized = dict(quantized or {})
        self.scale_slots: frozenset[int] = frozenset()  # inputs that scale channels of unit variance
        self.nonzero_slots: frozenset[int] = frozenset()  # inputs that must not become zero, as divisors
        self.state_slots: frozenset[int] = frozenset()  # inputs that are states to start from, zeros mostly
        self.pointwise = False  # makes of each number another one, perhaps by parameters of its channel
        what = "/".join(names)
        self.coupling: Slot[Callable[[Site], Output]] = Slot(f"coupling of {what}")
        self.macs: Slot[MacsRule] = Slot(f"MACs of {what}")
        self.sizes: Slot[SizeRule] = Slot(f"sizes of {what}")
        self.linear: Slot[Callable[[Node], Any]] = Slot(f"matrix of {what}")  # see ops/linear.py


REGISTRY: dict[tuple[str, str], Operator] = {}


def operator(
    *names: str,
    domain: str = "",
    size_slots: Iterable[int] = (),
    doc: str = "",
    quantized: Mapping[int, Quantized] | None = None,
) -> Operator:
    """Registers operators that share rules and returns their home.

    Args:
        names: operator types.
        domain: "" for ai.onnx.
        size_slots: inputs that carry sizes, indices or bounds rather than data.
        doc: one sentence for docs/operators.md: what is coupled, what freezes.
        quantized: inputs (k) and outputs (~k) that hold quantized numbers; also says which int32 constants are biases.
    """
    new = Operator(names, domain, size_slots, doc, quantized)
    for name in names:
        if (domain, name) in REGISTRY:
            raise ValueError(f"operator {domain or 'ai.onnx'}::{name} is registered twice")
        REGISTRY[domain, name] = new
    return new


def lookup(node: ir.Node) -> Operator | None:
    """Returns the home of a node's operator, or None where it has no rules."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return REGISTRY.get((domain, node.op_type))
