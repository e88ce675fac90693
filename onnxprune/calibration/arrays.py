"""Arrays in numpy's own formats: .npz, .npy and folders of them. Pickles are never opened.

Headers are read first and compared with the size of the file, so that a forged one costs nothing; rows are read when
they are asked for.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from onnxprune.calibration import checks
from onnxprune.calibration.batches import Block, table
from onnxprune.calibration.columns import ArrayRows, Column, DeflatedRows, FileRows
from onnxprune.calibration.layout import Layout
from onnxprune.errors import DataError, UsageError, quote
from onnxprune.graph.inputs import InputSpec

__all__ = ["beginning", "column_of", "from_dict", "from_file", "from_files", "shown_path"]

# Deflate reaches 1,000 to 1 on constants only. A mask of ones is one, but not by the gigabyte.
_BOMB_BYTES = 1 << 28
_BOMB_RATIO = 100


def from_dict(data: Mapping[str, Any], specs: Sequence[InputSpec], layout: Layout) -> Block:
    """Return arrays in memory as a block: samples along axis 0.

    Raises:
        DataError: they do not fit the model.
    """
    where = "the calibration data"
    checks.names(data, specs, where)
    columns = {str(k): ArrayRows.of(checks.as_array(v, f"{where}: input {str(k)!r}")) for k, v in data.items()}
    return table(columns, specs, layout, where)


def from_file(path: Path, specs: Sequence[InputSpec], layout: Layout, *, single: bool = False) -> Block:
    """Return a .npz or .npy file as a block.

    Args:
        path: of the file; its contents tell which it is.
        specs: what the model takes.
        layout: where its batch axes are.
        single: True if an array without a samples axis is one sample.

    Raises:
        UsageError: the path names no readable file.
        DataError: it is something else, is damaged, or does not fit the model.
    """
    where = shown_path(path)
    start = beginning(path)
    if start.startswith(b"PK"):
        return table(_npz(path, specs), specs, layout, where, single=single)
    if start.startswith(b"\x93NUMPY"):
        if len(specs) != 1:
            raise DataError(
                f"{where} is one array, and the model has the inputs {checks.shown(s.name for s in specs)}: "
                "give a .npz file with one array per input"
            )
        return table({specs[0].name: _npy(path)}, specs, layout, where, single=single)
    raise DataError(f"{where} is {_what(start)}: give .npz or .npy files, or a folder of pictures")


def from_files(paths: Sequence[Path], specs: Sequence[InputSpec], layout: Layout) -> list[Block]:
    """Return the array files of a folder as blocks: one .npy per input, or several files of samples.

    Raises:
        DataError: one of them does not fit the model.
    """
    by_input = {p.stem: p for p in paths if p.suffix.lower() == ".npy"}
    if len(by_input) == len(paths) and by_input.keys() == {s.name for s in specs}:
        columns = {name: _npy(path) for name, path in by_input.items()}
        return [table(columns, specs, layout, shown_path(paths[0].parent))]
    return [from_file(path, specs, layout, single=True) for path in paths]


def column_of(path: Path, name: str | None = None) -> Column:
    """Return one array of a file, or of a folder with one file per array.

    Args:
        path: a .npy file, a .npz file, or a folder of such files.
        name: of the array in a .npz or a folder; None: the only one there is.

    Raises:
        UsageError: the path names no readable file.
        DataError: it holds no such array, is damaged, or no array file.
    """
    if path.is_dir() and name is not None:
        beside = path / f"{name}.npy"
        if beside.parent == path and beside.is_file():
            return _npy(beside)
        raise DataError(f"{shown_path(path)} holds no {quote(f'{name}.npy')}: put it there, or give the file's path")
    start = beginning(path)
    if start.startswith(b"\x93NUMPY") and name is None:
        return _npy(path)
    if not start.startswith(b"PK"):
        what = "is one array, without names" if start.startswith(b"\x93NUMPY") else f"is {_what(start)}"
        raise DataError(f"{shown_path(path)} {what}: give a .npz that holds the array, or the path of a .npy")
    with _archive(path) as (archive, file, members):
        if name is None and len(members) == 1:
            name = next(iter(members))
        if name is None or name not in members:
            wanted = "more than one array" if name is None else f"no array {quote(name)}"
            raise DataError(f"{shown_path(path)} holds {wanted}: it has {checks.shown(members)}")
        return _member(archive, file, path, members[name])


def shown_path(path: Path) -> str:
    """Return a path's last part for a message: what lies above it is the user's own business."""
    return quote(path.name or os.fspath(path), 300)


def beginning(path: Path) -> bytes:
    """Return the first bytes of a file, after making sure that reading it ends.

    Raises:
        UsageError: there is no such file, it is no regular file, or it may not be read.
    """
    name = quote(os.fspath(path), 300)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{name} is a pipe, a device or a folder: give the path of a file")
        with path.open("rb") as file:
            return file.read(64)
    except FileNotFoundError:
        raise UsageError(f"{name} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} cannot be read ({error}): check the path and its permissions") from None


def _what(start: bytes) -> str:
    if not start:
        return "empty"
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05":
        return "a Python pickle, which is never opened"
    if start.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*", b"MM\0*")):
        return "a single picture"
    if start.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer (run `git lfs pull`)"
    return "no array file"


# ---------------------------------------------------------------- headers
@dataclass(frozen=True)
class _Header:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    @property
    def end(self) -> int:
        """Where the data end, in bytes from the beginning of the file."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def _header(file: Any, size: int, where: str) -> _Header:
    """Return what an array's header says, after comparing it with the size of the file.

    Raises:
        DataError: it is damaged, forged, or of a type that only pickle could read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers written by Python 2
            major, _ = np.lib.format.read_magic(file)
            read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[major]
            shape, fortran, dtype = read(file)
    except KeyError:
        raise DataError(f"{where} holds records with names: give one array of numbers per input") from None
    except Exception as error:  # numpy's parser lets through what the tokenizer raises
        reason = (str(error).splitlines() or [""])[0][:200]
        raise DataError(f"{where} has no valid header ({reason}): save the array again") from None
    if dtype.hasobject:
        raise DataError(f"{where} has dtype object, which only pickle could read: save an array of numbers instead")
    if dtype.names is not None or dtype.subdtype is not None:
        raise DataError(f"{where} holds records: give one array of numbers per input")
    header = _Header(tuple(int(n) for n in shape), dtype, bool(fortran) and len(shape) > 1, file.tell())
    if any(n < 0 for n in shape) or header.end > size:
        raise DataError(
            f"{where} says that its shape is {list(shape)[:8]}, and has only {size:,} bytes: it is truncated or forged"
        )
    return header


def _npy(path: Path) -> Column:
    beginning(path)
    with path.open("rb") as file:
        header = _header(file, os.fstat(file.fileno()).st_size, shown_path(path))
    return FileRows(header.shape, header.dtype, path, header.offset, header.fortran)


def _npz(path: Path, specs: Sequence[InputSpec]) -> dict[str, Column]:
    """Return the arrays of an archive, after a look at names and headers alone."""
    with _archive(path) as (archive, file, members):
        checks.names(members, specs, shown_path(path))
        return {name: _member(archive, file, path, member) for name, member in members.items()}


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, BinaryIO, dict[str, zipfile.ZipInfo]]]:
    """Give an archive, its file, and its members by the names of their arrays."""
    where = shown_path(path)
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise DataError(f"{where} holds two arrays of one name: save it again")
            yield archive, file, members
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{where} is no readable archive ({error}): save it again with numpy.savez") from None


def _member(archive: zipfile.ZipFile, file: BinaryIO, path: Path, member: zipfile.ZipInfo) -> Column:
    where = f"{shown_path(path)}: {quote(member.filename)}"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where} is compressed in a way that numpy does not use: save it with numpy.savez")
    if member.flag_bits & 1:
        raise DataError(f"{where} is encrypted: save it without a password")
    if member.file_size > max(_BOMB_BYTES, _BOMB_RATIO * member.compress_size):
        raise DataError(
            f"{where} unpacks from {member.compress_size:,} to {member.file_size:,} bytes, as no data do: "
            "save it with numpy.savez, uncompressed, if it is meant"
        )
    with archive.open(member) as stream:
        if cast(zipfile.ZipExtFile, stream).peek(6)[:6] != b"\x93NUMPY":
            raise DataError(f"{where} is no array: give one array per input")
        header = _header(stream, member.file_size, where)
    if member.compress_type == zipfile.ZIP_DEFLATED:
        return DeflatedRows(header.shape, header.dtype, path, member.filename, header.offset, header.fortran)
    start = _stored_at(file, member, where)
    return FileRows(header.shape, header.dtype, path, start + header.offset, header.fortran)


def _stored_at(file: BinaryIO, member: zipfile.ZipInfo, where: str) -> int:
    """Return where an uncompressed member begins in its archive."""
    file.seek(member.header_offset)
    local = file.read(30)
    start = member.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    if local[:4] != b"PK\x03\x04" or start + member.file_size > os.fstat(file.fileno()).st_size:
        raise DataError(f"{where} is truncated: save the archive again")
    return start
