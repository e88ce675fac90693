"""Small random networks, as lists of steps, and their pruning by brute force.

A step is one operator in a form that numpy can follow: which slots of its operands become which of its result. From
that, and from nothing of onnxprune, `freedoms` finds sets of slots that can go: it takes one slot of any axis of any
value out, with all that must go along, and compares what is left with the original with zeros in its weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper, numpy_helper

TOKENS, FEATURES, OUTPUTS = 4, 3, 2
Shape = tuple[int, ...]
Slot = tuple[str, int, int]  # value or weight, axis, index


@dataclass(frozen=True)
class Step:
    """One operator: its kind, operands (values and weights), result and parameters."""

    op: str
    inputs: tuple[str, ...]
    output: str
    axis: int = 0
    index: tuple[int, ...] = ()  # positions taken (of axis, or of the axes in a permutation)
    target: Shape = ()


@dataclass
class Net:
    """A network from x (batch, 4, 3) to y (batch, 2); shapes are without the batch, which is axis 0 of every value."""

    steps: list[Step] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)


class Maker:
    """Draws a network from a seed."""

    def __init__(self, seed: int, kinds: tuple[str, ...], steps: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.net = Net(shapes={"x": (TOKENS, FEATURES)})
        self.kinds = kinds
        self.open: list[str] = []
        self.done: list[str] = []
        self.open = [self.linear("x", 4), self.left("x", 6), self.linear("x", 6)]
        for _ in range(steps):
            self.step()
        ends = [self.end(v) for v in [*self.open, *self.done]]
        y = ends[0]
        for other in ends[1:]:
            y = self.add("add", (y, other), self.net.shapes[y])
        self.net.steps.append(Step("same", (y,), "y"))
        self.net.shapes["y"] = (OUTPUTS,)

    def add(self, op: str, inputs: tuple[str, ...], shape: Shape, **more: object) -> str:
        name = f"v{len(self.net.steps)}"
        self.net.steps.append(Step(op, inputs, name, **more))  # type: ignore[arg-type]
        self.net.shapes[name] = tuple(int(n) for n in shape)
        return name

    def weight(self, shape: Shape) -> str:
        """Returns a weight, now and then one that is used already."""
        same = [k for k, w in self.net.weights.items() if w.shape == shape]
        if same and self.rng.random() < 0.15:
            return str(self.rng.choice(same))
        name = f"w{len(self.net.weights)}"
        values = self.rng.normal(size=shape)
        self.net.weights[name] = (values + np.sign(values) * 0.3).astype(np.float32)
        return name

    def linear(self, v: str, n: int) -> str:
        shape = self.net.shapes[v]
        return self.add("matmul", (v, self.weight((shape[-1], n))), (*shape[:-1], n))

    def left(self, v: str, n: int) -> str:
        shape = self.net.shapes[v]
        return self.add("left", (v, self.weight((n, shape[-2]))), (*shape[:-2], n, shape[-1]))

    def end(self, v: str) -> str:
        """Returns two numbers made of a value: flat where networks are reshaped at all, else axis by axis."""
        if "reshape" in self.kinds:
            return self.linear(self.flat(v), OUTPUTS)
        v = self.linear(v, OUTPUTS)
        return self.flat(self.left(v, 1)) if len(self.net.shapes[v]) == 2 else v

    def flat(self, v: str) -> str:
        shape = self.net.shapes[v]
        cells = (int(np.prod(shape)),)
        return v if len(shape) == 1 else self.add("reshape", (v,), cells, target=cells)

    def pick(self) -> str:
        return str(self.rng.choice(self.open))

    def step(self) -> None:
        """Adds one random operator to the open ends."""
        v = self.pick()
        shape = self.net.shapes[v]
        new = getattr(self, f"make_{self.rng.choice(self.kinds)}")(v, shape)
        for w in new:
            if w not in self.open:
                self.open.append(w)
        while len(self.open) > 3:
            self.done.append(self.open.pop(int(self.rng.integers(len(self.open)))))

    def make_matmul(self, v: str, shape: Shape) -> list[str]:
        self.open.remove(v)
        return [self.linear(v, int(self.rng.choice([2, 3, 4, 6])))]

    def make_left(self, v: str, shape: Shape) -> list[str]:
        if len(shape) < 2:
            return []
        self.open.remove(v)
        return [self.left(v, int(self.rng.choice([2, 3, 4, 6])))]

    def make_unary(self, v: str, shape: Shape) -> list[str]:
        self.open.remove(v)
        return [self.add(str(self.rng.choice(["relu", "sigmoid"])), (v,), shape)]

    def make_bias(self, v: str, shape: Shape) -> list[str]:
        self.open.remove(v)
        return [self.add("bias", (v, self.weight((shape[-1],))), shape)]

    def make_binary(self, v: str, shape: Shape) -> list[str]:
        same = [w for w in self.open if w != v and self.net.shapes[w] == shape] or [v]
        return [self.add(str(self.rng.choice(["add", "mul"])), (v, str(self.rng.choice(same))), shape)]

    def make_concat(self, v: str, shape: Shape) -> list[str]:
        axis = int(self.rng.integers(len(shape)))

        def rest(s: Shape) -> Shape:
            return s[:axis] + s[axis + 1 :]

        fit = [
            w for w in self.open if len(self.net.shapes[w]) == len(shape) and rest(self.net.shapes[w]) == rest(shape)
        ]
        other = str(self.rng.choice(fit))
        total = shape[axis] + self.net.shapes[other][axis]
        if total > 12:
            return []
        return [self.add("concat", (v, other), (*shape[:axis], total, *shape[axis + 1 :]), axis=axis)]

    def make_take(self, v: str, shape: Shape) -> list[str]:
        """A slice, or a gather with indices in any order."""
        axis = int(self.rng.integers(len(shape)))
        n = shape[axis]
        if n < 3:
            return []
        first = int(self.rng.integers(n - 1))
        last = int(self.rng.integers(first + 1, n + 1))
        index = tuple(range(first, last))
        op = "slice"
        if self.rng.random() < 0.4:
            op, index = "gather", tuple(int(k) for k in self.rng.integers(0, n, int(self.rng.integers(2, 5))))
        return [self.add(op, (v,), (*shape[:axis], len(index), *shape[axis + 1 :]), axis=axis, index=index)]

    def make_split(self, v: str, shape: Shape) -> list[str]:
        """Both halves, as two slices."""
        axis = int(self.rng.integers(len(shape)))
        n = shape[axis]
        if n < 2:
            return []
        self.open.remove(v)
        at = int(self.rng.integers(1, n))
        parts = (tuple(range(at)), tuple(range(at, n)))
        return [self.add("slice", (v,), (*shape[:axis], len(p), *shape[axis + 1 :]), axis=axis, index=p) for p in parts]

    def make_reshape(self, v: str, shape: Shape) -> list[str]:
        cells = int(np.prod(shape))
        ways = [(cells,), *((d, cells // d) for d in (2, 3, 4) if cells % d == 0 and cells > d)]
        target = ways[int(self.rng.integers(len(ways)))]
        self.open.remove(v)
        return [self.add("reshape", (v,), target, target=target)]

    def make_transpose(self, v: str, shape: Shape) -> list[str]:
        perm = tuple(int(k) for k in self.rng.permutation(len(shape)))
        self.open.remove(v)
        return [self.add("transpose", (v,), tuple(shape[k] for k in perm), index=perm)]

    def make_sum(self, v: str, shape: Shape) -> list[str]:
        if len(shape) < 2:
            return []
        axis = int(self.rng.integers(len(shape)))
        self.open.remove(v)
        return [self.add("sum", (v,), shape[:axis] + shape[axis + 1 :], axis=axis)]


ALL = (
    "matmul",
    "left",
    "matmul",
    "unary",
    "bias",
    "binary",
    "binary",
    "concat",
    "take",
    "split",
    "reshape",
    "transpose",
    "sum",
)
STRAIGHT = tuple(k for k in ALL if k not in ("reshape", "transpose"))


def random_net(seed: int, kinds: tuple[str, ...] = ALL, steps: int = 8) -> Net:
    """Returns the network of a seed."""
    return Maker(seed, kinds, steps).net


# ---------------------------------------------------------------- ONNX
def to_onnx(net: Net) -> onnx.ModelProto:
    """Returns the network as a model."""
    nodes: list[onnx.NodeProto] = []
    constants = [numpy_helper.from_array(w, k) for k, w in net.weights.items()]

    def ints(*values: int) -> str:
        name = f"c{len(constants)}"
        constants.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    ops = {"matmul": "MatMul", "relu": "Relu", "sigmoid": "Sigmoid", "bias": "Add", "add": "Add", "mul": "Mul"}
    for s in net.steps:
        axis = s.axis + 1
        if s.op == "concat":
            node = helper.make_node("Concat", s.inputs, [s.output], axis=axis)
        elif s.op == "slice":
            bounds = ints(s.index[0]), ints(s.index[-1] + 1), ints(axis)
            node = helper.make_node("Slice", [*s.inputs, *bounds], [s.output])
        elif s.op == "gather":
            node = helper.make_node("Gather", [*s.inputs, ints(*s.index)], [s.output], axis=axis)
        elif s.op == "left":
            node = helper.make_node("MatMul", s.inputs[::-1], [s.output])
        elif s.op == "reshape":
            node = helper.make_node("Reshape", [*s.inputs, ints(0, *s.target)], [s.output])
        elif s.op == "transpose":
            node = helper.make_node("Transpose", s.inputs, [s.output], perm=[0, *(k + 1 for k in s.index)])
        elif s.op == "sum":
            node = helper.make_node("ReduceSum", [*s.inputs, ints(axis)], [s.output], keepdims=0)
        else:
            node = helper.make_node(ops.get(s.op, "Identity"), s.inputs, [s.output])
        node.name = f"{s.op}_{len(nodes)}"
        nodes.append(node)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", TOKENS, FEATURES])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", OUTPUTS])
    graph = helper.make_graph(nodes, "net", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# ---------------------------------------------------------------- brute force
def evaluate(net: Net, weights: dict[str, np.ndarray], x: np.ndarray, dead: set[Slot] | None = None) -> np.ndarray:
    """Returns y; with `dead` slots, weights lack them, and positions and shapes are those of what is left."""
    gone = dead or set()

    def kept(name: str, axis: int) -> list[int]:
        size = (net.weights[name].shape if name in net.weights else net.shapes[name])[axis]
        return [k for k in range(size) if (name, axis, k) not in gone]

    values = {"x": x, **weights}
    for s in net.steps:
        a = [values[k].astype(np.float64) for k in s.inputs]
        if s.op == "matmul":
            y = a[0] @ a[1]
        elif s.op == "left":
            y = a[1] @ a[0]
        elif s.op in ("add", "bias"):
            y = a[0] + a[1]
        elif s.op == "mul":
            y = a[0] * a[1]
        elif s.op == "relu":
            y = np.maximum(a[0], 0)
        elif s.op == "sigmoid":
            y = 1 / (1 + np.exp(-a[0]))
        elif s.op == "concat":
            y = np.concatenate(a, s.axis + 1)
        elif s.op in ("slice", "gather"):
            place = {k: n for n, k in enumerate(kept(s.inputs[0], s.axis))}
            y = a[0].take([place[k] for n, k in enumerate(s.index) if (s.output, s.axis, n) not in gone], s.axis + 1)
        elif s.op == "reshape":
            y = a[0].reshape(len(x), *(len(kept(s.output, k)) for k in range(len(s.target))))
        elif s.op == "transpose":
            y = a[0].transpose(0, *(k + 1 for k in s.index))
        elif s.op == "sum":
            y = a[0].sum(s.axis + 1)
        else:
            y = a[0]
        values[s.output] = y
    return values["y"]


def links(net: Net, s: Step, slot: Slot, dead: set[Slot]) -> Iterator[Slot]:
    """Returns the slots that must go with `slot`, an operand's or the result's, through one step."""
    name, axis, k = slot
    out, first = s.output, s.inputs[0]

    def result() -> Iterator[Slot]:
        if s.op in ("matmul", "left"):
            w, along = s.inputs[1], len(net.shapes[first]) - (1 if s.op == "matmul" else 2)
            rows, made = (0, 1) if s.op == "matmul" else (1, 0)  # the weight's axes: contracted, and made
            if name == w:
                yield (first, along, k) if axis == rows else (out, along, k)
            elif axis == along:
                yield (w, rows, k) if name == first else (w, made, k)
            else:
                yield from ((first, axis, k), (out, axis, k))
        elif s.op == "bias":
            last = len(net.shapes[out]) - 1
            yield from ((n, axis, k) for n in (first, out) if name != s.inputs[1])
            if name == s.inputs[1] or axis == last:
                yield from ((s.inputs[1], 0, k), (out, last, k))
        elif s.op == "concat":
            at = 0
            for part in s.inputs:
                size = net.shapes[part][s.axis]
                if axis != s.axis:
                    yield from ((part, axis, k), (out, axis, k))
                elif name == part:
                    yield (out, axis, at + k)
                elif name == out and at <= k < at + size:
                    yield (part, axis, k - at)
                at += size
        elif s.op in ("slice", "gather"):
            if axis != s.axis:
                yield from ((first, axis, k), (out, axis, k))
            elif name == out:
                yield (first, axis, s.index[k])
            else:
                yield from ((out, axis, n) for n, i in enumerate(s.index) if i == k)
        elif s.op == "transpose":
            yield (out, s.index.index(axis), k) if name == first else (first, s.index[axis], k)
        elif s.op == "sum":
            if name == out:
                yield (first, axis + (axis >= s.axis), k)
            elif axis != s.axis:
                yield (out, axis - (axis > s.axis), k)
        else:
            yield from ((n, axis, k) for n in (*s.inputs, out))

    if s.op != "reshape":
        return result()
    other = out if name == first else first
    moved = mask(net, name, dead).reshape(net.shapes[other])
    return iter([(other, a, i) for a in range(moved.ndim) for i in range(moved.shape[a]) if not moved.take(i, a).any()])


def mask(net: Net, name: str, dead: set[Slot]) -> np.ndarray:
    """Returns which cells of a value live."""
    alive = np.ones(net.shapes[name], bool)
    for n, a, i in dead:
        if n == name:
            alive[(slice(None),) * a + (i,)] = False
    return alive


def closure(net: Net, seed: Slot) -> set[Slot] | None:
    """Returns all slots that go with one, None where that touches the input, the output, or all of an axis."""
    dead, todo = {seed}, [seed]
    while todo:
        slot = todo.pop()
        for s in net.steps:
            if slot[0] == s.output or slot[0] in s.inputs:
                new = set(links(net, s, slot, dead)) - dead
                dead |= new
                todo += sorted(new)
    for name, axis, _ in dead:
        size = (net.weights[name].shape if name in net.weights else net.shapes[name])[axis]
        if name in ("x", "y") or sum((name, axis, k) in dead for k in range(size)) == size:
            return None
    for s in net.steps:
        if s.op == "reshape" and (mask(net, s.inputs[0], dead).reshape(s.target) != mask(net, s.output, dead)).any():
            return None
    return dead


def is_exact(net: Net, dead: set[Slot]) -> bool:
    """Returns whether the net without these slots computes what it does with zeros in its weights there."""
    x = np.random.default_rng(0).normal(size=(5, TOKENS, FEATURES))
    masked, small = dict(net.weights), dict(net.weights)
    for name, w in net.weights.items():
        for axis in range(w.ndim):
            gone = [k for k in range(w.shape[axis]) if (name, axis, k) in dead]
            masked[name] = masked[name].copy()
            masked[name][(slice(None),) * axis + (gone,)] = 0
            small[name] = np.delete(small[name], gone, axis)
    try:
        got = evaluate(net, small, x, dead)
    except (ValueError, KeyError, IndexError):
        return False
    return bool(np.allclose(evaluate(net, masked, x), got, rtol=1e-6, atol=1e-6))


def freedoms(net: Net) -> dict[frozenset[Slot], set[Slot]]:
    """Returns minimal sets of slots of weights that can go: what one slot of any value takes along, and all of that."""
    found: dict[frozenset[Slot], set[Slot]] = {}
    for name, shape in [*net.shapes.items(), *((k, w.shape) for k, w in net.weights.items())]:
        for axis, n in enumerate(shape):
            for k in range(n):
                dead = closure(net, (name, axis, k))
                weights = frozenset(s for s in dead or () if s[0] in net.weights)
                if dead and weights and weights not in found and is_exact(net, dead):
                    found[weights] = dead
    return found
