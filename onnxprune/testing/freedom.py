"""Missing couplings by brute force: slots that a rule keeps although they could go.

Nothing of the rules is used: slots of an axis are taken out of an operator's input, together with slots of its other
inputs and with smaller numbers in its attributes, in every way that the sizes suggest. If onnxruntime then computes a
part (a rectangle) of what it computes with zeros in these slots, they could have been cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, product
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.engine.coupling import couple
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.units import find_units
from onnxprune.graph.trace import trace
from onnxprune.testing.cases import BATCH, SCALE, Array, Case, Data, Feed, Weight, bare, build, run

__all__ = ["missing"]

SAMPLES = 64  # the batch size at which an operator is tried: enough that no slot is by chance without effect
CANDIDATES = 6  # how many slots of an axis are tried, and how many pairs of them
TRIES = 128  # ways to cut the rest of an operator along with some slots
TOLERANCE = 1e-4
COUNTS = ("group", "num_groups", "hidden_size", "num_heads", "q_num_heads", "kv_num_heads")
Slots = tuple[int, ...]


@dataclass(frozen=True)
class _Removal:
    """Slots to take out of inputs, and what stands in attributes and in constant numbers then."""

    slots: Mapping[tuple[int, int], Slots]  # (input, axis)
    attributes: Mapping[str, Any]
    constants: Mapping[int, Array]


def missing(case: Case, seed: int = 0) -> tuple[str, ...]:
    """Returns descriptions of slots (single ones, and pairs) that could go, but not by the rules.

    Args:
        case: an operator with its inputs, read through weights.
        seed: of weights and data.
    """
    rng = np.random.default_rng(seed)
    found = []
    free = _free(case, seed)
    for (j, axis), taken in free.items():
        for slots in _candidates(case.inputs[j].shape[axis], taken):  # type: ignore[union-attr]
            if _can_go(case, j, axis, slots, rng):
                found.append(f"slots {list(slots)} on axis {axis} of input {j}")
    return tuple(found)


def _candidates(n: int, free: set[Slots]) -> Iterator[Slots]:
    """Yields single slots, and pairs of slots none of which can go alone, that the rules do not take."""
    single = [(k,) for k in range(n) if (k,) not in free]
    yield from single[:CANDIDATES]
    pairs = (one + other for one, other in combinations(single, 2) if one + other not in free and n > 2)
    yield from islice(pairs, CANDIDATES)


def _free(case: Case, seed: int) -> dict[tuple[int, int], set[Slots]]:
    """Returns for each labelled axis of an input the sets of slots that a unit takes out of it."""
    model = ir.from_proto(build(case, "matmul", seed))
    coupling = couple(model, trace(model, seed))
    units = find_units(coupling)
    node = next(k for k, n in enumerate(coupling.nodes) if any(v.name == "y_0" for v in n.outputs))
    cuts = [Cutting(units, np.array([u])) for u in range(units.count)]
    free: dict[tuple[int, int], set[Slots]] = {}
    for j, (x, t) in enumerate(zip(case.inputs, coupling.seen[node], strict=False)):
        for axis in x.axes if isinstance(x, Data) and t is not None else ():
            assert t is not None
            gone = (set(range(t.shape[axis])) - set(c.kept(t, axis).tolist()) for c in cuts)
            free[j, axis] = {tuple(sorted(slots)) for slots in gone if slots}
    return free


def _can_go(case: Case, j: int, axis: int, slots: Slots, rng: np.random.Generator) -> bool:
    """Returns whether some way to take these slots out is exact."""
    inputs = [_content(x, rng) for x in case.inputs]
    shares = {
        (k, a): _partners(case, k, a, j, axis, slots, inputs) for k, a in _axes(case, inputs) if (k, a) != (j, axis)
    }
    n = _size_of(inputs, j, axis)
    attributes = {k: _numbers(v, len(slots), n, count=k in COUNTS) for k, v in case.attributes.items()}
    constants = {
        k: _numbers(x, len(slots), n)
        for k, x in enumerate(case.inputs)
        if isinstance(x, np.ndarray) and x.dtype.kind == "i"
    }
    keys, names, places = list(shares), list(attributes), list(constants)
    ways = product(*shares.values(), *attributes.values(), *constants.values())
    for way in islice(ways, TRIES):
        taken = {key: s for key, s in zip(keys, way, strict=False) if s} | {(j, axis): slots}
        rest = way[len(keys) :]
        removal = _Removal(
            taken, dict(zip(names, rest, strict=False)), dict(zip(places, rest[len(names) :], strict=True))
        )
        if _is_exact(case, inputs, removal):
            return True
    return False


def _content(x: Any, rng: np.random.Generator) -> Array | None:
    """Returns random numbers for an input, of the kind that it is."""
    if x is None or isinstance(x, np.ndarray):
        return x
    shape = [SAMPLES if n == BATCH else n for n in x.shape]
    if isinstance(x, Feed):
        return rng.integers(x.low, x.high, shape).astype(x.dtype)
    values = rng.normal(size=shape)
    return (np.abs(values) + 0.3 if isinstance(x, Weight) and x.positive else values).astype(np.float32)


def _size_of(inputs: Sequence[Array | None], j: int, axis: int) -> int:
    content = inputs[j]
    assert content is not None
    return int(content.shape[axis])


def _axes(case: Case, inputs: Sequence[Array | None]) -> list[tuple[int, int]]:
    """Returns all axes of activations and weights that are longer than 1."""
    return [
        (k, a)
        for k, (x, content) in enumerate(zip(case.inputs, inputs, strict=True))
        if isinstance(x, Data | Weight) and content is not None
        for a, n in enumerate(content.shape)
        if n > 1 and x.shape[a] != BATCH
    ]


def _partners(
    case: Case, k: int, a: int, j: int, axis: int, slots: Slots, inputs: Sequence[Array | None]
) -> list[Slots]:
    """Returns the sets of slots of another axis that may go along: none, the same, and those in blocks or in turn."""
    n, m = _size_of(inputs, j, axis), _size_of(inputs, k, a)
    options: list[Slots] = [()]
    if k == j:
        return options
    if m % n == 0:
        r = m // n
        options.append(tuple(s + t * n for t in range(r) for s in slots))
        options.append(tuple(s * r + t for s in slots for t in range(r)))
    elif n % m == 0:
        r = n // m
        for whole in ({s // r for s in slots}, {s % m for s in slots}):
            if len(whole) * r == len(slots):
                options.append(tuple(whole))
    return list(dict.fromkeys(tuple(sorted(set(o))) for o in options if len(set(o)) < m))


def _numbers(value: Any, gone: int, n: int, *, count: bool = False) -> list[Any]:
    """Returns a number (or array of numbers) as it is, and with entries that are smaller by their share."""
    if isinstance(value, list | np.ndarray):
        flat = np.asarray(value).reshape(-1)
        if flat.size > 4 or flat.dtype.kind != "i":
            return [value]
        found = []
        for entries in product(
            *([int(e), *([int(e - e * gone // n)] if e > 0 and e * gone % n == 0 else [])] for e in flat)
        ):
            found.append(
                list(entries) if isinstance(value, list) else np.array(entries, value.dtype).reshape(value.shape)
            )
        return found
    if count and value * gone % n == 0 and value * gone // n < value:
        return [value, value - value * gone // n]
    return [value]


def _is_exact(case: Case, inputs: Sequence[Array | None], removal: _Removal) -> bool:
    """Returns whether the small operator computes a part of what the masked one does."""
    masked, small = list(inputs), list(inputs)
    for k, a in removal.slots:
        content, less = masked[k], small[k]
        assert content is not None and less is not None
        zeroed = content.copy()
        zeroed[(slice(None),) * a + (list(removal.slots[k, a]),)] = 0
        masked[k], small[k] = zeroed, np.delete(less, removal.slots[k, a], a)
    masked, small = ([_passed(x, c) for x, c in zip(case.inputs, cs, strict=True)] for cs in (masked, small))
    for k, numbers in removal.constants.items():
        small[k] = numbers
    wanted = _evaluate(case, masked)
    got = _evaluate(replace(case, attributes=removal.attributes), small)
    return bool(wanted and got) and all(_is_part(a, b) for a, b in zip(wanted or [], got or [], strict=True))


def _passed(x: Any, content: Array | None) -> Array | None:
    """Returns what comes out of the operators that an activation passes through."""
    for step in x.through if isinstance(x, Data) else ():
        op, _, to = step.partition(":")
        if op == "Quantize":
            return None if content is None else np.clip(np.round(content / SCALE) + int(to), 0, 255).astype(np.uint8)
        outputs = _evaluate(Case(op, (Data((BATCH,)),), {"to": int(to)} if to else {}), [content])
        content = outputs[0] if outputs else None
    return content


def _evaluate(case: Case, inputs: Sequence[Array | None]) -> list[Array] | None:
    """Returns what the operator alone computes, None where onnxruntime refuses."""
    try:
        model, feed = bare(case, inputs)
        (outputs,) = run(model, feed)
    except Exception:  # onnxruntime's own classes: this way to cut is not valid
        return None
    return outputs


def _is_part(whole: Array, part: Array) -> bool:
    """Returns whether `part` is a rectangle of `whole`, its slots in the same order."""
    if whole.ndim != part.ndim or part.size == 0 or not np.isfinite(part.astype(float)).all():
        return False
    differ = [k for k in range(whole.ndim) if whole.shape[k] != part.shape[k]]
    if any(part.shape[k] > whole.shape[k] for k in differ) or len(differ) > 2:
        return False
    if len(differ) == 2:
        first = differ[0]
        choices = combinations(range(whole.shape[first]), part.shape[first])
        return any(_is_part(whole.take(keep, first), part) for keep in islice(choices, TRIES))
    if not differ:
        return _close(whole, part)
    at = 0
    for slot in range(part.shape[differ[0]]):
        while at < whole.shape[differ[0]] and not _close(whole.take(at, differ[0]), part.take(slot, differ[0])):
            at += 1
        at += 1
    return bool(at <= whole.shape[differ[0]])


def _close(a: Array, b: Array) -> bool:
    scale = float(np.max(np.abs(a.astype(float)), initial=0))
    error = float(np.max(np.abs(a.astype(float) - b.astype(float)), initial=0))
    return error <= TOLERANCE * max(scale, 1e-3)
