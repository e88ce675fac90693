"""Products of two activations (query times key): which of the contracted units go, and how the rest makes up for them.

The scores S = Q K' of a head lose the dims that are cut. What the cut dims of the keys can be told from the kept ones,
K_cut ~ K_kept X', goes into the queries: Q_kept + Q_cut X, which the projection that makes them can compute itself if
nothing but movement and scaling stands between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.engine.coupling import Coupling
from onnxprune.engine.frontier import Feed, Frontier, inputs_of
from onnxprune.engine.labels import Array
from onnxprune.engine.layers import Layer
from onnxprune.engine.units import Units
from onnxprune.graph.runtime import open_session, run
from onnxprune.ops import Node
from onnxprune.refit.moves import MOVES, followed_back, made_by, moving
from onnxprune.refit.obs import Problem

RIDGES = (1e-4, 1e-2, 1.0)
CHECK_EVERY = 8
SCALES = {"Mul", "Div"}
ATTENTION = {"Attention", "MultiHeadAttention"}
BEHIND = {"Mul", "Div", "Add", "Where", "Identity", "Cast"}  # what may stand between a product and its Softmax


@dataclass(frozen=True, eq=False)
class Pair:
    """A product of two activations that contracts units.

    Attributes:
        index: the node.
        query: the value on its left, (..., tokens, dims), or (batch, tokens, heads x dims).
        key: the value on its right, as the query.
        turned: the key is (..., dims, tokens).
        merged: how many heads share the last axis with their dims, 0 where they don't.
        folded: how many heads share the first axis with the samples, 0 where they don't.
        units: (heads, dims) the unit of each contracted index, -1 where it has none.
        heads: shape of the batch axes that tell heads apart, 1 for the others.
        shifts: scores may shift by a constant for each query (a Softmax follows): keys count less their mean.
    """

    index: int
    query: str
    key: str
    turned: bool
    merged: int
    folded: int
    units: Array
    heads: tuple[int, ...]
    shifts: bool

    def rows(self, x: np.ndarray, *, turned: bool = False) -> np.ndarray:
        """Returns a query or a key as (..., tokens, dims) with an axis for heads."""
        if self.merged:
            batch, tokens, width = x.shape
            x = x.reshape(batch, tokens, self.merged, width // self.merged).swapaxes(1, 2)
        if self.folded:
            x = x.reshape(-1, self.folded, *x.shape[1:])
        return np.swapaxes(x, -1, -2) if turned else x


@dataclass(eq=False)
class Products:
    """Sums over samples of a pair, one of each for a head: they merge.

    Attributes:
        queries: (heads, dims, dims) sum of Q'Q.
        keys: (heads, dims, dims) sum of K'K.
    """

    queries: np.ndarray
    keys: np.ndarray

    def problems(self, pair: Pair, own: Array) -> list[Problem]:
        """Returns what each head's scores lose with the units `own`."""
        return [self.problem(k, features_of(units, own)) for k, units in enumerate(pair.units)]

    def problem(self, head: int, features: Array) -> Problem:
        """Returns what a head's scores lose with dims, (units, k) of them in each unit."""
        a, c = self.queries[head], self.keys[head]
        values, vectors = np.linalg.eigh(a)
        root = (vectors * np.sqrt(np.maximum(values, 0))).T
        return Problem.of(c.copy(), root @ c, features, float(np.sum(a * c)))


@dataclass(frozen=True, eq=False)
class Mix:
    """Outputs of a projection that take over from others: `to` get `by` (gone, to) times the outputs `gone`."""

    gone: Array
    to: Array
    by: np.ndarray

    def into(self, w: np.ndarray, b: np.ndarray) -> None:
        """Changes weights (g, o, f) and biases (g, o) of the projection in place."""
        rows, biases = w.reshape(-1, w.shape[-1]), b.reshape(-1)
        rows[self.to] += self.by.T @ rows[self.gone]
        biases[self.to] += self.by.T @ biases[self.gone]


def find_pairs(units: Units) -> list[Pair]:
    """Returns the products of queries and keys whose contracted indices are all units, equally many of each."""
    coupling = units.coupling
    found = []
    for index, node in enumerate(coupling.nodes):
        form = _form(Node(node, 1, coupling.trace))
        if form is None or any(v is None or v.name in coupling.trace.static for v in node.inputs[:2]):
            continue
        turned, merged = form
        left, right = coupling.seen[index][:2]
        labels = None if left is None else left.on(len(left.shape) - 1)
        if left is None or right is None or labels is None or len(left.shape) != len(right.shape):
            continue
        if merged and (labels.size != left.shape[-1] or left.shape[::2] != right.shape[::2]):
            continue
        labels = labels.reshape(1, merged, 1, -1) if merged else labels
        query, key = (str(v.name) for v in node.inputs[:2] if v is not None)
        folded = _folded(labels, coupling.trace.shapes[query])
        of = units.of_label[labels.reshape(-1, folded, *labels.shape[1:]) if folded else labels]
        if folded and not (of == of[:1]).all():
            continue
        of = of[:1] if folded else of
        flat = of.reshape(-1, of.shape[-1])
        if of.shape[-2] == 1 and (flat >= 0).all() and (merged or turned or left.shape[-3:-2] == right.shape[-3:-2]):
            shifts = node.op_type in ATTENTION or _meets_softmax(str(node.outputs[0].name), coupling, len(left.shape))
            found.append(Pair(index, query, key, turned, merged, folded, flat, of.shape[:-2], shifts))
    return found


def _folded(labels: Array, shapes: tuple[tuple[int, ...], ...]) -> int:
    """Returns how many heads share the first axis of a query with the samples, whose number differs between runs."""
    first, other = (shape[0] for shape in shapes)
    return math.gcd(first, other) if labels.shape[0] > 1 and first != other else 0


def _form(op: Node) -> tuple[bool, int] | None:
    """Returns `turned` and `merged` of the query and the key that a node multiplies; None where it does not."""
    if op.op == "MatMul":
        return True, 0
    if op.op == "FusedMatMul":
        moved = any(op.attr(name, 0) for name in ("transA", "transBatchA", "transBatchB"))
        return None if moved else (not op.attr("transB", 0), 0)
    if op.op == "Attention" and op.node.domain in ("", "ai.onnx"):
        heads = op.attr("q_num_heads", 0)
        alone = heads == op.attr("kv_num_heads", 0) and not op.has(4) and not op.has(5)
        return (False, heads) if alone and not op.attr("softcap", 0.0) else None
    if op.op == "MultiHeadAttention":
        return None if any(map(op.has, (3, 6, 7))) else (False, op.attr("num_heads", 0))
    return None


def features_of(units: Array, own: Array) -> Array:
    """Returns (units, k) the places of each unit of `own` in `units`; all have as many."""
    order = np.argsort(units, kind="stable")
    start = np.searchsorted(units[order], own)
    features: Array = order[start[:, None] + np.arange(int((units == own[0]).sum()))]
    return features


def is_regular(units: Array, own: Array) -> bool:
    """Returns whether every row of `units` holds every unit of `own`, equally often."""
    counts = np.stack([np.bincount(row[row >= 0], minlength=int(own.max()) + 1)[own] for row in units])
    return bool(counts.min() > 0 and (counts == counts[:, :1]).all())


def gather(pair: Pair, batches: Iterable[Feed]) -> tuple[Products, Products]:
    """Returns the products to fit and to check, over what a network has at the pair's inputs."""
    dims = pair.units.shape[1]
    shape = (len(pair.units), dims, dims)
    fit, check = (Products(np.zeros(shape), np.zeros(shape)) for _ in range(2))
    batches = list(batches)
    for k, values in enumerate(batches):
        query = _numbers(pair.rows(values[pair.query].astype(np.float32, copy=False)))
        key = _numbers(pair.rows(values[pair.key].astype(np.float32, copy=False), turned=pair.turned))
        key = key - key.mean(axis=-2, keepdims=True) if pair.shifts else key
        held = k % CHECK_EVERY == CHECK_EVERY - 1 or (1 < len(batches) < CHECK_EVERY and k == len(batches) - 1)
        into = check if held else fit
        into.queries += _grams(query, pair.heads)
        into.keys += _grams(key, pair.heads)
    return fit, check if len(batches) > 1 else fit


def _numbers(x: np.ndarray) -> np.ndarray:
    """Returns rows (..., tokens, dims) with zeros for those that are no numbers, of padded places that see nothing."""
    return x if np.isfinite(x.sum()) else np.where(np.isfinite(x).all(axis=-1, keepdims=True), x, np.float32(0))


def mixed(pair: Pair, fit: Products, check: Products, dead: np.ndarray) -> list[np.ndarray | None]:
    """Returns for each head (dims, dims) how queries take over for the cut dims; None where it is best left alone.

    Args:
        pair: the product.
        fit: what the mixture is made from.
        check: what tells which ridge is best, and whether any is better than none.
        dead: for each unit whether it is cut.
    """
    found: list[np.ndarray | None] = []
    for units, c, a, held in zip(pair.units, fit.keys, check.queries, check.keys, strict=True):
        keep, gone = np.flatnonzero(~dead[units]), np.flatnonzero(dead[units])
        best, chosen = _error(a, held, np.diag((~dead[units]).astype(float))), None
        for ridge in RIDGES if len(gone) and len(keep) else ():
            level = ridge * max(float(np.trace(c)) / len(c), 1e-30)
            by = np.linalg.solve(c[np.ix_(keep, keep)] + level * np.eye(len(keep)), c[np.ix_(keep, gone)]).T
            mixture = np.diag((~dead[units]).astype(float))
            mixture[np.ix_(gone, keep)] = by
            if (loss := _error(a, held, mixture)) < best:
                best, chosen = loss, mixture
        found.append(chosen)
    return found


def mixes(
    pair: Pair, mixtures: Iterable[np.ndarray | None], of: Array, scale: np.ndarray, dead: np.ndarray
) -> list[Mix]:
    """Returns what each head's mixture means for the projection whose outputs `of` (heads, dims) are the queries."""
    found = []
    for units, mixture, rows, factor in zip(pair.units, mixtures, of, scale, strict=True):
        keep, gone = np.flatnonzero(~dead[units]), np.flatnonzero(dead[units])
        if mixture is not None:
            by = mixture[np.ix_(gone, keep)] * factor[gone][:, None] / factor[keep]
            found.append(Mix(rows[gone], rows[keep], by))
    return found


def _error(a: np.ndarray, c: np.ndarray, mixture: np.ndarray) -> float:
    """Returns the squared error of the scores where queries are mixed: |Q (I - M) K'|^2."""
    left = np.eye(len(a)) - mixture
    return float(np.sum((left.T @ a @ left) * c))


def projection(pair: Pair, frontier: Frontier, layers: Iterable[Layer]) -> tuple[Layer, Array, np.ndarray] | None:
    """Returns the layer that makes the queries, and (heads, dims) its output for each of them and their scale.

    None where anything but movement and scaling stands between. The way is told by running it on numbered outputs.
    """
    coupling = frontier.coupling
    starts = {made_by(coupling, layer): layer for layer in layers if not layer.direct and layer.shared == 1}
    name, path = followed_back(coupling, pair.query, starts, lambda node: _scaled(coupling, node))
    if name not in starts:
        return None
    layer = starts[name]
    told = _numbered(frontier, layer, name, pair, list(path))
    return None if told is None else (layer, *told)


def _scaled(coupling: Coupling, node: ir.Node) -> int | None:
    """Returns the input that a node only moves, or scales by something constant."""
    if moving(coupling, node) == [0]:
        return 0 if node.op_type in MOVES | SCALES else None
    return 1 if moving(coupling, node) == [1] and node.op_type == "Mul" else None


def _numbered(
    frontier: Frontier, layer: Layer, name: str, pair: Pair, path: list[int]
) -> tuple[Array, np.ndarray] | None:
    """Returns (heads, dims) the output of the layer that each query is made of, and the factor it gets."""
    trace = frontier.coupling.trace
    shape = trace.shapes[name][0]
    axis = layer.view.channel % len(shape)
    numbers = np.arange(1, shape[axis] + 1).reshape([-1 if k == axis else 1 for k in range(len(shape))])
    scale, places = (_carried(frontier, path, name, pair.query, x) for x in (np.ones_like(numbers), numbers))
    if scale is None or places is None:
        return None
    scale, places = pair.rows(scale), pair.rows(places)
    spans = (*pair.heads, 1, places.shape[-1])
    first = tuple(slice(None) if n > 1 else slice(0, 1) for n in spans)
    alike = all(np.array_equal(np.broadcast_to(x[first], x.shape), x) for x in (scale, places))
    if not alike or not (np.abs(scale) > 0).all():
        return None
    of = np.rint(places[first] / scale[first]).astype(np.int64) - 1
    if len(np.unique(of)) < of.size or not np.allclose(scale[first] * (of + 1), places[first], rtol=1e-4):
        return None
    return of.reshape(-1, spans[-1]), scale[first].reshape(-1, spans[-1]).astype(np.float64)


def _carried(frontier: Frontier, path: list[int], name: str, end: str, x: np.ndarray) -> np.ndarray | None:
    """Returns what the nodes of a path make of a value; None where they read anything else that depends on data."""
    trace = frontier.coupling.trace
    whole = np.ascontiguousarray(np.broadcast_to(x, trace.shapes[name][0]), np.float32)
    if trace.dtypes[name] != whole.dtype or not path:
        return None if path else whole
    made = {str(v.name) for k in path for v in frontier.nodes[k].outputs}
    read = dict.fromkeys(n for k in path for n in inputs_of(frontier.nodes[k]))
    fed = [n for n in read if n not in made and n not in frontier.tensors]
    known = {n: trace.values[n][0] for n in fed if n in trace.values} | {name: whole}
    if set(fed) - set(known):
        return None
    session = open_session(frontier.segment(path, fed, [end]), frontier.providers)
    return np.asarray(run(session, [end], {n: known[n] for n in fed})[0])


def _grams(x: np.ndarray, heads: tuple[int, ...]) -> np.ndarray:
    """Returns (heads, dims, dims) sums of products over all axes but those that tell heads apart."""
    own = [k for k, n in enumerate(heads) if n > 1]
    moved = np.moveaxis(x, own, range(len(own)))
    rows = moved.reshape(int(np.prod([x.shape[k] for k in own], dtype=int)), -1, x.shape[-1])
    return np.asarray(rows.transpose(0, 2, 1) @ rows)


def _meets_softmax(name: str, coupling: Coupling, rank: int) -> bool:
    """Returns whether a Softmax over the last axis is all that reads a value, scaled and masked on the way."""
    while len(places := coupling.readers.get(name, [])) == 1:
        node = coupling.nodes[places[0][0]]
        if node.op_type == "Softmax":
            return "axis" in node.attributes and node.attributes["axis"].as_int() in (-1, rank - 1)
        if node.op_type not in BEHIND:
            return False
        name = str(node.outputs[0].name)
    return False


__all__ = ["Mix", "Pair", "Products", "features_of", "find_pairs", "gather", "is_regular", "mixed", "projection"]
