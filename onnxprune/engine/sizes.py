"""Sizes in the graph: what is wrong after the cut is rewritten, entry by entry, and nothing else.

The nodes are walked in order. Small data-independent values whose inputs changed are evaluated again; at every size
slot the operator's rule says what must stand there. A wrong entry is followed back to the constant it comes from and
rewritten on that edge; where consumers disagree, the consumer gets a private constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.engine.cutting import Cutting
from onnxprune.engine.labels import Array
from onnxprune.engine.tensors import Tensor
from onnxprune.graph.constants import constants
from onnxprune.ops import Need, Scale, Unsupported, lookup
from onnxprune.ops.movement import slice_bounds, sliced

Pair = tuple[np.ndarray, np.ndarray]
Edge = tuple[int, int]
Solver = Callable[[int, int], int | None]  # (result, one operand) -> the other operand, if there is one
COPYING = {"Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity", "Flatten"}
PASSES = 20
WHERE = 9  # the opset from which there is a Where


@dataclass
class Rewrite:
    """Edits that make a cut graph run: constants on edges, and attributes (None removes one)."""

    edges: dict[Edge, np.ndarray] = field(default_factory=dict)
    own: dict[Edge, dict[int, int]] = field(default_factory=dict)  # entries of computed sizes that one reader needs
    attributes: dict[tuple[int, str], Any] = field(default_factory=dict)
    scales: dict[tuple[int, int], Scale] = field(default_factory=dict)  # (node, output): what stands behind it
    factors: dict[Edge, float] = field(default_factory=dict)  # (node, input): factor on the constant there
    failed: dict[int, str] = field(default_factory=dict)


def rewrite_sizes(cutting: Cutting) -> Rewrite:
    """Returns the edits after which every size slot holds what its operator needs; `failed` names nodes without any."""
    return _Sizes(cutting).run()


class _Sizes:
    def __init__(self, cutting: Cutting) -> None:
        self.cutting, self.coupling = cutting, cutting.coupling
        self.trace = self.coupling.trace
        self.nodes = self.coupling.nodes
        self.makers = self.coupling.makers
        self.constants = set(constants(self.coupling.model.graph))
        imports = self.coupling.model.graph.opset_imports
        self.opsets = {("" if d == "ai.onnx" else d): v for d, v in imports.items()}
        self.out = Rewrite()
        self.content: dict[str, Pair] = {}  # contents that the cut or an edit has changed
        self.partly: set[str] = set()  # lists of which data make some numbers, and the cut or an edit changes others
        self.private: set[Edge] = set()
        self.entries: dict[Edge, dict[int, int]] = {}

    def run(self) -> Rewrite:
        for _ in range(PASSES):
            before = self._done()
            self.content.clear()
            self.partly.clear()
            self.out.failed.clear()
            for index, node in enumerate(self.nodes):
                self._visit(index, node)
            if before == self._done():
                break
        flat = self.coupling.flat
        edits = (self.out.edges, self.out.attributes, self.out.scales, self.out.factors)
        for index in {i for kind in edits for i, _ in kind}:
            if flat is not None and not flat.is_its_own(index):
                self.out.failed[index] = "stands in the body of a local function, which other calls may share"
        return self.out

    def _done(self) -> tuple[int, ...]:
        """Returns how much is edited so far."""
        entries = (sum(map(len, each.values())) for each in (self.entries, self.out.own))
        return len(self.out.edges), len(self.out.attributes), len(self.private), *entries

    # ---------------------------------------------------------------- contents
    def _expected(self, name: str) -> Pair | None:
        """Returns what a data-independent value holds after the cut if it keeps its meaning: its living part."""
        t = self.coupling.tensors.get(name)
        a, b = (self._living(name, t, run) for run in (0, 1))
        return None if a is None or b is None else (a, b)

    def _living(self, name: str, t: Tensor | None, run: int) -> np.ndarray | None:
        """Returns the living part of a data-independent value, None where it depends on data."""
        pair = self.trace.values.get(name)
        if pair is None or t is None:
            return None if pair is None else pair[run]
        content = pair[run]
        for axis in range(len(t.shape)):
            if t.labelled(axis) and pair[0].shape[axis] == pair[1].shape[axis]:
                content = content.take(self.cutting.kept(t, axis), axis)
        return content

    def arriving(self, index: int, slot: int, run: int) -> np.ndarray | None:
        """Returns what arrives at an input after the cut and the edits so far."""
        found, own = self._passed(index, slot, run), self.out.own.get((index, slot))
        if found is not None and own is not None:
            found = found.copy()
            found[list(own)] = list(own.values())
        return found

    def _passed(self, index: int, slot: int, run: int) -> np.ndarray | None:
        """Returns what all readers of the value get there."""
        name = self._name(index, slot)
        if name is None:
            return None
        if (index, slot) in self.out.edges:
            return self.out.edges[index, slot]
        if name in self.content:
            return self.content[name][run]
        if name in self.constants:
            return self._living(name, self.coupling.seen[index][slot], run)
        pair = self._expected(name)
        return None if pair is None else pair[run]

    def entry(self, index: int, slot: int, k: int, run: int) -> int | None:
        """Returns entry `k` of what arrives at an input, from where it is copied; None where data make it."""
        own, whole = self.out.own.get((index, slot), {}), self.arriving(index, slot, run)
        if whole is not None:
            return whole.reshape(-1)[k].item() if k < whole.size else None
        if k in own:
            return own[k]
        maker = self.makers.get(self._name(index, slot) or "")
        if maker is None or (found := self._copied(maker, k)) is None:
            return None
        return self.entry(maker, *found, run)

    def _copied(self, index: int, k: int) -> tuple[int, int] | None:
        """Returns the input that entry `k` of what a node makes is copied from, and its place there."""
        node = self.nodes[index]
        if node.op_type in COPYING:
            return 0, k
        if node.op_type == "Concat":
            return self._part(index, k)
        size = self.trace.shapes.get(self._name(index, 0) or "", ((), ()))[0]
        if node.op_type in ("Gather", "Slice") and len(size) == 1:
            taken = self._taken(index, size[0], 0)
            return None if taken is None else (0, int(taken.reshape(-1)[k]) % size[0])
        chosen = self.arriving(index, 0, 0) if node.op_type == "Where" else None
        if chosen is None:
            return None
        slot = 1 if chosen.reshape(-1)[k if chosen.size > 1 else 0] else 2
        value = self.arriving(index, slot, 0)
        return slot, k if value is not None and value.size > 1 else 0

    def _part(self, index: int, k: int) -> tuple[int, int] | None:
        """Returns the input of a Concat of lists that entry `k` comes from, and its place there."""
        for slot in range(len(self.nodes[index].inputs)):
            size = self.trace.shapes.get(self._name(index, slot) or "", ((), ()))[0]
            if len(size) != 1:
                return None
            if k < size[0]:
                return slot, k
            k -= size[0]
        return None

    def _name(self, index: int, slot: int) -> str | None:
        inputs = self.nodes[index].inputs
        v = inputs[slot] if slot < len(inputs) else None
        return None if v is None else v.name

    def _changed(self, index: int, slot: int) -> bool:
        name = self._name(index, slot)
        return (index, slot) in self.out.edges or name in self.content or name in self.partly

    def _is_cut_data(self, name: str) -> bool:
        """Returns whether a value is a tensor of real numbers that loses some of them, rather than sizes."""
        t, pair = self.coupling.tensors.get(name), self.trace.values.get(name)
        if t is None or pair is None or pair[0].dtype.kind != "f":
            return False
        return bool(self.cutting.cut_axes(t))

    # ---------------------------------------------------------------- the walk
    def _visit(self, index: int, node: ir.Node) -> None:
        home = lookup(node)
        if node.op_type in ("Shape", "Size") and node.domain in ("", "ai.onnx"):
            self._new_shape(index, node)
            return
        if home is not None and home.sizes.rule is not None:
            try:
                for need in list(home.sizes.rule(SizeSite(self, index))):
                    self._meet(index, need)
            except Unsupported as error:
                self.out.failed[index] = str(error)
        changed = [slot for slot in range(len(node.inputs)) if self._changed(index, slot)]
        if not changed:
            return
        if all(v.name in self.trace.static for v in node.outputs if v.name):
            self._evaluate(index, node)
            off = [v.name for v in node.outputs if v.name in self.content and self._is_cut_data(v.name)]
            if not off:
                return
            for name in off:  # computed from weights and sizes alone, as queries that are learned: its rest stays
                del self.content[name]
        if self._is_list(index) and self._passes_on(index, node):
            return
        slots = home.size_slots if home is not None else frozenset[int]()
        for slot in changed:
            if slot not in slots and (index, slot) not in self.private:
                self._keep_old(index, slot)

    def _new_shape(self, index: int, node: ir.Node) -> None:
        """The contents of Shape and Size follow the cut."""
        name = self._name(index, 0)
        t = self.coupling.seen[index][0] if self.coupling.seen[index] else None
        if name is None or t is None or node.outputs[0].name is None or name not in self.trace.shapes:
            return
        if not self.cutting.cut_axes(t):
            return
        new = []
        for run in (0, 1):
            shape = self.cutting.new_shape(t, self.trace.shapes[name][run])
            new.append(np.array(np.prod(shape, dtype=np.int64)) if node.op_type == "Size" else _listed(node, shape))
        self._store(node.outputs[0].name, (new[0], new[1]))

    def _store(self, name: str, pair: Pair) -> None:
        """Remembers contents that are not what the value should hold."""
        expected = self._expected(name)
        if expected is not None and all(
            np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(pair, expected, strict=True)
        ):
            return
        self.content[name] = pair

    def _evaluate(self, index: int, node: ir.Node) -> None:
        """Computes a node again from what arrives, where all of it is known."""
        from onnx.reference import ReferenceEvaluator  # a thirtieth of a second, and many cuts compute nothing

        results: list[list[np.ndarray]] = []
        for run in (0, 1):
            feeds = {
                v.name: self.arriving(index, slot, run)
                for slot, v in enumerate(node.inputs)
                if v is not None and v.name
            }
            if any(f is None for f in feeds.values()):
                return
            try:
                proto = self._edited(index, node)
                found = ReferenceEvaluator(proto, opsets=self.opsets).run(None, feeds)
                assert isinstance(found, list)
                results.append(found)
            except (
                Exception
            ) as error:  # the reference is foreign code: whatever it raises, this node cannot be followed
                self.out.failed[index] = f"can't be evaluated after the cut ({type(error).__name__})"
                return
        outputs = [v for v in node.outputs if v.name]
        for v, a, b in zip(outputs, *results, strict=False):
            known = self.trace.values.get(v.name or "")
            if v.name and (known is not None or v.name not in self.trace.static):  # the others are too large to keep
                dtype = self.trace.dtypes[v.name] if known is None else known[0].dtype
                self._store(v.name, (np.asarray(a).astype(dtype), np.asarray(b).astype(dtype)))

    def _edited(self, index: int, node: ir.Node) -> onnx.NodeProto:
        """Returns the node with the attributes edited so far."""
        proto = ir.to_proto(node)
        assert isinstance(proto, onnx.NodeProto)
        edits = {name: value for (i, name), value in self.out.attributes.items() if i == index}
        kept = [a for a in proto.attribute if a.name not in edits]
        del proto.attribute[:]
        proto.attribute.extend(kept)
        proto.attribute.extend(onnx.helper.make_attribute(n, v) for n, v in edits.items() if v is not None)
        return proto

    def _is_list(self, index: int) -> bool:
        """Returns whether a node makes one whole number, or a list of them."""
        name = str(self.nodes[index].outputs[0].name)
        whole = name in self.trace.dtypes and self.trace.dtypes[name].kind == "i"
        return whole and len(self.trace.shapes[name][0]) <= 1

    def _passes_on(self, index: int, node: ir.Node) -> bool:
        """Returns whether a node only copies sizes of which some depend on data; who reads what it makes is told."""
        if node.op_type not in (*COPYING, "Concat", "Gather", "Slice"):
            return False
        if not self._takes_what_stays(index):
            self._evaluate(index, node)
            name = str(node.outputs[0].name)
            if name not in self.content:
                self.partly.add(name)
        return True

    def _takes_what_stays(self, index: int) -> bool:
        """Returns whether a node takes only such sizes of a shape that depends on data as the cut leaves alone."""
        maker = self.makers.get(self._name(index, 0) or "")
        if maker is None or self.nodes[maker].op_type != "Shape":
            return False
        for run in (0, 1):
            now = self.arriving(index, 0, run)
            old = _listed(self.nodes[maker], self.trace.shapes[self._name(maker, 0) or ""][run])
            if now is None or (taken := self._taken(index, len(old), run)) is None:
                return False
            if not np.array_equal(now[taken], old[taken]):
                return False
        return True

    def _taken(self, index: int, count: int, run: int) -> Array | None:
        """Returns which entries of a list of so many a Gather or a Slice takes, None where it is neither."""
        if self.nodes[index].op_type == "Gather":
            return self.arriving(index, 1, run)
        if self.nodes[index].op_type == "Slice":
            bounds = slice_bounds(SizeSite(self, index), 1, run)
            return None if bounds is None or 0 not in bounds else sliced(count, *bounds[0])
        return None

    def _keep_old(self, index: int, slot: int) -> None:
        """A number read off a pruned axis that is no size keeps its old value."""
        name = self._name(index, slot)
        old = self.trace.values.get(name or "")
        if old is None or not np.array_equal(*old):
            self.out.failed[index] = "reads a number off the pruned axis that varies at run time"
            return
        expected = self._expected(name or "")
        assert expected is not None
        self.out.edges[index, slot] = expected[0]
        self.private.add((index, slot))

    # ---------------------------------------------------------------- needs
    def _meet(self, index: int, need: Need | Scale) -> None:
        if isinstance(need, Scale):
            if need.output is not None:
                self.out.scales[index, need.output] = need
            if need.slot is not None:
                self.out.factors[index, need.slot] = need.factor
            return
        if isinstance(need.where, str):
            self.out.attributes[index, need.where] = need.values
            return
        slot, (a, b) = need.where, need.values
        name, wrong = self._name(index, slot), None
        if name is not None and (index, slot) not in self.private and name not in self.constants:
            wrong = self._wrong(index, slot, a, b)
            edits: dict[Edge, dict[int, int]] = {}
            if wrong is not None and all(
                self._trace_back(index, slot, int(k), int(a.reshape(-1)[k]), int(b.reshape(-1)[k]), edits)
                for k in wrong
            ):
                self._apply(edits)
                return
        alike = a.shape == b.shape and np.array_equal(a, b)
        static = a if alike else need.static
        if static is None or not (name is None or name in self.trace.static):  # what data make is no constant
            if wrong is None or not self._own(index, slot, wrong, a, b):
                self.out.failed[index] = "needs sizes that vary at run time and can't be traced back to constants"
            return
        self.out.edges[index, slot] = static
        self.private.add((index, slot))
        if not alike:
            self.out.attributes.update({(index, attribute): value for attribute, value in need.attributes.items()})

    def _wrong(self, index: int, slot: int, a: np.ndarray, b: np.ndarray) -> Array | None:
        """Returns which entries arrive otherwise than wanted, as far as they are known; None where none is."""
        now = [self.arriving(index, slot, run) for run in (0, 1)]
        if now[0] is not None and now[1] is not None:
            alike = now[0].shape == now[1].shape == a.shape == b.shape
            return np.flatnonzero((now[0] != a).reshape(-1) | (now[1] != b).reshape(-1)) if alike else None
        known = [(k, [self.entry(index, slot, k, run) for run in (0, 1)]) for k in range(a.size)]
        known = [(k, pair) for k, pair in known if None not in pair]
        off = [k for k, pair in known if pair != [a.reshape(-1)[k], b.reshape(-1)[k]]]
        return np.array(off, np.int64) if known else None

    def _own(self, index: int, slot: int, wrong: Array, a: np.ndarray, b: np.ndarray) -> bool:
        """Gives one reader numbers of its own for entries that others need otherwise; False where these vary."""
        if self.coupling.flat is not None or self.opsets.get("", 1) < WHERE or a.ndim != 1 or (a != b)[wrong].any():
            return False
        self.out.own.setdefault((index, slot), {}).update(zip(wrong.tolist(), a[wrong].tolist(), strict=True))
        return True

    def _apply(self, edits: dict[Edge, dict[int, int]]) -> None:
        for edge, entries in edits.items():
            base = self.arriving(*edge, 0)
            assert base is not None
            flat = base.reshape(-1).copy()
            for k, v in entries.items():
                flat[k] = v
                self.entries.setdefault(edge, {})[k] = v
            self.out.edges[edge] = flat.reshape(base.shape)

    def _trace_back(self, index: int, slot: int, flat: int, a: int, b: int, edits: dict[Edge, dict[int, int]]) -> bool:
        """Finds the constant entry behind element `flat` of an edge and notes it must be `a` (in run A) and `b`."""
        name = self._name(index, slot)
        if name is None:
            return False
        now = [self.entry(index, slot, flat, run) for run in (0, 1)]
        if None in now:
            return False
        if now == [a, b]:
            return True
        if name in self.constants:
            edge = (index, slot)
            taken = self.entries.get(edge, {}).get(flat, edits.get(edge, {}).get(flat, a))
            if a != b or taken != a or edge in self.private:
                return False
            edits.setdefault(edge, {})[flat] = a
            return True
        if (index, slot) in self.out.edges or name not in self.makers:
            return False
        return any(
            all(self._trace_back(self.makers[name], s, k, x, y, edits) for s, k, x, y in step)
            for step in self._steps(self.makers[name], flat, a, b)
        )

    def _steps(self, index: int, flat: int, a: int, b: int) -> Iterator[list[tuple[int, int, int, int]]]:
        """Yields, for element `flat` of a node's output, alternatives of (input, its element, wanted in A, in B)."""
        found, op = self._copied(index, flat), self.nodes[index].op_type
        if found is not None:
            yield [(*found, a, b)]
        elif op in ("Mul", "Div", "Add", "Sub"):
            yield from self._arithmetic(index, op, flat, a, b)

    def _arithmetic(self, index: int, op: str, flat: int, a: int, b: int) -> Iterator[list[tuple[int, int, int, int]]]:
        """Yields, for either operand, the value that gives the wanted result with the other one as it arrives."""
        pairs = [[self.arriving(index, slot, run) for run in (0, 1)] for slot in (0, 1)]
        if any(v is None for p in pairs for v in p):
            return
        x, y = ([int(v.reshape(-1)[flat if v.size > 1 else 0]) for v in p if v is not None] for p in pairs)
        places = [flat if p[0] is not None and p[0].size > 1 else 0 for p in pairs]
        solvers: dict[str, tuple[Solver, Solver]] = {
            "Mul": ((lambda r, o: r // o if o and r % o == 0 else None),) * 2,
            "Add": ((lambda r, o: r - o),) * 2,
            "Sub": ((lambda r, o: r + o), (lambda r, o: o - r)),
            "Div": ((lambda r, o: r * o), (lambda r, o: o // r if r and o % r == 0 else None)),
        }
        for slot, other in ((1, x), (0, y)):
            wanted = [solvers[op][slot](r, o) for r, o in zip((a, b), other, strict=True)]
            if wanted[0] is not None and wanted[1] is not None:
                yield [(slot, places[slot], wanted[0], wanted[1])]


def _listed(node: ir.Node, shape: Sequence[int]) -> np.ndarray:
    """Returns what a Shape tells of a value of this shape."""
    start, end = node.attributes.get("start"), node.attributes.get("end")
    return np.array(shape, np.int64)[slice(start.as_int() if start else None, end.as_int() if end else None)]


class SizeSite:
    """One node as its size rule sees it, after the cut; `run` is 0 or 1."""

    def __init__(self, sizes: _Sizes, index: int) -> None:
        self._sizes, self.index = sizes, index
        self.node = sizes.nodes[index]
        self.op = self.node.op_type
        self.approximate = sizes.coupling.approximate
        self.version = sizes.opsets.get("" if self.node.domain == "ai.onnx" else self.node.domain, 1)

    def attr(self, name: str, default: Any = None) -> Any:
        """Returns an attribute of the original node."""
        a = self.node.attributes.get(name)
        return default if a is None else a.value

    def has(self, slot: int) -> bool:
        """Returns whether input `slot` is given."""
        return self._sizes._name(self.index, slot) is not None

    def tensor(self, slot: int) -> Tensor:
        """Returns the labelled input."""
        seen = self._sizes.coupling.seen[self.index]
        t = seen[slot] if slot < len(seen) else None
        if t is None:
            raise Unsupported(f"input {slot} is missing")
        return t

    def out_tensor(self, k: int) -> Tensor:
        """Returns the labelled output."""
        name = self.node.outputs[k].name
        t = self._sizes.coupling.tensors.get(name or "")
        if t is None:
            raise Unsupported(f"output {k} is not known")
        return t

    def old(self, slot: int, run: int = 0) -> tuple[int, ...]:
        """Returns the input's shape before the cut."""
        return self._sizes.trace.shapes[self._sizes._name(self.index, slot) or ""][run]

    def new(self, slot: int, run: int = 0) -> tuple[int, ...]:
        """Returns the input's shape after the cut."""
        use = self._sizes.coupling.uses_of.get(self.index, {}).get(slot)
        if use is not None:
            return self._sizes.cutting.shape_of(use)
        return self._sizes.cutting.new_shape(self.tensor(slot), self.old(slot, run))

    def old_out(self, k: int = 0, run: int = 0) -> tuple[int, ...]:
        """Returns the output's shape before the cut."""
        return self._sizes.trace.shapes[self.node.outputs[k].name or ""][run]

    def new_out(self, k: int = 0, run: int = 0) -> tuple[int, ...]:
        """Returns the output's shape after the cut."""
        return self._sizes.cutting.new_shape(self.out_tensor(k), self.old_out(k, run))

    def before(self, slot: int, run: int = 0) -> np.ndarray | None:
        """Returns the contents of an input before the cut, None where they depend on data."""
        pair = self._sizes.trace.values.get(self._sizes._name(self.index, slot) or "")
        return None if pair is None else pair[run]

    def arriving(self, slot: int, run: int = 0) -> np.ndarray | None:
        """Returns the contents that arrive after the cut and the edits so far, None where they depend on data."""
        return self._sizes.arriving(self.index, slot, run)

    def entry(self, slot: int, k: int, run: int = 0) -> int | None:
        """Returns entry `k` of the list of sizes that arrives at an input, None where just this one depends on data."""
        return self._sizes.entry(self.index, slot, k, run)

    def kept(self, slot: int, axis: int) -> Array:
        """Returns the positions of an input's axis that stay."""
        return self._sizes.cutting.kept(self.tensor(slot), axis)

    def kept_out(self, axis: int, k: int = 0) -> Array:
        """Returns the positions of an output's axis that stay."""
        return self._sizes.cutting.kept(self.out_tensor(k), axis)

    def cut_axes(self, slot: int) -> tuple[int, ...]:
        """Returns the axes of an input that lose positions."""
        return self._sizes.cutting.cut_axes(self.tensor(slot))
