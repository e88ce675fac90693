"""Opening files that nobody vouches for: what may be read at all, what a file is, where external data may lie."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from onnxprune.errors import ModelError, UsageError, quote

__all__ = ["MAX_PROTO_BYTES", "DataFile", "DataFolder", "foreign_format", "read_model_file", "truncation"]

MAX_PROTO_BYTES = 2**31 - 1
"""Protobuf cannot hold a larger message: the tensors of larger models lie in data files beside them."""

_OUTER_FIELDS = 10_000  # of a message are looked at to tell whether it is truncated: a bound, no model has as many

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x80\x02", "a Python pickle (an old PyTorch checkpoint?): export it to ONNX first"),
    (0, b"\x80\x03", "a Python pickle: export the model to ONNX first"),
    (0, b"\x80\x04", "a Python pickle: export the model to ONNX first"),
    (0, b"\x80\x05", "a Python pickle: export the model to ONNX first"),
    (0, b"version https://git-lfs", "a Git-LFS pointer, not the file itself: run `git lfs pull`"),
    (0, b"\x1f\x8b", "gzip-compressed: unpack it first"),
    (0, b"\xfd7zXZ", "xz-compressed: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed: unpack it first"),
    (0, b"\x89HDF", "an HDF5 file (Keras?): convert it with tf2onnx or Keras' own ONNX export"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x7fELF", "an executable"),
    (0, b"GGUF", "a GGUF file (llama.cpp): start from the original model's ONNX export"),
    (0, b"ptrt", "a TensorRT engine: start from the ONNX file that it was built from"),
    (0, b"ftrt", "a TensorRT engine: start from the ONNX file that it was built from"),
    (4, b"TFL3", "a TensorFlow Lite model: convert it with tf2onnx first"),
    (4, b"ORTM", "a model in onnxruntime's own format (.ort): start from the ONNX file that it was made from"),
    (8, b'{"', "a safetensors file: it holds weights without a graph, export the model to ONNX"),
)


def read_model_file(path: Path) -> bytes:
    """Returns the bytes of a model file, after making sure that reading it ends.

    Raises:
        UsageError: there is no such file, it is a folder, a pipe or a device, or it may not be read.
        ModelError: it is empty or too large for protobuf.
    """
    name = quote(os.fspath(path), 300)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{name} is {_kind(path)}, not a file: give the path of the .onnx file")
        # Non-blocking and looked at again: what the path names may have been exchanged in between.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{name} is not a regular file: give the path of the .onnx file")
            if status.st_size > MAX_PROTO_BYTES:
                raise ModelError(
                    f"{name} has {status.st_size:,} bytes, more than the 2 GiB that a protobuf file can hold: "
                    "save the model with external data"
                )
            data = file.read(status.st_size)
    except FileNotFoundError:
        raise UsageError(f"{name} does not exist: check the path") from None
    except PermissionError:
        raise UsageError(f"{name} may not be read: check its permissions") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{name} cannot be read ({_reason(error)})") from None
    if not data:
        raise ModelError(f"{name} is empty: export or download the model again")
    return data


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "a pipe, socket or device"


def _reason(error: Exception) -> str:
    return str((error.strerror if isinstance(error, OSError) else None) or error)


def foreign_format(data: bytes) -> str | None:
    """Returns what a file is that begins with `data`, and what to do about it; None if it may well be ONNX."""
    for offset, magic, what in _MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return what
    if data[:4] == b"PK\x03\x04":
        if b"data.pkl" in data[:4096]:
            return "a PyTorch file (.pt, .pth): export it with torch.onnx.export first"
        return "a zip archive (a PyTorch or Keras file?): unpack it or export the model to ONNX first"
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype", b"<html")):
        return "an HTML page (a failed download?): download the file itself"
    if head.startswith(b"<?xml"):
        return "an XML file"
    if head.startswith((b'{"', b"{\n", b"{\r", b"{ ")):
        return "a JSON file"
    return None


def truncation(data: bytes) -> str | None:
    """Returns how a protobuf message breaks off before its end, or None if its outermost fields are whole."""
    position, size = 0, len(data)
    for _ in range(_OUTER_FIELDS):
        if position >= size:
            break
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == 0:
            _, position = _varint(data, position)
        elif wire == 2:
            length, position = _varint(data, position)
            if position + length > size:
                return f"it needs {position + length:,} bytes and has {size:,}"
            position += length
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            return None  # not protobuf at all
    return None if position <= size else "it ends in the middle of a field"


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if position >= len(data):
            return 0, len(data) + 1
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    return value, position


@dataclass(frozen=True)
class DataFile:
    """A file with external data: its real path and its size in bytes."""

    path: Path
    size: int


@dataclass
class DataFolder:
    """Where the external data of one model may lie: below its folder, or below the real folder of the real file.

    The second is how the cache of the Hugging Face hub is laid out: the model and its data are symlinks into one
    folder of blobs. Anything else that a path inside a model names (`../x`, `/etc/passwd`, a symlink that leads out)
    is refused.
    """

    model: Path
    known: dict[str, DataFile] = field(default_factory=dict)

    def find(self, location: str, where: str) -> DataFile:
        """Returns the file that a tensor's `location` names; `where` says which tensor, for the error."""
        if location not in self.known:
            self.known[location] = self._find(location, where)
        return self.known[location]

    def _find(self, location: str, where: str) -> DataFile:
        shown = quote(location, 200)
        parts = location.replace("\\", "/").split("/")
        if not location or "\0" in location or location.startswith(("/", "\\")) or parts[0].endswith(":"):
            raise ModelError(f"{where}: its data lies at {shown}, which is no relative path: save the model again")
        if ".." in parts:
            raise ModelError(
                f"{where}: its data lies at {shown}, outside the model's folder: move the data beside the model"
            )
        try:
            folder = self.model.absolute().parent
            path = Path(os.path.realpath(folder / location))
            homes = (Path(os.path.realpath(folder)), Path(os.path.realpath(self.model)).parent)
            if not any(path.is_relative_to(home) for home in homes):
                raise ModelError(
                    f"{where}: its data at {shown} is a link that leads outside the model's folder: "
                    "put the file itself beside the model"
                )
            return regular_file(path, f"{where}: its data file {shown}")
        except FileNotFoundError:
            raise ModelError(f"{where}: its data file {shown} is missing: put it beside the model") from None
        except OSError as error:
            raise ModelError(f"{where}: its data file {shown} cannot be read ({_reason(error)})") from None


def regular_file(path: Path, what: str) -> DataFile:
    """Returns a file that external data may be read from.

    Raises:
        ModelError: it is a folder, a pipe or a device, or may not be read.
        OSError: as the system has it.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{what} is {_kind(path)}, not a file")
    if not os.access(path, os.R_OK):
        raise ModelError(f"{what} may not be read: check its permissions")
    return DataFile(path, status.st_size)
