"""Writing a model so that at every moment either the old one or the new one is there, whole.

The new files are made beside their place, read again, checked, and moved in by renaming. External data lies in one
file whose name carries the hash of its content: the .onnx that stands there keeps its own data until the one rename
that replaces it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from onnxprune.errors import ModelError, RunError, UsageError, quote
from onnxprune.graph import faithful, guard
from onnxprune.graph.files import MAX_PROTO_BYTES, DataFolder, read_model_file
from onnxprune.graph.lazy import Striped
from onnxprune.graph.unfinished import PREFIX, Unfinished, mentions, remove_data, taking_part

if TYPE_CHECKING:
    from onnxprune.graph.model import Source

__all__ = ["EXTERNAL_FROM", "check_output", "save"]

EXTERNAL_FROM = 1024
"""Initializers of at least as many bytes go to the data file, where there is one."""

_ALIGN_FROM = 1 << 16  # tensors from this size start on a page, so that runtimes can map them
_PAGE, _WORD = 4096, 16
_CHUNK = 1 << 22
_AHEAD = 1 << 23  # bytes that may wait to be written or hashed
_SETTLED_EVERY = 0.05  # seconds
_ROOM = 1 << 26  # bytes that everything but the tensors may take in a model of nearly 2 GiB
_STEM_BYTES = 200  # file names end at 255 bytes, and the hash must fit


def check_output(path: Path, source: Source, in_place: bool) -> None:
    """Passes a path that a model may be written to without harm to the model that it was made from.

    Raises:
        UsageError: it is a folder or a device, the input itself (and not `in_place`), or one of its data files.
        RunError: its folder is missing or may not be written to.
    """
    name = quote(os.fspath(path), 300)
    if path.is_dir():
        raise UsageError(f"{name} is a folder: give the path of a file to write")
    if path.exists() and not path.is_file():
        raise UsageError(f"{name} is a pipe or a device: give the path of a file to write")
    if any(_same(path, file) for file in source.data_files):
        raise UsageError(f"{name} is a data file of the input: choose another output")
    if source.path is not None and _same(path, source.path) and not in_place:
        raise UsageError(f"{name} is the input itself: choose another output, or say --in-place")
    _check_folder(path)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _check_folder(path: Path) -> None:
    folder = path.absolute().parent
    if not folder.is_dir():
        raise RunError(f"{quote(os.fspath(path), 300)} cannot be written: its folder does not exist, create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RunError(f"{quote(os.fspath(path), 300)} cannot be written: its folder is read-only, choose another one")


def save(
    model: ir.Model,
    path: Path,
    *,
    external: bool,
    check: Callable[[Path], None] | None = None,
    lasting: bool = True,
) -> tuple[Path, ...]:
    """Writes a model whole or not at all, and returns the files that were written: the .onnx, then its data file.

    What has not changed since the model was loaded is written as it was; the same model gives the same bytes.

    Args:
        model: what to write; it stays as it is.
        path: the .onnx file.
        external: whether initializers from 1,024 bytes on go to `STEM.HASH.data` beside it. Above 2 GiB they do anyway.
        check: called with the path of the new .onnx before it replaces the old one; what it raises stops that.
        lasting: wait until all is on the disk; what is soon removed again need not be.

    Raises:
        RunError: nothing was changed, and says why.
    """
    path = Path(path)
    _check_folder(path)
    serialized = faithful.to_proto(model)
    transaction = _Transaction(path, lasting)
    try:
        with taking_part(path.absolute().parent):
            data_file = _place_tensors(serialized, transaction, external)
            temporary = transaction.create(".onnx")
            with temporary.open("wb") as file:
                file.write(_encode(serialized.proto))
                transaction.settle(file)
            _reread(temporary, data_file)
            if check is not None:
                check(temporary)
            outdated = _outdated(path, data_file, faithful.original_of(model))
            transaction.finish(temporary)
    except OSError as error:
        raise RunError(
            f"{quote(os.fspath(path), 300)} cannot be written ({error.strerror or error}): nothing was changed"
        ) from error
    finally:
        transaction.unfinished.remove()
    remove_data(path, outdated)
    return (path,) if data_file is None else (path, data_file)


@dataclass(eq=False)
class _Transaction:
    """The files that a save has made so far; what is not moved in at the end is removed.

    Attributes:
        path: where the model goes.
        lasting: whether files are to be on the disk before they are moved in.
    """

    path: Path
    lasting: bool
    unfinished: Unfinished = field(init=False)

    def __post_init__(self) -> None:
        self.unfinished = Unfinished(self.path)

    def create(self, suffix: str) -> Path:
        """Returns a new empty file beside the place of the model."""
        new = self.path.absolute().parent / f"{PREFIX}{secrets.token_hex(8)}{suffix}"
        self.unfinished.add(new)
        # Not by tempfile, whose files only their owner may read: this one is to stay.
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        return new

    def settle(self, file: BinaryIO) -> None:
        """Waits until the system has brought what is written to the disk."""
        if self.lasting:
            _flush(file)

    def settling(self, file: BinaryIO) -> AbstractContextManager[None]:
        """Has the system do so while more is written: less is left to wait for at the end."""
        return _settling(file) if self.lasting else contextlib.nullcontext()

    def rename(self, old: Path, new: Path) -> None:
        """Moves one of the made files; unless it replaces a file (of the same content), it can still be undone."""
        if not new.exists():
            self.unfinished.add(new)
        old.replace(new)
        self.unfinished.drop(old)

    def finish(self, temporary: Path) -> None:
        """Moves the .onnx in; from here on nothing is undone."""
        if self.path.exists():
            temporary.chmod(self.path.stat().st_mode & 0o777)
        self._settle_folder()
        temporary.replace(self.path)
        self._settle_folder()

    def _settle_folder(self) -> None:
        if self.lasting:
            _flush_folder(self.path.absolute().parent)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows does not open folders
    with contextlib.suppress(OSError):  # nor do some network file systems flush them
        os.fsync(handle)
    os.close(handle)


def _encode(proto: onnx.ModelProto) -> bytes:
    try:
        data: bytes = proto.SerializeToString(deterministic=True)
        return data
    except (EncodeError, ValueError):
        raise RunError(
            "the model's .onnx has more than 2 GiB without its initializers: it cannot be written, nothing was changed"
        ) from None


def _reread(temporary: Path, data_file: Path | None) -> None:
    """Passes a written model that loads again and whose data are all there."""
    try:
        proto = guard.parse(read_model_file(temporary), "the written file")
        folder = DataFolder(temporary)
        guard.check_model(proto, folder)
    except (ModelError, UsageError) as error:
        raise RunError(f"the written model does not read back ({error}): nothing was changed") from error
    if [file.path for file in folder.known.values()] != ([Path(os.path.realpath(data_file))] if data_file else []):
        raise RunError("the written model does not name its data file: nothing was changed")


# -------------------------------------------------------------------------------------------------- tensors
def _place_tensors(serialized: faithful.Serialized, transaction: _Transaction, external: bool) -> Path | None:
    """Fills in all tensors, in the message or in the data file that is returned."""
    initializers = [(tensor, serialized.new_tensor(tensor)) for tensor in _initializers(serialized.proto)]
    sizes = [_nbytes(tensor if new is None else new) for tensor, new in initializers]
    external = external or sum(sizes) > MAX_PROTO_BYTES - _ROOM
    outside: list[tuple[onnx.TensorProto, Any]] = []
    for (tensor, new), size in zip(initializers, sizes, strict=True):
        if external and size >= EXTERNAL_FROM:
            outside.append((tensor, tensor if new is None else new))
        elif new is not None:
            _fill(tensor, new)
        else:
            _embed(tensor)
    for tensor in _other_tensors(serialized.proto):
        _embed(tensor)
    return _write_data(outside, transaction) if outside else None


def _fill(tensor: onnx.TensorProto, new: ir.TensorProtocol) -> None:
    """Puts a new tensor, with its data, in the place of a token."""
    name = tensor.name
    tensor.Clear()
    if isinstance(new, (ir.ExternalTensor, ir.LazyTensor)):
        _describe(tensor, new)
        tensor.raw_data = b"".join(_chunks(new))
    else:
        ir.serde.serialize_tensor_into(tensor, new)
    tensor.name = name


def _embed(tensor: onnx.TensorProto) -> None:
    """Moves a tensor's data from a file into the message."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        data = b"".join(_chunks(tensor))
        _clear_data(tensor)
        tensor.raw_data = data


def _describe(tensor: onnx.TensorProto, new: ir.TensorProtocol) -> None:
    """Writes everything but a tensor's data."""
    tensor.data_type = new.dtype.value
    tensor.dims.extend(new.shape.numpy())
    if new.doc_string:
        tensor.doc_string = new.doc_string
    for key, value in sorted(new.metadata_props.items()):
        tensor.metadata_props.add(key=key, value=value)


def _clear_data(tensor: onnx.TensorProto) -> None:
    for name in ("raw_data", "data_location", "external_data", "float_data", "int32_data", "string_data"):
        tensor.ClearField(name)
    for name in ("int64_data", "double_data", "uint64_data"):
        tensor.ClearField(name)


def _write_data(tensors: list[tuple[onnx.TensorProto, Any]], transaction: _Transaction) -> Path:
    """Writes the data file, tensor by tensor, and returns its path; the tensors then point to it."""
    temporary = transaction.create(".data")
    digest, places, position = hashlib.sha256(), [], 0
    with temporary.open("wb") as file, transaction.settling(file), _Beside(digest.update, file.write) as taken:
        for tensor, data in tensors:
            size = _nbytes(data)
            gap = -position % (_PAGE if size >= _ALIGN_FROM else _WORD)
            written = 0
            for chunk in chain((bytes(gap),), _chunks(data)):
                taken.put(chunk)
                written += len(chunk)
            if written != gap + size:
                raise RunError(f"tensor {quote(tensor.name)} has {written - gap:,} bytes instead of {size:,}")
            places.append((position + gap, size))
            position += written
        taken.wait(0)
        transaction.settle(file)
    path = transaction.path.absolute().parent / f"{_stem(transaction.path)}.{digest.hexdigest()[:12]}.data"
    transaction.rename(temporary, path)
    for (tensor, data), (offset, size) in zip(tensors, places, strict=True):
        if data is not tensor:
            name = tensor.name
            tensor.Clear()
            tensor.name = name
            _describe(tensor, data)
        _clear_data(tensor)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", path.name), ("offset", str(offset)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
    return path


@contextmanager
def _settling(file: BinaryIO) -> Iterator[None]:
    """Flushes a file again and again while it is written."""
    done = threading.Event()

    def settle() -> None:
        while not done.wait(_SETTLED_EVERY):
            os.fsync(file.fileno())

    with ThreadPoolExecutor(1) as pool:
        settled = pool.submit(settle)
        try:
            yield
        finally:
            done.set()
        settled.result()  # the system tells of a failure only once


class _Beside:
    """Passes chunks on to those who take them, each in a thread of its own; the next one is made meanwhile."""

    def __init__(self, *takers: Callable[[bytes | memoryview], Any]) -> None:
        self.takers = [(take, ThreadPoolExecutor(1)) for take in takers]
        self.going = deque[tuple[int, list[Future[Any]]]]()

    def __enter__(self) -> _Beside:
        return self

    def __exit__(self, *error: object) -> None:
        for _, pool in self.takers:
            pool.shutdown(cancel_futures=True)

    def put(self, chunk: bytes | memoryview) -> None:
        """Passes a chunk on; what went wrong with an earlier one is raised here."""
        self.going.append((len(chunk), [pool.submit(take, chunk) for take, pool in self.takers]))
        self.wait(_AHEAD)

    def wait(self, most: int) -> None:
        """Returns when fewer than so many bytes are under way; for 0, when nothing is."""
        while self.going and sum(size for size, _ in self.going) >= most:
            for taken in self.going.popleft()[1]:
                taken.result()


def _nbytes(tensor: Any) -> int:
    """Returns the bytes of a tensor's data; of strings none, since they never leave the message."""
    if isinstance(tensor, onnx.TensorProto):
        count, dtype = 1, ir.DataType(tensor.data_type)
        for dim in tensor.dims:
            count *= dim
    else:
        count, dtype = tensor.size, tensor.dtype
    return 0 if dtype == ir.DataType.STRING else (count * dtype.bitwidth + 7) // 8


def _chunks(tensor: Any) -> Iterator[bytes | memoryview]:
    """Yields a tensor's data, little-endian, in pieces that fit memory."""
    if isinstance(tensor, ir.ExternalTensor):
        yield from _file_chunks(Path(tensor.path), tensor.offset or 0, _nbytes(tensor))
    elif isinstance(tensor, Striped):
        yield from tensor.chunks()
    elif not isinstance(tensor, onnx.TensorProto):
        yield tensor.tobytes()
    elif tensor.data_location == onnx.TensorProto.EXTERNAL:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        yield from _file_chunks(Path(entries["location"]), int(entries["offset"]), int(entries["length"]))
    else:
        yield ir.serde.TensorProtoTensor(tensor).tobytes()


def _file_chunks(path: Path, offset: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while size:
            chunk = file.read(min(size, _CHUNK))
            if not chunk:
                raise RunError(f"{quote(str(path), 300)} became shorter while it was in use: nothing was changed")
            yield chunk
            size -= len(chunk)


def _initializers(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in faithful.graphs(proto):
        yield from graph.initializer


def _other_tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in faithful.graphs(proto):
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for attribute in faithful.attributes(proto):
        sparse_tensors = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for sparse in chain(sparse_tensors, attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        yield from ([attribute.t] if attribute.HasField("t") else [])
        yield from attribute.tensors


# -------------------------------------------------------------------------------------------------- old data
def _stem(path: Path) -> str:
    """Returns what the data file of a model is called by."""
    return os.fsdecode(os.fsencode(path.stem)[:_STEM_BYTES]) if len(os.fsencode(path.stem)) > _STEM_BYTES else path.stem


def _outdated(path: Path, data_file: Path | None, original: faithful.Original | None) -> list[Path]:
    """Returns the data files that only the .onnx names which is about to be replaced."""
    pattern = re.compile(re.escape(_stem(path)) + r"\.[0-9a-f]{12}\.data")
    folder = path.absolute().parent
    candidates = [file for file in folder.iterdir() if pattern.fullmatch(file.name) and file != data_file]
    candidates = [file for file in candidates if mentions(path, file.name)]
    if original is not None and original.path is not None and not _same(original.path, path):
        candidates = [file for file in candidates if not any(_same(file, used) for used in original.data_files)]
    others = [file for file in folder.glob("*.onnx") if candidates and not file.is_symlink() and not _same(file, path)]
    others = [file for file in others if not file.name.startswith(PREFIX)]
    return [file for file in candidates if not any(mentions(other, file.name) for other in others)]
