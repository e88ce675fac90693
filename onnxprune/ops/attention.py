"""Fused attention: heads, and dimensions within all heads, go as they do where attention is written out.

Spec: https://onnx.ai/onnx/operators/onnx__Attention.html, https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html,
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from onnxprune.engine.tensors import Tensor, drop_axes, insert_axes
from onnxprune.ops.quantized import columns, only_one
from onnxprune.ops.registry import Need, Node, Quantized, Shape, Site, Sized, Unsupported, operator

MS = "com.microsoft"
HEADS, TOKENS, SIZE = 1, 2, 3  # axes of (batch, heads, tokens, size of a head)

attention = operator("Attention", doc="heads with those of keys and values; dimensions in all heads alike")
rotary = operator("RotaryEmbedding", doc="dimensions that are turned together, with their entries of the tables")
ms_rotary = operator("RotaryEmbedding", domain=MS, doc="as RotaryEmbedding of ai.onnx")
multi_head = operator("MultiHeadAttention", domain=MS, doc="as Attention of ai.onnx, with the projections' bias")
grouped_query = operator(
    "GroupQueryAttention",
    domain=MS,
    doc="whole groups of heads; dimensions in blocks of 8 (16 if rotary), alike in q, k and v",
)
projected = operator("Attention", domain=MS, doc="as Attention of ai.onnx, with the columns of the merged projections")
q_projected = operator(
    "QAttention", domain=MS, quantized={0: Quantized(3, 6), 1: Quantized(4, 7)}, doc="as Attention of com.microsoft"
)


# ---------------------------------------------------------------- what all have in common
def split_heads(op: Site, t: Tensor, heads: int) -> Tensor:
    """Returns (batch, tokens, heads x size) as (batch, heads, tokens, size); four axes are that already."""
    if len(t.shape) == 4:
        return t
    batch, tokens, width = t.shape
    if heads < 1 or width % heads:
        raise Unsupported("its number of heads is not known")
    return op.transpose(op.reshape(t, (batch, tokens, heads, width // heads)), (0, 2, 1, 3))


def merge_heads(op: Site, t: Tensor) -> Tensor:
    """Returns (batch, heads, tokens, size) as (batch, tokens, heads x size)."""
    batch, heads, tokens, size = t.shape
    return op.reshape(op.transpose(t, (0, 2, 1, 3)), (batch, tokens, heads * size))


def attend(op: Site, q: Tensor, k: Tensor, v: Tensor, *biases: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns softmax(q k' + biases) v and its scores; each head of `k` and `v` serves as many neighbours in `q`."""
    serves = np.repeat(np.arange(k.shape[HEADS]), q.shape[HEADS] // k.shape[HEADS])
    if q.shape[HEADS] != k.shape[HEADS]:
        k, v = op.take(k, HEADS, serves), op.take(v, HEADS, serves)
    scores = op.contract("bhsd,bhtd->bhst", q, k)
    scores = op.unify(scores, *(_over_tokens(op, b) for b in biases if b is not None), zero="none")
    scores = op.tie(scores, 3, why="normalised together")
    return op.contract("bhst,bhtd->bhsd", scores, v), Tensor(scores.shape, scores.arrays)


def _over_tokens(op: Site, bias: Tensor) -> Tensor:
    """Returns what is added to scores with its last axis shrunk: it may be shorter than the keys, or longer."""
    bias = op.tie(bias, len(bias.shape) - 1, why="stands for tokens")
    return Tensor((*bias.shape[:-1], 1), bias.arrays, bias.zero)


def extended(op: Site, past: Tensor | None, t: Tensor) -> Tensor:
    """Returns keys or values behind those of earlier tokens."""
    return t if past is None else op.concat([past, t], TOKENS)


def _cut_up(op: Site, t: Tensor, axis: int, widths: Sequence[int]) -> list[Tensor]:
    """Returns the parts of these widths that stand behind each other along `axis`."""
    ends = np.cumsum([0, *widths])
    return [op.take(t, axis, np.arange(a, b)) for a, b in pairwise(ends)]


def outputs(op: Site, y: Tensor, *more: Tensor | None) -> list[Tensor | None]:
    """Returns one tensor for each output of the node, with as many tokens as it has (a buffer may have more)."""
    found: list[Tensor | None] = [y]
    for k, v in enumerate(op.node.outputs[1:], 1):
        t = more[k - 1] if v.name and k <= len(more) else None
        found.append(t if t is None else Tensor(op.out_shape(k), t.arrays, t.zero))
    return found


def living_heads(kept: np.ndarray, size: int) -> int:
    """Returns how many heads keep any of their positions."""
    return len(np.unique(kept // size))


def old_scale(op: Sized, before: int, after: int) -> Iterable[Need]:
    """Yields the scale that the operator took from the head size, if that changes."""
    if before != after and not op.attr("scale"):
        yield Need("scale", 1 / math.sqrt(before))


# ---------------------------------------------------------------- ai.onnx
@attention.coupling
def couple_attention(op: Site) -> list[Tensor | None]:
    """Inputs of three axes hold all heads in the last one."""
    heads = op.attr("q_num_heads", 0), op.attr("kv_num_heads", 0)
    q, k, v = (split_heads(op, op[slot], heads[slot > 0]) for slot in range(3))
    k, v = extended(op, op.get(4), k), extended(op, op.get(5), v)
    y, scores = attend(op, q, k, v, op.get(3))
    return outputs(op, y if len(op[0].shape) == 4 else merge_heads(op, y), k, v, scores)


@attention.sizes
def size_attention(op: Sized) -> Iterable[Need]:
    """Numbers of heads follow where inputs have three axes; the scale stays what it was."""
    size = op.old(0)[-1]
    if len(op.old(0)) == 4:
        yield from old_scale(op, size, op.new(0)[-1])
        return
    for slot, name in enumerate(("q_num_heads", "kv_num_heads")):
        old = op.attr(name)
        size = op.old(slot)[2] // old
        alive = living_heads(op.kept(slot, 2), size)
        if alive != old:
            yield Need(name, alive)
        if slot == 0:
            yield from old_scale(op, size, op.new(0)[2] // alive)


@attention.macs
def macs_attention(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """Queries times keys, and scores times values: a MAC per token for each element of q and of the result."""
    assert x[0] is not None and x[1] is not None
    past = x[4] if len(x) > 4 else None
    return int((np.prod(x[0]) + np.prod(y[0])) * (x[1][-2] + (past[TOKENS] if past else 0)))


# ---------------------------------------------------------------- rotary embeddings
def turned(op: Site, t: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Returns `t`, whose first dimensions are turned in pairs: each with its partner and its columns of the tables."""
    half = cos.shape[-1]
    real, imaginary = np.arange(half), np.arange(half) + half
    if interleaved:
        real, imaginary = 2 * real, 2 * real + 1
    tables = [op.tie(c, *range(len(c.shape) - 1), why="is read at positions") for c in (cos, sin)]
    columns_ = [insert_axes(drop_axes(_first(c), range(len(c.shape) - 1)), range(3)) for c in tables]
    pairs = op.unify(op.take(t, SIZE, real), op.take(t, SIZE, imaginary), *columns_, zero="none")
    for a in pairs.arrays:
        one_stays(op, a)
    return op.tidy(t)


def one_stays(op: Site, labels: np.ndarray) -> None:
    """Demands that not all of `labels` go: part of an axis that an operator wants to find there."""
    whole = op.labels.fresh(1)
    op.freeze(whole, "not all dimensions that are turned can go")
    op.labels.derive(whole, labels.reshape(1, -1))


def _first(t: Tensor) -> Tensor:
    """Returns `t` with size 1 on all axes but the last."""
    return Tensor((1,) * (len(t.shape) - 1) + t.shape[-1:], t.arrays, t.zero)


@rotary.coupling
@ms_rotary.coupling
def couple_rotary(op: Site) -> Tensor:
    """Turns the first dimensions of every head; the others pass."""
    cos, sin = (2, 3) if op.node.domain == MS else (1, 2)
    x = split_heads(op, op[0], _rotary_heads(op))
    if 2 * op[cos].shape[-1] > x.shape[SIZE]:
        raise Unsupported("its tables are wider than a head")
    y = turned(op, x, op[cos], op[sin], bool(op.attr("interleaved", 0)))
    return y if len(op[0].shape) == 4 else merge_heads(op, y)


def _rotary_heads(op: Site | Sized) -> int:
    """Returns the number of heads of an input of three axes: told, or by the width of the tables."""
    if heads := op.attr("num_heads", 0):
        return int(heads)
    shape, table = (op.shape(0), op.shape(2)) if isinstance(op, Site) else (op.old(0), op.old(2))
    return shape[2] // (2 * table[1]) if len(shape) == 3 else shape[1]


@rotary.sizes
@ms_rotary.sizes
def size_rotary(op: Sized) -> Iterable[Need]:
    """Number of heads and turned dimensions follow where they are written down."""
    cos = 2 if op.node.domain == MS else 1
    if op.attr("num_heads", 0) and len(op.old(0)) == 3:
        alive = living_heads(op.kept(0, 2), op.old(0)[2] // op.attr("num_heads"))
        if alive != op.attr("num_heads"):
            yield Need("num_heads", alive)
    if op.attr("rotary_embedding_dim", 0) and op.new(cos)[-1] != op.old(cos)[-1]:
        yield Need("rotary_embedding_dim", 2 * op.new(cos)[-1])


# ---------------------------------------------------------------- com.microsoft
@multi_head.coupling
def couple_multi_head(op: Site) -> list[Tensor | None]:
    """Queries, keys and values with their bias; keys and values may come in four axes, from a cache or an encoder."""
    if not op.has(2):
        raise Unsupported("queries, keys and values packed together")
    heads, parts = op.attr("num_heads"), [op[slot] for slot in range(3)]
    bias = op.get(3)
    if bias is not None:
        if any(len(t.shape) != 3 for t in parts):
            raise Unsupported("a bias for keys and values that come in four axes")
        parts = [op.unify(t, b) for t, b in zip(parts, _cut_up(op, bias, 0, [t.shape[2] for t in parts]), strict=True)]
    q, k, v = (split_heads(op, t, heads) for t in parts)
    if op.has(6) or len(op[1].shape) == 4:
        k, v = alike(op, k, v)  # a cache holds both in one size
    k, v = extended(op, op.get(6), k), extended(op, op.get(7), v)
    y, scores = attend(op, q, k, v, op.get(5))
    return outputs(op, merge_heads(op, y), k, v, scores)


def alike(op: Site, *tensors: Tensor) -> list[Tensor]:
    """Returns tensors of (batch, heads, tokens, size) whose heads have the same dimensions."""
    op.unify(
        *(
            Tensor(
                (1, t.shape[HEADS], 1, t.shape[SIZE]), tuple(a for a in t.arrays if a.shape[0] == a.shape[TOKENS] == 1)
            )
            for t in tensors
        ),
        zero="none",
    )
    return [op.tidy(t) for t in tensors]


@multi_head.sizes
def size_multi_head(op: Sized) -> Iterable[Need]:
    """The number of heads follows; the scale stays what it was."""
    heads = op.attr("num_heads")
    size = op.old(0)[2] // heads
    alive = living_heads(op.kept(0, 2), size)
    if alive != heads:
        yield Need("num_heads", alive)
    yield from old_scale(op, size, op.new(0)[2] // alive)


@multi_head.macs
def macs_multi_head(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """Queries times keys, and scores times values."""
    assert x[0] is not None and x[1] is not None
    past = x[6] if len(x) > 6 else None
    tokens = x[1][2 if len(x[1]) == 4 else 1] + (past[TOKENS] if past else 0)
    return int((np.prod(x[0]) + np.prod(y[0])) * tokens)


@grouped_query.coupling
def couple_grouped_query(op: Site) -> list[Tensor | None]:
    """One head size for q, k and v, a multiple of 8; turned in pairs inside the operator if it is rotary."""
    if op.has(12) or op.has(13):
        raise Unsupported("a quantized cache")
    heads, groups = op.attr("num_heads"), op.attr("kv_num_heads")
    q, k, v = (split_heads(op, t, n) for t, n in zip(_queries(op), (heads, groups, groups), strict=True))
    rotates, interleaved = op.attr("do_rotary", 0), bool(op.attr("rotary_interleaved", 0))
    if rotates and not op.has(7):
        raise Unsupported("no tables to turn by")
    k, v = alike(op, k, v)
    if rotates:
        width = 2 * op[7].shape[-1]
        q, k, v = (in_blocks(op, t, width, 16 if interleaved else 8, 16) for t in (q, k, v))
        q, k = (turned(op, t, op[7], op[8], interleaved) for t in (q, k))
    else:
        q, k, v = (in_blocks(op, t, 0, 8, 8) for t in (q, k, v))
    if op.has(14):
        q, k = (op.tie(t, SIZE, why="a mean of squares over the dimensions") for t in (q, k))
        op.freeze_all(op.get(14), op.get(15), why="a mean of squares over the dimensions")
    sink = op.get(11)
    if sink is not None:
        sink = insert_axes(sink, [0, 2, 3])
    k, v = extended_cache(op, op.get(3), k), extended_cache(op, op.get(4), v)
    y, scores = attend(op, q, k, v, op.get(10), sink)
    return outputs(op, merge_heads(op, y), k, v, scores)


def _queries(op: Site) -> list[Tensor]:
    """Returns q, k and v, cut out of one tensor where they come packed."""
    if op.has(1):
        return [op[0], op[1], op[2]]
    heads, groups = op.attr("num_heads"), op.attr("kv_num_heads")
    size = op[0].shape[2] // (heads + 2 * groups)
    return _cut_up(op, op[0], 2, [heads * size, groups * size, groups * size])


def in_blocks(op: Site, t: Tensor, width: int, turned_block: int, block: int) -> Tensor:
    """Returns `t`, whose dimensions go in blocks, since the operator takes no other head sizes.

    Args:
        op: the node.
        t: (batch, heads, tokens, size).
        width: how many dimensions are turned; halves of them go in pairs of blocks.
        turned_block: size of their blocks.
        block: size of the other blocks.
    """
    for start, end, step in ((0, width, turned_block), (width, t.shape[SIZE], block)):
        part = op.take(t, SIZE, np.arange(start, end))
        if (end - start) % block:
            op.tie(t, SIZE, why=f"head sizes are multiples of {block}")
        elif end > start:
            rows = (*t.shape[:SIZE], (end - start) // step, step)
            op.tie(op.reshape(part, rows), 4, why=f"head sizes are multiples of {block}")
    return op.tidy(t)


def extended_cache(op: Site, past: Tensor | None, t: Tensor) -> Tensor:
    """Returns keys or values with the heads and dimensions of the cache; its tokens may be those of a larger buffer."""
    if past is None:
        return t
    one = Tensor((past.shape[0], past.shape[1], 1, past.shape[3]), op.tie(past, TOKENS).arrays)
    return op.unify(t, one, zero="none")


@grouped_query.sizes
def size_grouped_query(op: Sized) -> Iterable[Need]:
    """Numbers of heads follow; the scale stays what it was."""
    heads, groups = op.attr("num_heads"), op.attr("kv_num_heads")
    packed = not op.has(1)
    size = op.old(0)[2] // (heads + 2 * groups if packed else heads)
    q = op.kept(0, 2)
    k = q[(q >= heads * size) & (q < (heads + groups) * size)] - heads * size if packed else op.kept(1, 2)
    q = q[q < heads * size]
    alive = living_heads(q, size), living_heads(k, size)
    for name, old, new in zip(("num_heads", "kv_num_heads"), (heads, groups), alive, strict=True):
        if old != new:
            yield Need(name, new)
    yield from old_scale(op, size, len(q) // alive[0])


@grouped_query.macs
def macs_grouped_query(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """Queries times keys, and scores times values."""
    assert x[0] is not None
    past = x[3] if len(x) > 3 else None
    return int(2 * np.prod(y[0]) * (x[0][1] + (past[TOKENS] if past else 0)))


# ---------------------------------------------------------------- with the projections inside
@projected.coupling
def couple_projected(op: Site) -> list[Tensor | None]:
    """Projects the input to q, k and v with one weight and one bias, then attends."""
    y = op.product("bsi,io->bso", 0, 1)
    y = y if op.get(2) is None else op.unify(y, op[2])
    return _attend_projected(op, y, past=4, bias=5)


@q_projected.coupling
def couple_q_projected(op: Site) -> list[Tensor | None]:
    """As Attention, of quantized numbers; scale and zero point of the weight may have an entry for each column."""
    only_one(op, 3, 6)
    y = op.unify(op.product("bsi,io->bso", 0, 1), op[2])
    return _attend_projected(op, columns(op, y, 2, 4, 7), past=8, bias=None)


def _attend_projected(op: Site, y: Tensor, past: int, bias: int | None) -> list[Tensor | None]:
    parts = _cut_up(op, y, 2, projected_widths(op, y.shape[2]))
    q, k, v = (split_heads(op, t, op.attr("num_heads")) for t in parts)
    if op.attr("do_rotary", 0):
        q, k = (op.tie(t, SIZE, why="is turned by its place in the head") for t in (q, k))
    present = len(op.node.outputs) > 1 and bool(op.node.outputs[1].name)
    if op.has(past) or present or op.op == "QAttention":
        k, v = alike(op, k, v)  # the cache holds both in one tensor; QAttention knows one width only
    if op.has(past):
        cache = op.tie(op[past], 0, 1, 3, why="a cache of keys and values")
        one = Tensor((1, cache.shape[2], 1, cache.shape[4]), tuple(a.reshape(a.shape[1:]) for a in cache.arrays))
        k, v = (op.unify(t, one, zero="none") for t in (k, v))
    y, _ = attend(op, q, k, v, None if bias is None else op.get(bias))
    return outputs(op, merge_heads(op, y), insert_axes(op.unify(k, v), [0]) if present else None)


def projected_widths(op: Site | Sized, total: int) -> tuple[int, int, int]:
    """Returns how many columns of the merged weight make q, k and v."""
    given = op.attr("qkv_hidden_sizes")
    q, k, v = given or (total // 3,) * 3
    return int(q), int(k), int(v)


@projected.sizes
@q_projected.sizes
def size_projected(op: Sized) -> Iterable[Need]:
    """Number of heads and widths of q, k and v follow; the scale stays what it was."""
    heads, widths = op.attr("num_heads"), projected_widths(op, op.old(1)[1])
    kept, ends = op.kept(1, 1), np.cumsum([0, *widths])
    parts = [kept[(kept >= a) & (kept < b)] - a for a, b in pairwise(ends)]
    alive = living_heads(parts[0], widths[0] // heads)
    if alive != heads:
        yield Need("num_heads", alive)
    new = [len(p) for p in parts]
    if op.op == "Attention" and new != list(widths) and (op.attr("qkv_hidden_sizes") or len(set(new)) > 1):
        yield Need("qkv_hidden_sizes", new)
    yield from old_scale(op, widths[0] // heads, new[0] // alive)


@projected.macs
@q_projected.macs
def macs_projected(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """The projections, queries times keys, and scores times values."""
    assert x[0] is not None and x[1] is not None
    (batch, tokens, width), out = x[0], x[1][1]
    return int(batch * tokens * (width * out + (out - y[0][2]) // 2 * tokens + y[0][2] * tokens))
