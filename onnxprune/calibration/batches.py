"""From blocks of samples to the batches that a session takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxprune.calibration import checks
from onnxprune.calibration.columns import ArrayRows, Column, FileRows, Merged, Spool
from onnxprune.calibration.layout import Layout, fits, layout
from onnxprune.errors import DataError, UsageError, quote
from onnxprune.graph.inputs import InputSpec

__all__ = ["DEFAULT_SAMPLES", "Block", "Calibration", "Feed", "calibrate", "feed", "table"]

DEFAULT_SAMPLES = 1024
"""How many samples are taken where nobody says: more have hardly ever been seen to help."""

_FEW = 16

Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """Data to run the model on, as often as needed.

    Attributes:
        samples: how many there are in one pass.
        wanted: how many were asked for.
        synthetic: True if they were made up.
        source: what they are, in words, for the report.
        warnings: what the user should know, one line each.
        feeds: starts a pass.
    """

    samples: int
    wanted: int
    synthetic: bool
    source: str
    warnings: tuple[str, ...] = ()
    feeds: Callable[[], Iterator[Feed]] = field(kw_only=True, repr=False)

    def batches(self) -> Iterator[Feed]:
        """Return a pass over the data: feeds for a session, the same ones in every pass.

        Raises:
            DataError: while it runs, naming the sample: NaN or Inf, ids outside their table, lossy casts, damage.
        """
        return self.feeds()


@dataclass(frozen=True)
class Block:
    """Samples of one shape that come from one place.

    Attributes:
        rows: how many.
        columns: inputs with a batch axis, samples first.
        apart: inputs without one that differ from sample to sample, samples first.
        shared: inputs without one that are the same for all of these samples.
        where: the place.
        numbers: of the samples in that place, where they are not 0, 1, 2, ...
        whole: True if the samples cannot be fed one by one.
    """

    rows: int
    columns: Mapping[str, Column]
    apart: Mapping[str, Column]
    shared: Mapping[str, np.ndarray]
    where: str
    numbers: np.ndarray | None = None
    whole: bool = False

    def keep(self, rows: np.ndarray) -> Block:
        """Return a block of these rows (ascending)."""
        if len(rows) == self.rows:
            rows = np.arange(self.rows)  # compressed columns are unpacked here all the same
        return replace(
            self,
            rows=len(rows),
            columns={k: c.keep(rows) for k, c in self.columns.items()},
            apart={k: c.keep(rows) for k, c in self.apart.items()},
            numbers=rows if self.numbers is None else self.numbers[rows],
        )

    def name(self, row: int) -> str:
        """Return what to call a sample in a message."""
        return f"{self.where}, sample {row if self.numbers is None else self.numbers[row]}"


# ---------------------------------------------------------------- from data to blocks
def table(
    columns: Mapping[str, Column], specs: Sequence[InputSpec], layout: Layout, where: str, *, single: bool = False
) -> Block:
    """Return columns of samples, one per input, as a block.

    Args:
        columns: input name -> data, samples along axis 0 wherever the input has its batch axis.
        specs: what the model takes.
        layout: where its batch axes are.
        where: what to call the data.
        single: True if data without a samples axis are one sample.

    Raises:
        DataError: names, types, shapes or counts do not fit.
    """
    checks.names(columns, specs, where)
    batched: dict[str, Column] = {}
    apart: dict[str, Column] = {}
    shared: dict[str, np.ndarray] = {}
    for spec in specs:
        column = columns[spec.name]
        here = f"{where}: input {quote(spec.name)}"
        checks.castable(spec, column.dtype, here)
        axis = layout.axes[spec.name]
        sample = spec.shape if axis is None else (*spec.shape[:axis], *spec.shape[axis + 1 :])
        if fits(column.shape[1:], sample) and column.shape:
            (apart if axis is None else batched)[spec.name] = column
        elif axis is None and fits(column.shape, spec.shape):
            _size(column.shape, here)
            shared[spec.name] = checks.contents(spec, column.whole(), where)
        elif layout.fixed is not None and fits(column.shape[1:], spec.shape):
            batched[spec.name] = Merged.of(column)
        elif single and axis is not None and fits(column.shape, sample):
            batched[spec.name] = column.alone()
        else:
            raise DataError(_misfit(here, column.shape, spec, axis, sample))
        _size(column.shape[1:], here)
    counts = {name: c.shape[0] for name, c in {**batched, **apart}.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{quote(k)} {n}" for k, n in counts.items())
        raise DataError(f"{where} has different numbers of samples ({listed}): axis 0 must be as long in every array")
    return Block(next(iter(counts.values()), 1), batched, apart, shared, where)


def _size(shape: Sequence[int], where: str) -> None:
    elements = 1
    for n in shape:
        elements *= n
    if elements > checks.MAX_ELEMENTS:
        raise DataError(
            f"{where} has samples of the shape {list(shape)}, more than {checks.MAX_ELEMENTS} elements: "
            "give data in the size that the model is used with"
        )


def _misfit(
    where: str, shape: Sequence[int], spec: InputSpec, axis: int | None, sample: Sequence[int | str | None]
) -> str:
    wanted = _dims(("samples", *sample) if axis is not None else spec.shape)
    hint = "add an axis of samples in front" if axis is not None and fits(shape, sample) else "reshape the data"
    return f"{where} has the shape {_dims(shape)}, and {wanted} is wanted: {hint}"


def _dims(shape: Sequence[int | str | None]) -> str:
    return "(" + ", ".join("?" if d is None else quote(d)[1:-1] if isinstance(d, str) else str(d) for d in shape) + ")"


def feed(
    arrays: Mapping[str, np.ndarray], specs: Sequence[InputSpec], layout: Layout, where: str, spool: Spool | None = None
) -> Block:
    """Return what could be fed to a session as it is as a block.

    Args:
        arrays: input name -> array.
        specs: what the model takes.
        layout: where its batch axes are.
        where: what to call the data.
        spool: where to keep them; None leaves them in memory and looks at their contents later.

    Raises:
        DataError: names, types, shapes or contents do not fit.
    """
    checks.names(arrays, specs, where)
    columns: dict[str, Column] = {}
    shared: dict[str, np.ndarray] = {}
    rows = 1
    for spec in specs:
        array = arrays[spec.name]
        here = f"{where}: input {quote(spec.name)}"
        checks.castable(spec, array.dtype, here)
        axis = layout.axes[spec.name]
        declared = spec.shape if layout.fixed is None else (None, *spec.shape[1:])
        if not fits(array.shape, declared):
            raise DataError(
                f"{here} has the shape {_dims(array.shape)}, and the model takes {_dims(spec.shape)}: reshape the data"
            )
        _size(array.shape if axis is None else array.shape[:axis] + array.shape[axis + 1 :], here)
        if axis is not None:
            rows = array.shape[axis]
        if layout.joint and axis is not None:
            columns[spec.name] = _stored(spec, np.moveaxis(array, axis, 0), where, spool)
        else:
            shared[spec.name] = checks.contents(spec, array, where)
    counts = {name: c.shape[0] for name, c in columns.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{quote(k)} {n}" for k, n in counts.items())
        raise DataError(f"{where} has different batches ({listed}): give all inputs the same number of samples")
    return Block(rows, columns, {}, shared, where, whole=not layout.joint)


def _stored(spec: InputSpec, array: np.ndarray, where: str, spool: Spool | None) -> Column:
    if spool is None:
        return ArrayRows.of(array)
    checked = checks.contents(spec, array, where)
    if checked.dtype.kind == "O":
        checked = checked.astype(str)
    return FileRows(checked.shape, checked.dtype, spool, spool.append(checked))


def samples_in(arrays: Mapping[str, np.ndarray], specs: Sequence[InputSpec]) -> int:
    """Return how many samples a feed holds; one where no input has a batch axis."""
    for name, axis in layout(specs).axes.items():
        if axis is not None and name in arrays:
            return int(arrays[name].shape[axis])
    return 1


# ---------------------------------------------------------------- from blocks to feeds
def calibrate(
    blocks: Sequence[Block],
    specs: Sequence[InputSpec],
    layout: Layout,
    *,
    samples: int | None,
    batch: int,
    seed: int,
    source: str,
    synthetic: bool = False,
    warnings: Sequence[str] = (),
) -> Calibration:
    """Return blocks as calibration data: a random choice of samples, in the order in which they are stored.

    Args:
        blocks: all there is.
        specs: what the model takes.
        layout: where its batch axes are.
        samples: how many to take at most, None for `DEFAULT_SAMPLES`.
        batch: how many to feed at once, where the model does not say.
        seed: of the choice.
        source: what the data are, in words.
        synthetic: True if they were made up.
        warnings: found so far.

    Raises:
        UsageError: no sample or no batch is asked for.
        DataError: there is no sample, or fewer than the model's batch; or the first batch is no good.
    """
    wanted = count(samples)
    if batch < 1:
        raise UsageError(f"a batch of {batch} holds no sample: ask for 1 or more")
    total = sum(b.rows for b in blocks)
    if not total:
        raise DataError(f"{source} holds no samples: give some")
    if layout.fixed is not None:
        batch = layout.fixed
        wanted = -(-wanted // batch) * batch  # full batches only
    chosen = blocks if synthetic else _choose(blocks, wanted, seed)
    pieces = _pieces(chosen, batch, layout.fixed)
    taken = sum(b.rows for b in chosen) if chosen and chosen[0].whole else sum(len(p) for p in pieces)
    if not taken:
        raise DataError(f"{source} holds {total} samples of a shape, and the model's batch is {batch}: give more")
    notes = [*warnings, *_notes(chosen, specs, taken, synthetic)]
    if taken < min(total, wanted):
        left = min(total, wanted) - taken
        notes.append(f"{left} samples fill no batch of {batch}, the model's own, and are left out")
    if taken < total and not synthetic:
        source = f"{source}, {taken:,} of {total:,} samples"

    def feeds() -> Iterator[Feed]:
        for piece in pieces:
            yield _assemble(chosen, piece, specs, layout)

    next(feeds())
    return Calibration(taken, wanted, synthetic, source, tuple(notes), feeds=feeds)


def count(samples: int | None) -> int:
    """Return how many samples to take.

    Raises:
        UsageError: none.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"{samples} calibration samples are none: ask for 1 or more")
    return DEFAULT_SAMPLES if samples is None else samples


def _choose(blocks: Sequence[Block], wanted: int, seed: int) -> list[Block]:
    """Return a random choice of `wanted` samples; feeds that cannot be taken apart come whole."""
    rng = np.random.default_rng(seed)
    if blocks[0].whole:
        order = rng.permutation(len(blocks))
        rows = np.cumsum([blocks[k].rows for k in order])
        return [blocks[k] for k in sorted(order[: int(np.searchsorted(rows, wanted)) + 1])]
    ends = np.cumsum([b.rows for b in blocks])
    total = int(ends[-1])
    picks = np.arange(total) if wanted >= total else np.sort(rng.choice(total, wanted, replace=False, shuffle=False))
    cuts = np.searchsorted(picks, ends)
    starts = [0, *cuts[:-1]]
    kept = zip(blocks, starts, cuts, ends, strict=True)
    return [b.keep(picks[start:cut] - (end - b.rows)) for b, start, cut, end in kept if cut > start]


Piece = list[tuple[int, int]]
"""The samples of a batch: number of the block, row in it. Of a whole block, one entry."""


def _pieces(blocks: Sequence[Block], batch: int, fixed: int | None) -> list[Piece]:
    """Return the batches of a pass: neighbours of one shape together."""
    pieces: list[Piece] = []
    filling: dict[object, Piece] = {}
    for k, block in enumerate(blocks):
        if block.whole:
            pieces.append([(k, 0)])
            continue
        # Inputs without a batch axis belong to their own samples.
        one_by_one, own = bool(block.apart), k if block.shared else -1
        key = (own, *(c.shape[1:] for c in block.columns.values()))
        for row in range(block.rows):
            piece = filling.setdefault(key, [])
            piece.append((k, row))
            if len(piece) == (1 if one_by_one else batch):
                pieces.append(filling.pop(key))
    if fixed is None:
        pieces.extend(filling.values())
    return pieces


def _assemble(blocks: Sequence[Block], piece: Piece, specs: Sequence[InputSpec], layout: Layout) -> Feed:
    """Return one batch as the session takes it."""
    first = blocks[piece[0][0]]
    if first.whole:
        return dict(first.shared)
    names = [blocks[k].name(row) for k, row in piece]
    rows: dict[int, list[int]] = {}
    for k, row in piece:
        rows.setdefault(k, []).append(row)
    found: Feed = {}
    for spec in specs:
        name, axis = spec.name, layout.axes[spec.name]
        if name in first.shared:
            found[name] = first.shared[name]
            continue
        parts = [{**blocks[k].columns, **blocks[k].apart}[name].read(np.asarray(r)) for k, r in rows.items()]
        array = checks.contents(spec, parts[0] if len(parts) == 1 else np.concatenate(parts), names)
        found[name] = array[0] if axis is None else np.ascontiguousarray(np.moveaxis(array, 0, axis))
    return found


def _notes(blocks: Sequence[Block], specs: Sequence[InputSpec], taken: int, synthetic: bool) -> Iterator[str]:
    if taken < _FEW and not synthetic:
        many = "one calibration sample" if taken == 1 else f"{taken} calibration samples"
        yield f"only {many}: what is measured on so few says little, some hundreds are better"
    for spec in specs:
        column = blocks[0].columns.get(spec.name)
        if column is not None and column.dtype.kind in "iu" and column.dtype.itemsize == 1 and spec.dtype.kind == "f":
            yield (
                f"input {quote(spec.name)} takes {spec.dtype} and the data are {column.dtype}: "
                "they are fed as they are, not normalised"
            )
