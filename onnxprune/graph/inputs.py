"""Inputs that a model accepts, told from what its graph declares and how it uses them.

Fixed dimensions are taken as declared. Dynamic ones are sorted into batch and length by their names and places; `sizes`
gives one set of sizes after another to try, and `sample` draws data of that size: token ids stay inside the tables they
index, masks are zeros and ones, sequence lengths are lengths.
"""

from __future__ import annotations

import ast
import collections
import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxprune.errors import ModelError, quote

__all__ = [
    "FILLS",
    "Dim",
    "Fill",
    "InputSpec",
    "Kind",
    "Sizes",
    "as_run",
    "at",
    "candidate",
    "count",
    "dims",
    "dynamic",
    "resolve",
    "sample",
    "sizes",
    "specs",
]

Sizes = Mapping[str, tuple[int, ...]]
"""Concrete shape of every input, by name."""

Fill = Literal["random", "full", "ones", "zeros"]
"""What integers hold: random numbers below their bound; the same, but masks all ones; ones; zeros."""
Kind = Literal["batch", "sequence", "picture"]
Dim = str | tuple[int, int]
"""A dynamic dimension: its name, or axis and rank of a nameless one."""

# What a dynamic length is tried with, in this order: pictures need room for five halvings, tokens a table that may be
# short, raw audio a long window.
_LENGTHS: dict[str, tuple[int, ...]] = {
    "picture": (64, 32, 96, 128, 224, 256, 384, 512, 640, 16, 28, 8, 48, 80, 800),
    "sequence": (
        *(16, 8, 32, 7, 64, 128, 10, 12, 20, 24, 48, 50, 77, 80, 96, 100, 196, 197, 200, 256, 257, 384, 512, 1024),
        *(1500, 1600, 3000, 4000, 8000, 16000, 4, 3, 2, 1),
    ),
}
_TRIES = max(map(len, _LENGTHS.values()))
# Batch and index of the length. A batch of 1 hides what broadcasts, so it comes late; 4 and 8 are for models that fold
# frames into the batch.
_CANDIDATES = [*((b, t) for b in (2, 1) for t in range(_TRIES)), *((b, t) for b in (4, 8) for t in range(3))]
FILLS: tuple[Fill, ...] = ("random", "full", "ones", "zeros")
_LARGEST = 1 << 28  # elements of an input; the largest pictures and volumes stay well below

_BATCH_NAME = re.compile(r"batch|\bbs\b|^[bn]$|num_?(samples|images)", re.IGNORECASE)
_LENGTH_NAME = re.compile(
    r"seq|len|time|frame|token|height|width|^[hwtsl]$|sample|text|audio|steps|past", re.IGNORECASE
)


@dataclass(frozen=True)
class InputSpec:
    """One graph input: what may be fed to it.

    Attributes:
        name: the input's name.
        dtype: numpy's type (`ml_dtypes` for bfloat16 and the like; `object` for strings).
        shape: one entry per axis: a fixed size, the name of a dynamic one, or None for a dynamic one without name.
        bound: exclusive upper bound of an input that indexes tables, None where nothing in the graph tells one.
        lengths: True where the values are sequence lengths of a recurrent cell (1 to the length that is run).
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    bound: int | None = None
    lengths: bool = False


def specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Return what the graph's inputs accept, in graph order, without initializers that are listed as inputs too.

    Raises:
        ModelError: an input is a sequence, an optional or a map, or does not say how many axes it has.
    """
    graph = model.graph
    return tuple(_spec(v) for v in graph.inputs if v.name is not None and v.name not in graph.initializers)


def as_run(inputs: Sequence[InputSpec], feeds: Sequence[Mapping[str, np.ndarray]]) -> tuple[InputSpec, ...]:
    """Return inputs with the batch that the model runs at, where two runs could not differ in it by one.

    Exports may declare a batch that is open and reshape to the one that they were made with, or fold a fixed number
    of frames into it.

    Args:
        inputs: what the model declares.
        feeds: of two runs at sizes that differ wherever the model allows it.
    """
    kinds, found = dims(inputs), []
    for s in inputs:
        one, other = (feed[s.name].shape for feed in feeds)
        batch = [
            not isinstance(d, int) and kinds.get(_dim(d, k, len(s.shape))) == "batch" for k, d in enumerate(s.shape)
        ]
        fixed = [b and (n == m or (m % n == 0 and n > 1)) for b, n, m in zip(batch, one, other, strict=True)]
        shape = [n if f else d for d, f, n in zip(s.shape, fixed, one, strict=True)]
        found.append(replace(s, shape=tuple(shape)))
    return tuple(found)


def dynamic(inputs: Sequence[InputSpec]) -> bool:
    """Return whether any input has a size that the graph leaves open."""
    return any(not isinstance(d, int) for s in inputs for d in s.shape)


def count(inputs: Sequence[InputSpec]) -> int:
    """Return how many sets of sizes `sizes` knows for these inputs: k runs from 0 to this, exclusively."""
    return len(_CANDIDATES) if dynamic(inputs) else 1


def sizes(inputs: Sequence[InputSpec], k: int = 0) -> dict[str, tuple[int, ...]]:
    """Return the k-th set of sizes to try: all lengths at a batch of 2 come first, then other batches."""
    return resolve(inputs, candidate(inputs, k))


def at(inputs: Sequence[InputSpec], batch: int, length: int) -> dict[str, tuple[int, ...]]:
    """Return the sizes at this batch and this length for everything else that is dynamic."""
    return resolve(inputs, {d: batch if kind == "batch" else length for d, kind in dims(inputs).items()})


def dims(inputs: Sequence[InputSpec]) -> dict[Dim, Kind]:
    """Return the dynamic dimensions that can be chosen, and what each is taken for.

    Names that are expressions ("past + 1") are not chosen but computed; the names in them are.
    """
    found: dict[Dim, Kind] = {}
    pictures = not any(
        s.dtype.kind in "iu" and s.dtype.itemsize > 1 and _open(s) for s in inputs
    )  # beside tokens, two open axes are a mask's
    totals = _totals(inputs)
    first = any(s.shape and not isinstance(s.shape[0], int) for s in inputs)  # whether some have the batch there
    for s in inputs:
        spatial: Kind = "picture" if pictures and _picture(s) else "sequence"
        behind = first and len(s.shape) > 2 and _open(s) == [1] and isinstance(s.shape[0], int)  # states of layers
        for axis, d in enumerate(s.shape):
            if isinstance(d, int) or d in totals:
                continue
            formula = _formula(d)
            parts = [d] if formula is None else [n.id for n in ast.walk(formula) if isinstance(n, ast.Name)]
            for part in parts:
                found.setdefault(_dim(part, axis, len(s.shape)), _kind(part, axis - behind, spatial))
    return found


def candidate(inputs: Sequence[InputSpec], k: int) -> dict[Dim, int]:
    """Return the size of every dynamic dimension in the k-th try."""
    batch, try_ = _CANDIDATES[k]
    return {
        d: batch if kind == "batch" else _LENGTHS[kind][try_ % len(_LENGTHS[kind])] for d, kind in dims(inputs).items()
    }


def resolve(inputs: Sequence[InputSpec], chosen: Mapping[Dim, int]) -> dict[str, tuple[int, ...]]:
    """Return every input's shape where the dynamic dimensions have these sizes."""
    totals = _totals(inputs)

    def size(dim: str | None, axis: int, rank: int) -> int:
        if dim in totals:
            return sum(chosen[part] for part in totals[dim])
        formula = _formula(dim)
        return chosen[_dim(dim, axis, rank)] if formula is None else max(1, _value(formula, chosen))

    return {
        s.name: tuple(d if isinstance(d, int) else size(d, axis, len(s.shape)) for axis, d in enumerate(s.shape))
        for s in inputs
    }


def sample(inputs: Sequence[InputSpec], seed: int, shapes: Sizes, fill: Fill = "random") -> dict[str, np.ndarray]:
    """Return one feed for the model at these shapes: the same seed, the same data.

    Args:
        inputs: what the model accepts.
        seed: of the random draw.
        shapes: one concrete shape per input, from `sizes` or `at`.
        fill: what integer inputs hold, see `Fill`.

    Raises:
        ModelError: an input would have more elements than any real one has.
    """
    for s in inputs:
        if np.prod(shapes[s.name], dtype=np.float64) > _LARGEST:
            raise ModelError(
                f"input {quote(s.name)} would have the shape {list(shapes[s.name])}, more than {_LARGEST} elements: "
                "declare smaller or dynamic dimensions"
            )
    rng = np.random.default_rng(seed)
    longest = {s.name: _length(s, inputs, shapes) for s in inputs if s.lengths}
    return {s.name: _draw(s, rng, shapes[s.name], fill, longest.get(s.name, 1)) for s in inputs}


# ---------------------------------------------------------------- sizes
def _open(spec: InputSpec) -> list[int]:
    """Return the open axes, the batch left out."""
    return [axis for axis, d in enumerate(spec.shape) if axis and not isinstance(d, int)]


def _picture(spec: InputSpec) -> bool:
    """Return whether the open axes are a picture's: of four or more the last, or all between batch and channels."""
    if len(spec.shape) < 4 or spec.dtype.kind not in "fV":
        return spec.dtype.itemsize == 1 and len(spec.shape) >= 3
    return not isinstance(spec.shape[-1], int) or not any(isinstance(d, int) for d in spec.shape[1:-1])


def _totals(inputs: Sequence[InputSpec]) -> dict[str | None, tuple[str, str]]:
    """Return names that stand for the sum of two others: a decoder's total length is the past and the new tokens."""
    names = {d for s in inputs for d in s.shape if isinstance(d, str) and _formula(d) is None}
    past = sorted(n for n in names if re.search("past", n, re.IGNORECASE) and not re.search("total", n, re.IGNORECASE))
    new = sorted(n for n in names if re.fullmatch(r"(input_|decoder_)?seq(uence)?(_len(gth)?)?", n, re.IGNORECASE))
    if len(past) != 1 or len(new) != 1:
        return {}
    return {n: (past[0], new[0]) for n in names if re.search("total", n, re.IGNORECASE)}


def _dim(name: str | None, axis: int, rank: int) -> Dim:
    """Return what tells a dynamic dimension apart: its name, else its place. Nameless axes 0 are one batch."""
    if name is not None:
        return name
    return (axis, rank) if axis else (0, 0)


def _kind(name: str | None, axis: int, spatial: Kind) -> Kind:
    if name is not None and _BATCH_NAME.search(name):
        return "batch"
    if axis == 0 and not (name is not None and _LENGTH_NAME.search(name)):
        return "batch"
    return spatial


@functools.lru_cache(maxsize=256)
def _formula(name: str | None) -> ast.expr | None:
    """Return a dimension's name as a formula of other names ("past + 1", "floor(s0/2)"), None if it is just a name."""
    if name is None or len(name) > 200 or re.search(r"[A-Za-z_]-[A-Za-z_]", name):
        return None
    try:
        tree = ast.parse(name.strip(), mode="eval").body
        _value(tree, collections.defaultdict(lambda: 2))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if isinstance(tree, ast.BinOp | ast.Call) else None


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: lambda a, b: a // max(b, 1),
    ast.Div: lambda a, b: a // max(b, 1),
    ast.Mod: lambda a, b: a % max(b, 1),
}
_CALLS: dict[str, Callable[..., int]] = {"max": max, "min": min, "floor": int, "ceil": int, "ceiling": int}


def _value(tree: ast.expr, chosen: Mapping[Any, int]) -> int:
    """Return what a formula gives, node by node: eval() has no place on a file's text.

    Raises:
        ValueError: the text is no formula after all.
    """
    if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
        return _OPERATORS[type(tree.op)](_value(tree.left, chosen), _value(tree.right, chosen))
    if isinstance(tree, ast.Constant) and type(tree.value) is int:
        return tree.value
    if isinstance(tree, ast.Name):
        return chosen[tree.id]
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id.lower() in _CALLS and tree.args:
        arguments = [_value(a, chosen) for a in tree.args]
        return _CALLS[tree.func.id.lower()](*arguments) if len(arguments) > 1 else arguments[0]
    raise ValueError(f"no formula: {ast.dump(tree)[:80]}")


# ---------------------------------------------------------------- data
def _draw(spec: InputSpec, rng: np.random.Generator, shape: tuple[int, ...], fill: Fill, longest: int) -> np.ndarray:
    kind = spec.dtype.kind
    if kind == "O":
        return np.full(shape, "a", dtype=object)
    if kind in "iub" or spec.bound:
        return _draw_integers(spec, rng, shape, fill, longest).astype(spec.dtype)
    if kind == "c":
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(spec.dtype)
    return np.asarray(rng.normal(size=shape)).astype(spec.dtype)


def _draw_integers(
    spec: InputSpec, rng: np.random.Generator, shape: tuple[int, ...], fill: Fill, longest: int
) -> np.ndarray:
    if spec.lengths and fill == "random":
        return rng.integers(1, longest + 1, shape)
    if fill in ("ones", "zeros") or spec.lengths:
        return np.full(shape, {"zeros": 0, "ones": 1}.get(fill, longest))
    if spec.bound:
        return rng.integers(0, min(spec.bound, int(np.iinfo(np.int64).max)), shape)
    if spec.dtype.kind != "b" and spec.dtype.itemsize == 1 and len(shape) > 2:  # a picture in bytes
        return rng.integers(np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max, shape, endpoint=True)
    mask = rng.integers(0, 2, shape)
    return np.ones_like(mask) if fill == "full" else _first_kept(mask)


def _first_kept(mask: np.ndarray) -> np.ndarray:
    """Set the first place of every row: a row without one is a softmax over nothing, which is NaN in many models."""
    if mask.ndim > 1 and mask.shape[-1]:
        mask[..., 0] = 1
    return mask


def _length(spec: InputSpec, inputs: Sequence[InputSpec], shapes: Sizes) -> int:
    """Return the longest sequence that may be asked for: no other input's axis 0 or 1 is shorter than that."""
    others = [n for s in inputs if s.name != spec.name and len(s.shape) > 1 for n in shapes[s.name][:2]]
    batch = shapes[spec.name][0] if shapes[spec.name] else 1
    return min((n for n in others if n != batch), default=1)


# ---------------------------------------------------------------- what the graph says
def _spec(value: ir.Value) -> InputSpec:
    name = value.name or ""
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise ModelError(
            f"input {quote(name)} is a {value.type}, and only tensors can be fed: give the graph tensor inputs"
        )
    if value.shape is None:
        raise ModelError(
            f"input {quote(name)} declares no shape: write its dimensions into the model, open ones by name"
        )
    dtype = _numpy_type(value.dtype)
    bound, lengths = _bound(value) if dtype.kind in "iuf" else (None, False)
    return InputSpec(name, dtype, _declared(value.shape), bound, lengths)


def _numpy_type(dtype: ir.DataType | None) -> np.dtype[Any]:
    if dtype is None or dtype == ir.DataType.UNDEFINED:
        return np.dtype(np.float32)
    if dtype == ir.DataType.STRING:
        return np.dtype(object)
    return np.dtype(ml_dtypes.bfloat16) if dtype == ir.DataType.BFLOAT16 else np.dtype(dtype.numpy())


def _declared(shape: ir.ShapeProtocol | None) -> tuple[int | str | None, ...]:
    """Return the axes as declared; a negative size, which some exporters write, counts as open."""
    if shape is None:
        return ()
    return tuple((d if d >= 0 else None) if isinstance(d, int) else (d.value or None) for d in shape.dims)


# Operators that hand integers on as they are (slot 0), or as one of several (Where, Concat, Min, Max).
_PASS = frozenset(
    {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Slice", "Split", "Tile"}
    | {"Gather", "Where", "Concat", "Clip", "Pad", "Min", "Max"}
)
# op: {slot of the indices: slot of the table}
_INDEX: dict[str, dict[int, int]] = {
    "Gather": {1: 0},
    "GatherElements": {1: 0},
    "OneHot": {0: 1},
    "GatherBlockQuantized": {1: 0},
    "EmbedLayerNormalization": {0: 2, 1: 4},
    "QEmbedLayerNormalization": {0: 2, 1: 4},
}


def _bound(value: ir.Value) -> tuple[int | None, bool]:
    """Return the exclusive bound of the integers in `value`, and whether a recurrent cell reads them as lengths.

    Follows `x * scale + offset` forward to every table that it indexes.
    """
    bounds: list[int] = []
    todo: list[tuple[ir.Value, int, int]] = [(value, 1, 0)]
    seen = set()
    lengths = False
    while todo:
        at_, scale, offset = todo.pop()
        if (id(at_), scale, offset) in seen:
            continue
        seen.add((id(at_), scale, offset))
        for node, slot in at_.uses():
            if node.op_type in ("LSTM", "GRU", "RNN") and slot == 4:
                lengths = True
            table = _INDEX.get(node.op_type, {}).get(slot)
            if table is not None:
                entries = _entries(node, table)
                if entries is not None and (entries - offset) // scale > 0:
                    bounds.append((entries - offset) // scale)
            elif node.op_type in _PASS and (slot == 0 or node.op_type in ("Where", "Concat", "Min", "Max")):
                todo.extend((out, scale, offset) for out in node.outputs)
            elif node.op_type in ("Add", "Mul") and (c := _largest(node.inputs[1 - slot])) is not None and c > 0:
                add = node.op_type == "Add"
                todo.append((node.outputs[0], scale if add else scale * c, offset + c if add else offset * c))
            elif node.op_type in ("Add", "Sub") and _largest(node.inputs[1 - slot]) is not None:
                todo.append((node.outputs[0], scale, offset))
    return min(bounds, default=None), lengths


def _entries(node: ir.Node, table: int) -> int | None:
    """Return how many entries the table of an indexing node has, None where it is not a constant of known size."""
    value = node.inputs[table] if table < len(node.inputs) else None
    if value is None:
        return None
    if node.op_type == "OneHot":
        return _largest(value)
    shape = _table_shape(value)
    attribute = node.attributes.get("gather_axis" if node.op_type == "GatherBlockQuantized" else "axis")
    axis = attribute.as_int() if attribute is not None and not attribute.is_ref() else 0
    entries = shape[axis] if shape and -len(shape) <= axis < len(shape) else None
    return entries if isinstance(entries, int) else None


def _table_shape(value: ir.Value) -> tuple[int | str | None, ...] | None:
    """Return the shape of a constant, also of one that is cast or dequantized first; else what is declared."""
    for _ in range(8):
        if value.const_value is not None:
            return _declared(value.const_value.shape)
        node = value.producer()
        if node is not None and node.op_type == "Constant" and "value" in node.attributes:
            return _declared(node.attributes["value"].as_tensor().shape)
        if node is None or node.op_type not in ("Cast", "Identity", "DequantizeLinear") or node.inputs[0] is None:
            break
        value = node.inputs[0]
    return _declared(value.shape)


def _largest(value: ir.Value | None) -> int | None:
    """Return the largest number in a small integer constant, None if `value` is no such constant."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or not 0 < tensor.size <= 65536 or not tensor.dtype.is_integer():
        return None
    return int(np.max(tensor.numpy()))
