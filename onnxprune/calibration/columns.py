"""Columns: the data of one input with samples along axis 0, read a few rows at a time.

A column knows its shape and type from a header; contents stay where they are (a file, an array, a temporary file) until
`read` asks for rows, so that no data set has to fit into memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import threading
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import numpy as np

from onnxprune.errors import DataError, RunError, quote

__all__ = ["ArrayRows", "CachedRows", "Column", "DeflatedRows", "FileRows", "Merged", "Picked", "Spool"]

_PIECE = 1 << 20  # bytes that a stream is read by


@dataclass(frozen=True)
class Column(ABC):
    """The data of one input.

    Attributes:
        shape: of all of it, samples first.
        dtype: as stored.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return these rows (ascending), as stored."""

    def keep(self, rows: np.ndarray) -> Column:
        """Return a column of these rows (ascending) alone."""
        return Picked((len(rows), *self.shape[1:]), self.dtype, self, rows)

    def alone(self) -> Self:
        """Return the same data as the one row of a column."""
        return dataclasses.replace(self, shape=(1, *self.shape))

    def whole(self) -> np.ndarray:
        """Return everything as one array."""
        return cast(np.ndarray, self.alone().read(np.zeros(1, np.int64))[0])


@dataclass(frozen=True)
class Picked(Column):
    """Some rows of another column."""

    base: Column
    rows: np.ndarray

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return these rows of those that were picked."""
        return self.base.read(self.rows[rows])


@dataclass(frozen=True)
class Merged(Column):
    """A column of feeds of `size` samples each, seen as a column of samples."""

    base: Column
    size: int

    @classmethod
    def of(cls, base: Column) -> Merged:
        """Return the first two axes of a column as one."""
        feeds, size, *rest = base.shape
        return cls((feeds * size, *rest), base.dtype, base, size)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return these samples, each feed that they lie in read once."""
        feeds, place = np.unique(rows // self.size, return_inverse=True)
        return cast(np.ndarray, self.base.read(feeds)[place, rows % self.size])


@dataclass(frozen=True)
class ArrayRows(Column):
    """An array in memory."""

    array: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> ArrayRows:
        """Return an array as a column."""
        return cls(array.shape, array.dtype, array)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of these rows."""
        return cast(np.ndarray, self.array[rows])

    def alone(self) -> ArrayRows:
        """Return the array as the one row of a column."""
        return ArrayRows.of(self.array[None])


# ---------------------------------------------------------------- files
class Spool:
    """A temporary file without a name: gone when the process ends, however it ends."""

    def __init__(self) -> None:
        with _disk():
            self._file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (closed by the finalizer)
        self._end = 0
        self._lock = threading.Lock()
        weakref.finalize(self, self._file.close)

    def append(self, data: np.ndarray | bytes) -> int:
        """Write an array's elements, or bytes, at the end and return where they begin."""
        raw: Any = data if isinstance(data, bytes) else _bytes(np.ascontiguousarray(data))
        with self.reader() as file, _disk():
            start = self._end
            file.seek(start)
            file.write(raw)
            self._end = start + len(raw)
            return start

    @contextlib.contextmanager
    def reader(self) -> Iterator[BinaryIO]:
        """Give the file to one reader at a time."""
        with self._lock:
            yield self._file


def _bytes(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"calibration data cannot be kept in {quote(tempfile.gettempdir(), 300)} ({error.strerror or error}): "
            "make room there, or point TMPDIR to a folder that has some"
        ) from None


@dataclass(frozen=True)
class FileRows(Column):
    """Elements that lie in a file one after the other.

    Attributes:
        file: where.
        offset: of the first element, in bytes.
        fortran: True if axis 0 runs fastest.
    """

    file: Path | Spool
    offset: int = 0
    fortran: bool = False

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return these rows.

        Raises:
            DataError: the file is shorter than it was, or gone.
        """
        name = quote(self.file.name, 300) if isinstance(self.file, Path) else "the temporary file"
        try:
            with self._open() as file:
                return self._strided(file, rows) if self.fortran else self._runs(file, rows)
        except (OSError, EOFError, ValueError) as error:
            raise DataError(f"{name} cannot be read any more ({error}): leave it as it is during the run") from None

    def _open(self) -> contextlib.AbstractContextManager[BinaryIO]:
        return self.file.reader() if isinstance(self.file, Spool) else self.file.open("rb")

    def _runs(self, file: BinaryIO, rows: np.ndarray) -> np.ndarray:
        size = _row_bytes(self)
        raw = np.empty(len(rows) * size, np.uint8)
        done = 0
        for first, count in _runs(rows) if size else ():
            file.seek(self.offset + first * size)
            if cast(Any, file).readinto(raw[done : done + count * size]) != count * size:
                raise EOFError("it ends early")
            done += count * size
        return raw.view(self.dtype).reshape(len(rows), *self.shape[1:])

    def _strided(self, file: BinaryIO, rows: np.ndarray) -> np.ndarray:
        mapped = np.memmap(file, self.dtype, "r", self.offset, self.shape, "F")
        return np.array(mapped[rows])


def _row_bytes(column: Column) -> int:
    return int(np.prod(column.shape[1:], dtype=np.int64)) * column.dtype.itemsize


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Give first row and length of every stretch of neighbouring rows."""
    if len(rows):
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for run in np.split(rows, breaks):
            yield int(run[0]), len(run)


@dataclass(frozen=True)
class DeflatedRows(Column):
    """A compressed member of a zip archive: it can only be read from its beginning.

    Attributes:
        path: of the archive.
        member: its name in there.
        offset: of the first element in the unpacked member.
        fortran: True if axis 0 runs fastest.
    """

    path: Path
    member: str
    offset: int
    fortran: bool

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return these rows, unpacking everything before them."""
        return self.keep(rows).read(np.arange(len(rows)))

    def keep(self, rows: np.ndarray) -> Column:
        """Return these rows as a column in a temporary file, so that no pass has to unpack again."""
        spool = Spool()
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                _skip(stream, self.offset)
                if self.fortran:
                    _copy(stream, spool, int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize)
                    return FileRows(self.shape, self.dtype, spool, 0, True).keep(rows)
                row, at = _row_bytes(self), 0
                for first, count in _runs(rows) if row else ():
                    _skip(stream, (first - at) * row)
                    _copy(stream, spool, count * row)
                    at = first + count
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{quote(self.member)} in {quote(self.path.name, 300)} is damaged ({error}): save the archive again"
            ) from None
        return FileRows((len(rows), *self.shape[1:]), self.dtype, spool)


def _skip(stream: Any, size: int) -> None:
    while size:
        piece = stream.read(min(size, _PIECE))
        if not piece:
            raise EOFError("it ends early")
        size -= len(piece)


def _copy(stream: Any, spool: Spool, size: int) -> None:
    while size:
        piece = stream.read(min(size, _PIECE))
        if not piece:
            raise EOFError("it ends early")
        spool.append(piece)
        size -= len(piece)


# ---------------------------------------------------------------- made when asked for
@dataclass(frozen=True)
class CachedRows(Column):
    """Rows that take time to make: each is made once, kept in a temporary file as bytes, and finished when read.

    Attributes:
        make: gives row i, of `raw_shape`, in bytes.
        finish: turns raw rows into what the column holds.
        raw_shape: of one raw row.
    """

    make: Callable[[int], np.ndarray]
    finish: Callable[[np.ndarray], np.ndarray]
    raw_shape: tuple[int, ...]
    _spool: Spool = field(default_factory=Spool, repr=False)
    _places: dict[int, int] = field(default_factory=dict, repr=False)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return these rows, finished."""
        raw = np.empty((len(rows), *self.raw_shape), np.uint8)
        for out, i in zip(raw, rows.tolist(), strict=True):
            if i in self._places:
                one = FileRows((1, *self.raw_shape), raw.dtype, self._spool, self._places[i])
                out[...] = one.read(np.zeros(1, np.int64))[0]
            else:
                out[...] = self.make(i)
                self._places[i] = self._spool.append(out)
        return self.finish(raw)
