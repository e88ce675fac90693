"""Inputs that are made up, for users who have a model and no data.

Pictures are dead leaves: opaque discs of random colour that cover one another, their sizes drawn from a power law. They
share with photographs what convolutions respond to (edges, occlusion, the same look at every scale) and do much better
than noise. Token ids are uniform over the vocabulary, masks are ones, everything else is smoothed noise.

Lee, Mumford, Huang: Occlusion models for natural images (2001).
Baradad et al.: Learning to see by looking at noise (2021).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from onnxprune.calibration.batches import Block, Calibration, calibrate, count
from onnxprune.calibration.columns import CachedRows, Column
from onnxprune.calibration.layout import Layout, layout
from onnxprune.calibration.pictures import PictureOptions, finish
from onnxprune.errors import UsageError
from onnxprune.graph import inputs
from onnxprune.graph.inputs import InputSpec, Sizes

__all__ = ["dead_leaves", "synthetic"]

# Of these pictures, on 0..1: what (x - mean) / std turns into zero mean and unit variance.
_NORMAL = PictureOptions(mean=(0.45,), std=(0.25,))


def synthetic(
    specs: Sequence[InputSpec],
    samples: int,
    seed: int = 0,
    *,
    batch: int = 32,
    shapes: Sizes | None = None,
    pictures: PictureOptions | None = None,
) -> Calibration:
    """Return made-up inputs: the same seed, the same data, whatever the batch.

    Args:
        specs: what the model takes.
        samples: how many to make.
        seed: of the random draw.
        batch: how many to feed at once, unless the model declares its batch or has inputs without a batch axis.
        shapes: shapes that the model is known to run at (those of a trace's feeds); else the first likely ones.
        pictures: how pixels become inputs; by default zero mean and unit variance.

    Raises:
        UsageError: no sample is asked for.
    """
    wanted = count(samples)
    place = layout(specs)
    known = inputs.sizes(specs) if shapes is None else shapes
    options = pictures if pictures is not None and (pictures.mean or pictures.std) else _NORMAL
    if pictures is not None and pictures.size is not None:
        known = _resized(specs, known, pictures.size)
    if place.joint:
        rows = wanted if place.fixed is None else -(-wanted // place.fixed) * place.fixed
        made = {s.name: _column(s, k, seed, rows, known[s.name], place, options) for k, s in enumerate(specs)}
        blocks = [Block(rows, made, {}, {}, "the synthetic data")]
    else:
        blocks = _feeds(specs, seed, wanted, known, place, options)
    kinds = "dead leaves" if any(_is_picture(s, known[s.name]) is not None for s in specs) else "noise, random ids"
    return calibrate(
        blocks,
        specs,
        place,
        samples=wanted,
        batch=batch,
        seed=seed,
        source=f"synthetic data ({kinds})",
        synthetic=True,
    )


def _resized(specs: Sequence[InputSpec], known: Sizes, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes with the user's size of pictures wherever the model leaves it open."""
    found = dict(known)
    for s in specs:
        last = _is_picture(s, known[s.name])
        if last is not None:
            shape, at = list(known[s.name]), 1 if last else 2
            for axis, n in zip((at, at + 1), size, strict=True):
                if isinstance(s.shape[axis], int) and s.shape[axis] != n:
                    raise UsageError("--image-size is not what the model declares: leave it out")
                shape[axis] = n
            found[s.name] = tuple(shape)
    return found


def _feeds(
    specs: Sequence[InputSpec], seed: int, wanted: int, known: Sizes, place: Layout, options: PictureOptions
) -> list[Block]:
    """Return whole feeds at the known shapes: with an input that has no batch axis no other batch is sure to run."""
    batches = [known[s.name][axis] for s in specs if (axis := place.axes[s.name]) is not None]
    rows = batches[0] if batches else 1
    return [_Made.block(specs, seed, n, rows, known, options) for n in range(-(-wanted // max(rows, 1)))]


@dataclass(frozen=True)
class _Made(Mapping[str, np.ndarray]):
    """The arrays of one feed, drawn when they are asked for."""

    specs: Mapping[str, tuple[int, InputSpec]]
    seed: int
    number: int
    known: Sizes
    options: PictureOptions

    @classmethod
    def block(
        cls, specs: Sequence[InputSpec], seed: int, number: int, rows: int, known: Sizes, options: PictureOptions
    ) -> Block:
        made = cls({s.name: (k, s) for k, s in enumerate(specs)}, seed, number, known, options)
        return Block(rows, {}, {}, made, "the synthetic data", whole=True)

    def __getitem__(self, name: str) -> np.ndarray:
        k, spec = self.specs[name]
        return _draw(spec, _rng(self.seed, k, self.number), self.known[name], spec.shape, self.options)

    def __iter__(self) -> Any:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


def _rng(seed: int, k: int, number: int) -> np.random.Generator:
    """Return the generator of one sample of one input: no other sample has a share in it."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, k, number))))


# ---------------------------------------------------------------- columns
def _column(
    spec: InputSpec, k: int, seed: int, rows: int, shape: tuple[int, ...], place: Layout, options: PictureOptions
) -> Column:
    axis = place.axes[spec.name] or 0
    sample = (*shape[:axis], *shape[axis + 1 :])
    last = _is_picture(spec, shape)
    if last is not None and axis == 0:
        height, width, channels = _picture_shape(shape, last)
        return CachedRows(
            (rows, *sample),
            spec.dtype,
            functools.partial(_leaves_of, seed, k, height, width, channels),
            functools.partial(_finish, spec, options, last),
            (height, width, channels),
        )
    declared = (*spec.shape[:axis], *spec.shape[axis + 1 :])
    return _DrawnRows((rows, *sample), spec.dtype, spec, k, seed, declared, options)


def _leaves_of(seed: int, k: int, height: int, width: int, channels: int, row: int) -> np.ndarray:
    return dead_leaves(_rng(seed, k, row), height, width, channels)


def _finish(spec: InputSpec, options: PictureOptions, last: bool, raw: np.ndarray) -> np.ndarray:
    if spec.dtype == np.int8:
        return finish(raw ^ np.uint8(128), replace(spec, dtype=np.dtype(np.uint8)), options, last).view(np.int8)
    return finish(raw, spec, options, last)


@dataclass(frozen=True)
class _DrawnRows(Column):
    """Samples that are drawn again whenever they are read."""

    spec: InputSpec
    k: int
    seed: int
    declared: tuple[int | str | None, ...]
    options: PictureOptions

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return these samples."""
        shape = self.shape[1:]
        out = np.empty((len(rows), *shape), self.dtype)
        for place, i in zip(range(len(rows)), rows.tolist(), strict=True):
            out[place] = _draw(self.spec, _rng(self.seed, self.k, i), (1, *shape), (1, *self.declared), self.options)[0]
        return out


def _draw(
    spec: InputSpec,
    rng: np.random.Generator,
    shape: tuple[int, ...],
    declared: Sequence[int | str | None],
    options: PictureOptions,
) -> np.ndarray:
    """Return one array: what its name and type say that it is."""
    name, kind = spec.name.lower(), spec.dtype.kind
    last = _is_picture(spec, shape)
    if last is not None:
        height, width, channels = _picture_shape(shape, last)
        raw = np.stack([dead_leaves(rng, height, width, channels) for _ in range(shape[0])])
        return _finish(spec, options, last, raw)
    if spec.lengths or kind == "O":
        return inputs.sample([spec], 0, {spec.name: shape}, "full")[spec.name]
    if kind in "iub" or spec.bound:
        if re.search(r"pos(ition)?_?ids|positions", name) and shape:
            steps = np.arange(shape[-1]) % (spec.bound or shape[-1] or 1)
            return np.broadcast_to(steps, shape).astype(spec.dtype)
        if re.search(r"token_type|segment", name):
            return np.zeros(shape, spec.dtype)
        if spec.bound:
            return rng.integers(0, min(spec.bound, np.iinfo(np.int64).max), shape).astype(spec.dtype)
        if kind != "b" and spec.dtype.itemsize == 1 and len(shape) > 2:
            return rng.integers(np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max, shape, spec.dtype, endpoint=True)
        return np.ones(shape, spec.dtype)
    if "mask" in name:
        return np.ones(shape, spec.dtype)
    return _noise(rng, shape, declared).astype(spec.dtype)


# ---------------------------------------------------------------- noise
def _noise(rng: np.random.Generator, shape: tuple[int, ...], declared: Sequence[int | str | None]) -> np.ndarray:
    """Return normal noise, pink along time or space, where neighbours are alike in whatever was measured."""
    white = rng.standard_normal(shape, np.float32)
    axes = [axis for axis in _smooth_axes(shape, declared) if shape[axis] >= 8]
    if not axes:
        return white
    frequencies = np.meshgrid(
        *(np.fft.rfftfreq(shape[a]) if a == axes[-1] else np.fft.fftfreq(shape[a]) for a in axes),
        indexing="ij",
        sparse=True,
    )
    radius = np.sqrt(np.asarray(sum(f * f for f in frequencies)))
    lowest = 1 / max(shape[a] for a in axes)
    gain = np.power(np.maximum(radius, lowest), -0.5 * len(axes))
    # Each column of the half spectrum but the first, and the last of an even length, stands for two.
    twice = np.full(gain.shape[-1], 2.0)
    twice[0] = 1.0
    if shape[axes[-1]] % 2 == 0:
        twice[-1] = 1.0
    gain /= np.sqrt((gain**2 * twice).sum() / np.prod([shape[a] for a in axes]))
    spread = [1] * len(shape)
    for a, n in zip(axes, gain.shape, strict=True):
        spread[a] = n
    spectrum = np.fft.rfftn(white, axes=axes) * gain.reshape(spread)
    pink: np.ndarray = np.fft.irfftn(spectrum, s=[shape[a] for a in axes], axes=axes)
    return pink


def _smooth_axes(shape: tuple[int, ...], declared: Sequence[int | str | None]) -> list[int]:
    """Return the axes that are time or space: of two the open one or the longer, of three or more all but channels."""
    if len(shape) < 3:
        return []
    if len(shape) == 3:
        dynamic = [axis for axis in (1, 2) if not isinstance(declared[axis], int)]
        return dynamic if len(dynamic) == 1 else [1 if shape[1] > shape[2] else 2]
    return list(range(1, len(shape) - 1)) if shape[-1] <= 4 else list(range(2, len(shape)))


# ---------------------------------------------------------------- pictures
def _is_picture(spec: InputSpec, shape: tuple[int, ...]) -> bool | None:
    """Return whether an input takes pictures with the channels last (True) or second (False); None for no pictures."""
    floats = spec.dtype.kind == "f" or spec.dtype == np.dtype(ml_dtypes.bfloat16)
    if len(shape) != 4 or not (floats or spec.dtype in (np.uint8, np.int8)) or "mask" in spec.name.lower():
        return None
    for last, channels, spatial in ((False, shape[1], shape[2:]), (True, shape[3], shape[1:3])):
        if channels in (1, 3, 4) and min(spatial) >= 6:
            return last
    return None


def _picture_shape(shape: tuple[int, ...], last: bool) -> tuple[int, int, int]:
    return (shape[1], shape[2], shape[3]) if last else (shape[2], shape[3], shape[1])


def dead_leaves(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Return one picture as bytes of (height, width, channels).

    Radii follow r^-3, the law at which a picture looks alike at every scale; colours vary along grey much more than
    along blue-yellow and red-green, as in photographs; every disc is shaded. Radii from two pixels to the whole side,
    and shades as strong as these, kept one to three points more accuracy of a ResNet-20 than smaller, flatter discs.
    """
    over = 2 if max(height, width) <= 64 else 1  # drawn twice as fine where an edge is a large part of the picture
    h, w = height * over, width * over
    leaf, x, y, r = _discs(rng, h, w, over)
    n = len(r)
    colour = _colours(rng, n, channels)
    slope = rng.standard_normal((2, n), np.float32) * (np.float32(0.2) / r)
    slope[:, 0] = 0
    base = colour - (slope[0] * x + slope[1] * y)[:, None]
    shade = slope[0].take(leaf) * np.arange(w, dtype=np.float32)
    shade += slope[1].take(leaf) * np.arange(h, dtype=np.float32)[:, None]
    picture = base.take(leaf, axis=0)
    picture += shade[..., None]
    picture = _halved(picture) if over == 2 else _softened(picture)
    picture += rng.standard_normal((height, width, 1), np.float32) * np.float32(0.01)
    np.clip(picture, 0, 1, out=picture)
    picture *= 255
    picture += 0.5
    return picture.astype(np.uint8)


def _discs(
    rng: np.random.Generator, h: int, w: int, over: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return which disc every pixel shows, and centres and radii of the discs; disc 0 is the background."""
    longer = max(h, w)
    low, high = max(2.0 * over, longer / 60), max(longer, 8.0 * over)
    mean_area = 2 * np.pi * np.log(high / low) / (low**-2 - high**-2)
    n = 1 + int(4 * (h + low) * (w + low) / mean_area)
    r = (1 / np.sqrt(high**-2 + rng.random(n) * (low**-2 - high**-2))).astype(np.float32)
    cy, cx = ((rng.random(n) * (side + 2 * r) - r).astype(np.float32) for side in (h, w))
    tops, lefts = np.maximum(np.floor(cy - r), 0).astype(int), np.maximum(np.floor(cx - r), 0).astype(int)
    ends, rights = np.minimum(cy + r + 2, h).astype(int), np.minimum(cx + r + 2, w).astype(int)
    rows, columns = np.arange(h, dtype=np.float32), np.arange(w, dtype=np.float32)
    leaf = np.zeros((h, w), np.int32)
    every = zip(tops.tolist(), ends.tolist(), lefts.tolist(), rights.tolist(), cy, cx, r * r, strict=True)
    for k, (top, end, left, right, y, x, square) in enumerate(every):
        dy, dx = rows[top:end] - y, columns[left:right] - x
        np.putmask(leaf[top:end, left:right], np.less_equal.outer(dy * dy, square - dx * dx), k)
    return leaf, cx, cy, r


def _colours(rng: np.random.Generator, n: int, channels: int) -> np.ndarray:
    """Return n colours around 0..1: a palette whose brightness and contrast differ from picture to picture."""
    grey = rng.normal(0.45, 0.13) + rng.standard_normal((n, 1), np.float32) * np.float32(rng.uniform(0.12, 0.32))
    if channels == 1:
        return np.asarray(grey, np.float32)
    tint = rng.standard_normal((1, 2), np.float32)  # the light's
    warm, green = np.split(
        (rng.standard_normal((n, 2), np.float32) + tint) * np.array([0.07, 0.03], np.float32), 2, axis=1
    )
    colours = np.concatenate([grey + warm + green, grey - 2 * green, grey - warm + green], axis=1)
    opaque = np.ones((n, channels - 3), np.float32)
    return np.concatenate([colours, opaque], axis=1).astype(np.float32)


def _halved(picture: np.ndarray) -> np.ndarray:
    both = picture[0::2] + picture[1::2]
    return np.asarray((both[:, 0::2] + both[:, 1::2]) * np.float32(0.25))


def _softened(picture: np.ndarray) -> np.ndarray:
    """Return a picture blurred as a lens does: edges one pixel wide."""
    for _ in range(2):
        picture = picture.swapaxes(0, 1).copy()
        middle = picture * np.float32(0.5)
        middle[1:] += picture[:-1] * np.float32(0.25)
        middle[:-1] += picture[1:] * np.float32(0.25)
        middle[0] += picture[0] * np.float32(0.25)
        middle[-1] += picture[-1] * np.float32(0.25)
        picture = middle
    return picture
