"""Calibration data in whatever form they come."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxprune.calibration import arrays, protobuf, streams
from onnxprune.calibration.batches import Block, Calibration, calibrate, count, feed
from onnxprune.calibration.layout import Layout, layout
from onnxprune.calibration.pictures import PictureOptions, from_pictures, picture_files
from onnxprune.errors import DataError, UsageError, quote
from onnxprune.graph.inputs import InputSpec, Sizes

__all__ = ["Data", "Reader", "blocks_from_path", "open_calibration"]


class Reader(Protocol):
    """What onnxruntime calls a CalibrationDataReader."""

    def get_next(self) -> Mapping[str, Any] | None:
        """Return one feed, None at the end."""


Data = str | os.PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]] | Reader | np.ndarray | None
"""A file or folder, arrays by input name (samples along axis 0), feeds one after the other, or nothing."""


def open_calibration(
    data: Data,
    specs: Sequence[InputSpec],
    *,
    samples: int | None = None,
    batch: int = 32,
    seed: int = 0,
    pictures: PictureOptions | None = None,
    shapes: Sizes | None = None,
) -> Calibration:
    """Return data as batches that the model accepts, checked as far as that is possible without reading all of them.

    A path may be a .npz (one array per input, samples along axis 0), a .npy (models with one input), a folder of such
    files, `test_data_set_*` folders, or a folder of pictures. What can be read in any order gives a random choice of
    `samples`, in stored order; readers, iterables and test data give their first ones, which are kept on disk.

    Args:
        data: the data; None makes some up (see `onnxprune.calibration.synthetic`).
        specs: what the model takes, from `onnxprune.inputs.specs`.
        samples: how many to take at most, None for `DEFAULT_SAMPLES`.
        batch: how many to feed at once, unless the model declares its batch.
        seed: of the choice.
        pictures: how pixels become inputs.
        shapes: sizes that the model is known to run at, for data that are made up.

    Raises:
        UsageError: a path is no readable file or folder, or an option makes no sense.
        DataError: the data are damaged, hostile, empty, or do not fit the model.
        ProviderError: Pillow is needed and not there.
        RunError: there is no room for temporary files.
    """
    if not specs:
        raise DataError("the model has no inputs, so that there is nothing to calibrate on: leave the data out")
    wanted = count(samples)
    if data is None:
        from onnxprune.calibration.synthetic import synthetic

        return synthetic(specs, wanted, seed, batch=batch, shapes=shapes, pictures=pictures)
    place = layout(specs)
    notes: tuple[str, ...] = ()
    if isinstance(data, str | os.PathLike):
        path = Path(data)
        blocks, notes = blocks_from_path(path, specs, place, wanted, pictures or PictureOptions())
        source = arrays.shown_path(path)
    elif isinstance(data, np.ndarray):
        if len(specs) != 1:
            raise DataError(f"one array is given, and the model has {len(specs)} inputs: give a dict, name to array")
        blocks, source = [arrays.from_dict({specs[0].name: data}, specs, place)], "an array"
    elif isinstance(data, Mapping):
        blocks, source = [arrays.from_dict(data, specs, place)], "arrays in memory"
    else:
        blocks, source = _from_feeds(data, specs, place, wanted), type(data).__name__
    if not sum(b.rows for b in blocks):
        again = "" if isinstance(data, str | os.PathLike | Mapping) else " (was it read to the end before?)"
        raise DataError(f"{source} holds no samples{again}: give some")
    return calibrate(blocks, specs, place, samples=samples, batch=batch, seed=seed, source=source, warnings=notes)


def _from_feeds(data: Any, specs: Sequence[InputSpec], place: Layout, wanted: int) -> list[Block]:
    if isinstance(data, list | tuple):
        named = [(f"item {k} of the data", item) for k, item in enumerate(data)]
        return [feed(streams.arrays_of(item, where), specs, place, where) for where, item in named]
    if not any(hasattr(data, way) for way in ("get_next", "__iter__", "__getitem__")):
        raise DataError(
            f"calibration data cannot be a {type(data).__name__}: give a path, a dict of arrays, an iterable of dicts, "
            "or an object with get_next()"
        )
    return streams.blocks_of(streams.items_of(data, _failure), specs, place, wanted)


def _failure(error: BaseException, where: str) -> DataError:
    reason = next(iter(str(error).splitlines()), "")
    return DataError(f"{where} could not be had ({type(error).__name__}: {reason}): mend what gives the data")


def blocks_from_path(
    path: Path, specs: Sequence[InputSpec], place: Layout, wanted: int, options: PictureOptions
) -> tuple[list[Block], tuple[str, ...]]:
    """Return what a file or folder holds as blocks, and what the user should know.

    Args:
        path: of the file or folder.
        specs: what the model takes.
        place: where its batch axes are.
        wanted: how many samples are needed of what can be read only from its beginning.
        options: how pixels become inputs.

    Raises:
        UsageError, DataError, ProviderError: see `open_calibration`.
    """
    name = quote(os.fspath(path), 300)
    try:
        if not path.is_dir():
            if path.suffix == ".py" and path.is_file():
                raise UsageError(f"{name} is a Python file: give it with --data-script, if it is to be run")
            return [arrays.from_file(path, specs, place)], ()
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in (".npz", ".npy") and p.is_file())
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} cannot be read ({error}): check the path and its permissions") from None
    sets = protobuf.data_sets(path)
    if sets and not inside:
        return streams.blocks_of(protobuf.items_of(sets, specs), specs, place, wanted), ()
    files = picture_files(path)
    if inside and files:
        raise DataError(f"{name} holds arrays and pictures: give a folder with one of them")
    if inside:
        return arrays.from_files(inside, specs, place), ()
    if files:
        block, notes = from_pictures(files, specs, place, options, arrays.shown_path(path))
        return [block], notes
    raise DataError(f"{name} holds no .npz, .npy, test_data_set_* or pictures: give a folder with samples")
