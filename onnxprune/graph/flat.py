"""Models with subgraphs and local functions, laid flat to be looked at; what is found there is carried back into them.

A cut is planned on a flat *view*: the bodies of If, Loop and Scan stand where their node stood, and those of functions
where they are called. Of an If both branches run, and a Where takes the place of the choice; of a Loop or Scan one turn
is seen, and a Where of its first and its last state says that they are alike. What a turn hands on as it was given is
the same in all of them (weights that exporters pass through a Loop). Every node of a body stands in the view
once, so its edits can be made in place. The body of a function stands there once for each call and is left as it is:
what changes are the constants that are given to it. Whatever cannot be laid flat stays a node that nothing can be cut
around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import onnx_ir as ir

from onnxprune.errors import OnnxPruneError
from onnxprune.graph.constants import constants, is_constant
from onnxprune.graph.dependence import subgraphs
from onnxprune.graph.trace import Trace

__all__ = ["Flat", "Join", "Turns", "look_into", "numbered", "restore"]

FIRST_SCAN = 9  # the opset that gave Scan the signature it has
SHORTEST = 12  # the opset whose Min takes integers
UNSQUEEZED = 13  # the opset whose Unsqueeze has its axes as an input
MOST_TURNS = 4096  # of a Loop that stacks what they give: where there are more, it stays closed


@dataclass(frozen=True)
class Join:
    """Values of a view that must have one shape, since they are one value of the model at different times.

    Attributes:
        place: number of the node that was laid flat for it.
        names: the values.
        state: whether the first of them is what a body starts with and the second what comes back.
    """

    place: int
    names: tuple[str, str]
    state: bool = False


@dataclass(frozen=True)
class Turns:
    """A Loop or Scan that stands in no other one, as it lies in a view.

    Attributes:
        place: number of the node that was laid flat.
        nodes: the view's nodes that stand for it; the first of them only keeps a place.
        body: those that stand in the body itself, and in no body in there.
        outputs: what the node gives, by the names of the view.
        handed_on: the states that every turn hands on as they are.
    """

    place: int
    nodes: range
    body: frozenset[int]
    outputs: tuple[str, ...]
    handed_on: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Flat:
    """A flat view of a model.

    Attributes:
        original: the model.
        model: the view.
        places: for nodes of the view the number of the node that they are in the model, counted through all bodies.
        calls: for nodes of the view that stand for a constant given to a function, a Loop or a Scan: number of the node
            that it is given to, and its input.
        values: for names of the view the numbers of values of the model.
        fixed: constants in bodies of functions.
        joins: what must have one shape.
        stacked: by the number of a Loop, what it stacks in as many turns as it may have at most.
        turns: for nodes of the view in bodies that are run several times, where it is seen how often: the axes, by the
            names of values, that are as long.
        loops: the bodies that are run several times.
    """

    original: ir.Model
    model: ir.Model
    places: dict[int, int]
    calls: dict[int, tuple[int, int]]
    values: dict[str, tuple[int, ...]]
    fixed: frozenset[str]
    joins: tuple[Join, ...]
    stacked: Mapping[int, tuple[str, ...]]
    turns: Mapping[int, tuple[tuple[str, int], ...]]
    loops: tuple[Turns, ...]

    def is_its_own(self, index: int) -> bool:
        """Returns whether node `index` of the view can be edited: it stands in the model, just once."""
        return index in self.places or index in self.calls


def look_into(model: ir.Model, tracer: Callable[[ir.Model], Trace]) -> tuple[Flat | None, Trace]:
    """Returns a flat view of a model with its trace; no view where there is nothing to lay flat, or where it fails.

    Args:
        model: the model; it is not changed.
        tracer: runs a model.
    """
    if not model.functions and next(iter(model.graph.subgraphs()), None) is None:
        return None, tracer(model)
    as_it_is = cache(lambda: tracer(model))
    left: set[int] = set()
    nodes = numbered(model)[0]
    doubtful = [{k for k, n in enumerate(nodes) if n.op_type in ops} for ops in (("If",), ("Loop", "Scan"))]
    while (flat := _Flattener(model, left).run()) is not None:
        try:
            trace = tracer(flat.model)
        except OnnxPruneError:  # a turn or a branch that is not run as often as the view runs it may well fail
            while doubtful and doubtful[-1] <= left:
                doubtful.pop()
            if not doubtful:
                break
            left |= doubtful.pop()
            continue
        unlike = {j.place for j in flat.joins if len({trace.shapes.get(name) for name in j.names}) > 1}
        if not unlike and flat.stacked:
            real = as_it_is().shapes
            unlike = {k for k, names in flat.stacked.items() if any(real.get(n) != trace.shapes.get(n) for n in names)}
        if not unlike:
            return flat, trace
        left |= unlike
    return None, as_it_is()


class _CannotLayFlat(Exception):
    """A node whose body has to stay where it is."""


@dataclass(frozen=True, eq=False)
class _Loop:
    """A Loop or Scan while a model is laid flat: its number, the node that keeps its place, and as in `Turns`."""

    place: int
    keeper: ir.Node
    outputs: tuple[str, ...]
    body: tuple[int, ...] = ()
    handed_on: tuple[int, ...] = ()

    def among(self, nodes: Sequence[ir.Node]) -> Turns:
        """Returns where it lies in a view."""
        number = {id(n): k for k, n in enumerate(nodes)}
        first = number[id(self.keeper)]
        ends = [k for k, n in enumerate(nodes) if any(v.name and v.name in self.outputs for v in n.outputs)]
        body = frozenset(number[k] for k in self.body if k in number)
        return Turns(self.place, range(first, max([first, *ends]) + 1), body, self.outputs, self.handed_on)


class _Flattener:
    """Lays one clone of a model flat."""

    def __init__(self, model: ir.Model, left: Iterable[int]) -> None:
        self.original, self.left = model, frozenset(left)
        self.model = model.clone()
        self.graph = self.model.graph
        nodes, values = numbered(self.model)
        self.number = {id(n): k for k, n in enumerate(nodes)}
        self.value_number = {id(v): [k] for k, v in enumerate(values)}
        self.kept = [*nodes, *values]  # so that no id is used again
        self.names = {v.name for v in values if v.name} | {n.name for n in nodes if n.name}
        self.call_of: dict[int, tuple[int, int]] = {}
        self.fixed: set[str] = set()
        self.joins: list[Join] = []
        self.stacked: dict[int, tuple[str, ...]] = {}
        self.turns: dict[int, tuple[tuple[str, int], ...]] = {}
        self.loops: list[_Loop] = []
        self.inside: set[int] = set()
        self.clock: tuple[ir.Value, ir.Value] | None = None

    def run(self) -> Flat | None:
        """Returns the view, None where nothing could be laid flat."""
        open_ = list(self.graph)
        found = False
        while open_:
            node = open_.pop()
            try:
                laid = self._lay(node)
            except _CannotLayFlat:
                continue
            if laid is not None:
                found = True
                open_ += laid
                around = self.turns.get(id(node), ())
                self.turns |= {id(n): around + self.turns.get(id(n), ()) for n in laid}
                self.inside |= set(map(id, laid)) if id(node) in self.inside else set()
        if not found:
            return None
        nodes = list(self.graph)
        named: dict[str, tuple[int, ...]] = {}
        for v in [*self.graph.inputs, *self.graph.initializers.values(), *(v for n in nodes for v in n.outputs)]:
            if v.name and id(v) in self.value_number:
                named[v.name] = tuple(self.value_number[id(v)])
        return Flat(
            self.original,
            self.model,
            {i: self.number[id(n)] for i, n in enumerate(nodes) if id(n) in self.number},
            {i: self.call_of[id(n)] for i, n in enumerate(nodes) if id(n) in self.call_of},
            named,
            frozenset(self.fixed),
            tuple(self.joins),
            self.stacked,
            {i: self.turns[id(n)] for i, n in enumerate(nodes) if self.turns.get(id(n))},
            tuple(loop.among(nodes) for loop in self.loops),
        )

    def _lay(self, node: ir.Node) -> list[ir.Node] | None:
        """Puts the body of a node in its place and returns the body's nodes, None where it has none."""
        place = self.number.get(id(node), -1)
        if place in self.left:
            return None
        function = self.model.functions.get(node.op_identifier())
        if function is not None:
            return self._call(node, function, place)
        if node.domain not in ("", "ai.onnx") or any(
            not isinstance(v.type, ir.TensorType | None) for v in node.outputs
        ):
            return None
        lay = {"If": self._if, "Loop": self._loop, "Scan": self._scan}.get(node.op_type)
        return None if lay is None or place < 0 else lay(node, place)

    # ---------------------------------------------------------------- pieces
    def _free(self, stem: str) -> str:
        """Returns a name that nothing has yet."""
        name, k = stem, 1
        while name in self.names:
            name, k = f"{stem}_{k}", k + 1
        self.names.add(name)
        return name

    def _glue(
        self, op: str, inputs: list[ir.Value | None], before: ir.Node, **attributes: int | Sequence[int]
    ) -> ir.Value:
        """Returns what a new node gives."""
        node = ir.node(op, inputs, attributes=attributes, name=self._free(f"flat_{op}"))
        node.outputs[0].name = self._free(f"flat_{op}_value")
        self.graph.insert_before(before, node)
        self.kept.append(node)
        return node.outputs[0]

    def _constant(self, content: np.ndarray, before: ir.Node) -> ir.Value:
        node = ir.node("Constant", [], attributes={"value": ir.Tensor(content)}, name=self._free("flat_Constant"))
        node.outputs[0].name = self._free("flat_Constant_value")
        self.fixed.add(str(node.outputs[0].name))
        self.graph.insert_before(before, node)
        self.kept.append(node)
        return node.outputs[0]

    def _stand_in(self, old: ir.Value, new: ir.Value) -> None:
        """Puts `new` in the place of a node's output, under its name."""
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = None
        new.name, new.type, new.shape = name, old.type, old.shape
        self.value_number[id(new)] = self.value_number.get(id(old), [])

    def _spill(self, body: ir.Graph, before: ir.Node) -> tuple[list[ir.Value], list[ir.Node]]:
        """Moves a body's initializers and nodes out of it; returns its outputs and the nodes."""
        outputs = list(body.outputs)
        body.outputs.clear()
        for name, value in list(body.initializers.items()):
            del body.initializers[name]
            if name in self.graph.initializers or any(v.name == name for v in self.graph.inputs):
                value.name = self._free(f"{name}_inside")
            self.graph.register_initializer(value)
        nodes = list(body)
        body.remove(nodes)
        taken = {v.name for n in self.graph for v in n.outputs} | set(self.graph.initializers)
        taken |= {v.name for v in self.graph.inputs}
        outside = {n.name for n in self.graph if n.name}
        for n in nodes:  # both branches of an If may have a node of one name, a graph may not
            if n.name in outside:
                n.name = self._free(f"{n.name}_inside")
        for v in (v for n in nodes for v in n.outputs):
            if v.name in taken:
                v.name = self._free(f"{v.name}_inside")
        self.graph.insert_before(before, nodes)
        return outputs, nodes

    # ---------------------------------------------------------------- If, Loop, Scan
    def _if(self, node: ir.Node, place: int) -> list[ir.Node]:
        """Both branches, and a Where for each output."""
        branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
        if any(len(b.outputs) != len(node.outputs) for b in branches):
            raise _CannotLayFlat
        spilled = [self._spill(b, node) for b in branches]
        for k, old in enumerate(node.outputs):
            one, other = (outputs[k] for outputs, _ in spilled)
            self.joins.append(Join(place, (str(one.name), str(other.name))))
            self._stand_in(old, self._glue("Where", [node.inputs[0], one, other], node))
        self.graph.remove(node)
        return [n for _, nodes in spilled for n in nodes]

    def _turn(self) -> tuple[ir.Value, ir.Value]:
        """Returns the number 0 and the truth, as if they were read off the data: another turn has other numbers."""
        if self.clock is None:
            kinds = (ir.DataType.STRING, ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
            given = [
                v for v in self.graph.inputs if v.name not in self.graph.initializers and v.dtype not in (None, *kinds)
            ]
            if not given:
                raise _CannotLayFlat
            first = self.graph[0]
            least = self._glue("ReduceMin", [self._glue("Cast", [given[0]], first, to=1)], first, keepdims=0)
            nothing = self._glue("Mul", [least, self._constant(np.zeros((), np.float32), first)], first)
            zero = self._glue("Cast", [nothing], first, to=7)
            self.clock = zero, self._glue("Equal", [zero, self._constant(np.zeros((), np.int64), first)], first)
        return self.clock

    def _last(self, node: ir.Node, place: int, k: int, first: ir.Value, back: ir.Value, here: ir.Value) -> None:
        """Makes output `k` of a node its last state, which is also the first one where there are no turns."""
        self.joins.append(Join(place, (str(here.name), str(back.name)), state=True))
        self._stand_in(node.outputs[k], self._glue("Where", [self._turn()[1], back, first], node))

    def _loop(self, node: ir.Node, place: int) -> list[ir.Node]:
        """One turn; its number and condition are not known. What it stacks is as long as there may be turns."""
        body = node.attributes["body"].as_graph()
        first = [v for v in node.inputs[2:] if v is not None]
        count, most = len(first), node.inputs[0]
        simple = len(body.inputs) == len(node.inputs) == count + 2 and len(body.outputs) > count
        simple = simple and len(node.outputs) == len(body.outputs) - 1
        if not simple or any(v.shape is not None and len(v.shape) for v in body.inputs[:2]):
            raise _CannotLayFlat
        stacks = len(body.outputs) > count + 1
        if stacks and (most is None or self.graph.opset_imports.get("", 0) < SHORTEST):
            raise _CannotLayFlat  # nobody knows how many turns there are
        loop = self._opened(node, place)
        for value, now in zip(body.inputs[:2], self._turn(), strict=True):
            value.replace_all_uses_with(now, replace_graph_outputs=True)
        made = [id(v) for v in body.outputs]
        handed_on = [id(v) == made[k] and made.count(id(v)) == 1 for k, v in enumerate(body.inputs[2:], 1)]
        first = [v if handed_on[k] else self._handed(v, node, place, k + 2) for k, v in enumerate(first)]
        heres = self._heres(node, first, list(body.inputs[2:]), handed_on)
        outputs, nodes = self._spill(body, node)
        for k in range(count):
            if handed_on[k]:
                self._stand_in(node.outputs[k], self._glue("Identity", [first[k]], node))
            else:
                self._last(node, place, k, first[k], outputs[k + 1], heres[k])
        if stacks:
            assert most is not None
            turns = self._glue("Reshape", [most, self._constant(np.array([-1]), node)], node)
            length = self._glue("Min", [turns, self._constant(np.array([MOST_TURNS]), node)], node)
            self.stacked[place] = tuple(v.name for v in node.outputs[count:] if v.name)
            self.turns |= dict.fromkeys(map(id, nodes), tuple((name, 0) for name in self.stacked[place][:1]))
            for old, value in zip(node.outputs[count:], outputs[count + 1 :], strict=True):
                self._stand_in(old, self._stacked(value, 0, length, node))
        return self._closed(node, loop, nodes, tuple(np.flatnonzero(handed_on).tolist()))

    def _opened(self, node: ir.Node, place: int) -> _Loop:
        """Returns what is known of a Loop or Scan before it is laid flat, with a node that keeps its place."""
        keeper = self._glue("Identity", [self._turn()[0]], node).producer()
        assert keeper is not None
        return _Loop(place, keeper, tuple(v.name or "" for v in node.outputs))

    def _closed(
        self, node: ir.Node, loop: _Loop, nodes: list[ir.Node], handed_on: tuple[int, ...] = ()
    ) -> list[ir.Node]:
        """Takes out a Loop or Scan for which other nodes stand, and returns those of its body."""
        if id(node) not in self.inside:
            self.loops.append(replace(loop, body=tuple(map(id, nodes)), handed_on=handed_on))
        self.inside |= set(map(id, nodes))
        self.graph.remove(node)
        return nodes

    def _heres(
        self, node: ir.Node, first: list[ir.Value], inside: list[ir.Value], handed_on: Sequence[bool]
    ) -> list[ir.Value]:
        """Returns what stands for a body's states; it has the shapes that are declared inside.

        Those that are handed on are read as they were given: here they only carry what is declared.
        """
        heres = []
        for value, given, same in zip(inside, first, handed_on, strict=True):
            here = self._declared(value, self._glue("Identity", [given], node))
            heres.append(here)
            if same:
                for reader, slot in list(value.uses()):
                    reader.replace_input_with(slot, given)
            else:
                value.replace_all_uses_with(here, replace_graph_outputs=True)
        return heres

    def _declared(self, value: ir.Value, here: ir.Value) -> ir.Value:
        """Returns what stands for an input of a body, with the type and shape that are declared for it."""
        here.type, here.shape = value.type, value.shape
        self.value_number[id(here)] = self.value_number.get(id(value), [])
        return here

    def _scan(self, node: ir.Node, place: int) -> list[ir.Node]:
        """One turn, on one slice of what is scanned; what it gives is repeated as often as there are slices."""
        body, scanned = node.attributes["body"].as_graph(), node.attributes["num_scan_inputs"].as_int()
        count = len(node.inputs) - scanned
        given = [v for v in node.inputs if v is not None]
        if self.model.graph.opset_imports.get("", 0) < FIRST_SCAN or len(given) != len(body.inputs):
            raise _CannotLayFlat
        into = _ints(node, "scan_input_axes", scanned)
        out = _ints(node, "scan_output_axes", len(body.outputs) - count)
        if any(axis < 0 for axis in (*into, *out)):
            raise _CannotLayFlat
        loop, zero = self._opened(node, place), self._turn()[0]
        given = [self._handed(v, node, place, k) for k, v in enumerate(given)]
        for value, whole, axis in zip(body.inputs[count:], given[count:], into, strict=True):
            here = self._declared(value, self._glue("Gather", [whole, zero], node, axis=axis))
            value.replace_all_uses_with(here, replace_graph_outputs=True)
        heres = self._heres(node, given[:count], list(body.inputs[:count]), [False] * count)
        sizes = self._glue("Shape", [given[count]], node)
        length = self._glue("Gather", [sizes, self._constant(np.array([into[0]]), node)], node)
        outputs, nodes = self._spill(body, node)
        self.turns |= dict.fromkeys(map(id, nodes), ((str(given[count].name), into[0]),))
        for k in range(count):
            self._last(node, place, k, given[k], outputs[k], heres[k])
        for k, axis in enumerate(out):
            self._stand_in(node.outputs[count + k], self._stacked(outputs[count + k], axis, length, node))
        return self._closed(node, loop, nodes)

    def _stacked(self, value: ir.Value, axis: int, length: ir.Value, before: ir.Node) -> ir.Value:
        """Returns a value repeated along a new axis, of which nothing can be cut."""
        if self.graph.opset_imports.get("", 0) < UNSQUEEZED:
            single = self._glue("Unsqueeze", [value], before, axes=[axis])
        else:
            single = self._glue("Unsqueeze", [value, self._constant(np.array([axis]), before)], before)
        zeros = self._glue("Expand", [self._turn()[0], length], before)
        return self._glue("Gather", [single, zeros], before, axis=axis)

    # ---------------------------------------------------------------- functions
    def _call(self, node: ir.Node, function: ir.Function, place: int) -> list[ir.Node]:
        """The function's body, with values of its own; constants that are given to it pass an Identity first."""
        imports = self.graph.opset_imports
        bodies = [g for n in function for g in subgraphs(n)]
        if bodies or any(imports.get(d, v) != v for d, v in function.opset_imports.items()):
            raise _CannotLayFlat
        imports.update(function.opset_imports)
        table: dict[int, ir.Value | None] = {}
        for k, formal in enumerate(function.inputs):
            value = node.inputs[k] if k < len(node.inputs) else None
            table[id(formal)] = value if value is None or place < 0 else self._handed(value, node, place, k)
        nodes = [self._copied(n, node, function, table) for n in function]
        self.graph.insert_before(node, nodes)
        for old, inner in zip(node.outputs, function.outputs, strict=False):
            self._stand_in(old, self._glue("Identity", [table[id(inner)]], node))
        self.graph.remove(node)
        return nodes

    def _handed(self, value: ir.Value, node: ir.Node, place: int, slot: int) -> ir.Value:
        """Returns what stands for an input of a node: a constant passes an Identity, which stands for this reader."""
        if not self._is_held(value):
            return value
        found = self._glue("Identity", [value], node)
        producer = found.producer()
        assert producer is not None
        self.call_of[id(producer)] = (place, slot)
        return found

    def _is_held(self, value: ir.Value) -> bool:
        """Returns whether a value is an initializer or what a Constant node gives."""
        producer = value.producer()
        return value.name in self.graph.initializers if producer is None else is_constant(producer)

    def _copied(
        self, node: ir.Node, call: ir.Node, function: ir.Function, table: dict[int, ir.Value | None]
    ) -> ir.Node:
        """Returns a copy of a node of a function's body; its outputs are added to `table`."""
        attributes = []
        for a in node.attributes.values():
            if a.is_ref():
                name = str(a.ref_attr_name)
                given = call.attributes.get(name) or function.attributes.get(name)
                if given is None or given.value is None:
                    continue
                a = ir.Attr(a.name, given.type, given.value)
            attributes.append(a)
        outputs = []
        for v in node.outputs:
            new = ir.Value(
                name=self._free(f"{call.name or call.op_type}_{v.name}") if v.name else "", shape=v.shape, type=v.type
            )
            table[id(v)] = new
            self.value_number[id(new)] = self.value_number.get(id(v), [])
            outputs.append(new)
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else table[id(v)] for v in node.inputs],
            attributes,
            overload=node.overload,
            outputs=outputs,
            name=self._free(f"{call.name or call.op_type}_{node.name or node.op_type}"),
        )
        self.kept += [copy, *outputs]
        if is_constant(copy):
            self.fixed.add(str(outputs[0].name))
        return copy


def _ints(node: ir.Node, name: str, count: int) -> list[int]:
    a = node.attributes.get(name)
    return [0] * count if a is None else list(a.as_ints())


def numbered(model: ir.Model) -> tuple[list[ir.Node], list[ir.Value]]:
    """Returns all nodes and values of a model, through all bodies, in an order that a clone has too."""
    nodes: list[ir.Node] = []
    values: list[ir.Value] = []

    def walk(body: Iterable[ir.Node]) -> None:
        for node in body:
            nodes.append(node)
            values.extend(node.outputs)
            for g in subgraphs(node):
                values.extend([*g.inputs, *g.initializers.values()])
                walk(g)

    values.extend([*model.graph.inputs, *model.graph.initializers.values()])
    walk(model.graph)
    for function in model.functions.values():
        values.extend(function.inputs)
        walk(function)
    return nodes, values


# ---------------------------------------------------------------- the way back
def restore(flat: Flat, changed: ir.Model) -> ir.Model:
    """Returns the model with the edits that were made to a clone of its flat view."""
    return _Restorer(flat, changed).run()


class _Restorer:
    """Carries the differences between a view and its edited clone over into a clone of the model."""

    def __init__(self, flat: Flat, changed: ir.Model) -> None:
        self.flat, self.changed = flat, changed
        self.model = flat.original.clone()
        self.nodes, self.values = numbered(self.model)
        self.in_functions = {id(v) for f in self.model.functions.values() for n in f for v in n.outputs}
        self.added: dict[str, ir.Value] = {}

    def run(self) -> ir.Model:
        """Returns the model."""
        self._constants()
        before = list(self.flat.model.graph)
        names = {n.name for n in before}
        after = [n for n in self.changed.graph if not n.name or n.name in names]
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            self._node(index, old, new)
        for behind in (n for n in self.changed.graph if n.name and n.name not in names and not is_constant(n)):
            self._put_behind(behind, after)
        return self.model

    def _constants(self) -> None:
        """Replaces constants that were changed and adds those that are new."""
        old = constants(self.flat.model.graph)
        for name, tensor in constants(self.changed.graph).items():
            if name not in old:
                value = ir.Value(
                    name=name,
                    shape=ir.Shape(tensor.shape.numpy()),
                    type=ir.TensorType(tensor.dtype),
                    const_value=tensor,
                )
                if self.model.ir_version >= 4:
                    self.model.graph.register_initializer(value)
                else:
                    node = ir.node("Constant", [], attributes={"value": tensor}, name=name)
                    value, node.outputs[0].name = node.outputs[0], name
                    self.model.graph.insert_before(self.model.graph[0], node)
                self.added[name] = value
            elif tensor is not old[name]:
                for k in self.flat.values.get(name, ()):
                    _hold(self.values[k], tensor)

    def _node(self, index: int, old: ir.Node, new: ir.Node) -> None:
        """Carries over inputs, attributes and declared shapes of one node."""
        place, call = self.flat.places.get(index), self.flat.calls.get(index)
        for slot, value in enumerate(new.inputs):
            was = old.inputs[slot] if slot < len(old.inputs) else None
            if value is not None and value.name in self.added and (was is None or was.name != value.name):
                number, at = call if call is not None else (place, slot)
                if number is None:
                    continue  # what only the view has reads it
                node = self.nodes[number]
                if at >= len(node.inputs):
                    node.resize_inputs(at + 1)
                node.replace_input_with(at, self.added[str(value.name)])
        if place is not None and not is_constant(old):
            for name in {*old.attributes, *new.attributes}:
                _carry_attribute(old, new, self.nodes[place], name)
        for was, now in zip(old.outputs, new.outputs, strict=True):
            if was.shape is None or now.shape is None or was.shape == now.shape:
                continue
            for k in self.flat.values.get(was.name or "", ()):
                self._declare(self.values[k], was.shape, now.shape)

    def _declare(self, value: ir.Value, old: ir.Shape, new: ir.Shape) -> None:
        """Gives a value its new shape; in a function's body, where calls differ, what changed is open."""
        if value.shape is None or len(value.shape) != len(new):
            return
        several = id(value) in self.in_functions
        value.shape = ir.Shape([None if several and a != b else b for a, b in zip(old, new, strict=True)])

    def _put_behind(self, added: ir.Node, after: list[ir.Node]) -> None:
        """Puts a node that restores an output behind the node that gives it, wherever that stands."""
        kept, number = added.inputs
        assert kept is not None and number is not None
        producer = kept.producer()
        index = next(i for i, n in enumerate(after) if n is producer)
        node = self.nodes[self.flat.places[index]]
        old = node.outputs[kept.index() or 0]
        new = ir.node(added.op_type, [old, self.added[str(number.name)]], name=added.name)
        result = new.outputs[0]
        result.type, result.shape = old.type, old.shape
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        new.replace_input_with(0, old)
        result.name, old.name = old.name, kept.name
        assert node.graph is not None
        node.graph.insert_after(node, new)


def _hold(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Gives an initializer or a Constant node other contents; a declared shape follows."""
    holder = value.producer()
    if holder is None:
        value.const_value = tensor
    else:
        holder.attributes.clear()
        holder.attributes["value"] = ir.AttrTensor("value", tensor)
    if value.shape is not None:
        value.shape = ir.Shape(tensor.shape.numpy())


def _carry_attribute(old: ir.Node, new: ir.Node, target: ir.Node, name: str) -> None:
    """Writes an attribute that was changed, or takes out one that was removed."""
    a, b = old.attributes.get(name), new.attributes.get(name)
    if b is None:
        del target.attributes[name]
    elif a is None or (a is not b and a.type == b.type and not a.is_ref() and _plain(a) != _plain(b)):
        target.attributes[name] = b


def _plain(a: ir.Attr) -> object:
    """Returns an attribute's value if it is made of numbers and strings."""
    kinds = ir.AttributeType
    plain = (kinds.INT, kinds.INTS, kinds.FLOAT, kinds.FLOATS, kinds.STRING, kinds.STRINGS)
    return (tuple(a.value) if isinstance(a.value, list | tuple) else a.value) if a.type in plain else None
