"""Models, from wherever they come: a path, an `onnx.ModelProto`, an `onnx_ir.Model` or an onnx-graphsurgeon graph."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from onnxprune.errors import ModelError, UsageError, quote
from onnxprune.graph import faithful
from onnxprune.graph.files import DataFile, DataFolder, read_model_file, regular_file
from onnxprune.graph.guard import check_model, parse
from onnxprune.graph.shadows import unshadow
from onnxprune.graph.writing import check_output, save

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = ["Source", "check_output", "check_unchanged", "load", "save"]

_TOO_LARGE = "the model has more than 2 GiB: save it with external data and pass its path"


@dataclass(frozen=True, eq=False)
class Source:
    """A model that passed all checks, and where it came from.

    Attributes:
        model: the graph in memory; tensors in data files are mapped when they are looked at, not before. Read-only.
        path: the file, or None if the model was passed as an object.
        sha256: of the .onnx file's bytes; of the serialized message if there is no file.
        size: bytes of the .onnx and of its data files together.
        data_files: real paths of the files with external data.
        stamps: what `check_unchanged` compares.
    """

    model: ir.Model
    path: Path | None
    sha256: str
    size: int
    data_files: tuple[Path, ...] = ()
    stamps: tuple[tuple[Path, tuple[int, int, int]], ...] = field(default=(), repr=False)

    @property
    def served(self) -> Path | ir.Model:
        """What a session is made of: the file as it stands, with all that onnx-ir drops, where there is one.

        Not if its data are links out of its folder, as in the cache of the Hugging Face hub: some versions of
        onnxruntime refuse these.
        """
        if self.path is None:
            return self.model
        folder = self.path.parent.resolve()
        return self.path if all(file.is_relative_to(folder) for file in self.data_files) else self.model

    @property
    def external(self) -> bool:
        """Whether weights are in data files."""
        return bool(self.data_files)


def load(model: str | os.PathLike[str] | onnx.ModelProto | ir.Model | gs.Graph) -> Source:
    """Returns a model that is safe to work on.

    Raises:
        UsageError: there is no such file, or it is no file, or `model` is no model.
        ModelError: the model is broken, hostile or not supported.
    """
    if isinstance(model, (str, os.PathLike)):
        return _load_file(Path(model))
    if isinstance(model, onnx.ModelProto):
        return _load_message(model)
    if isinstance(model, ir.Model):
        return _load_ir(model)
    if type(model).__module__.partition(".")[0] == "onnx_graphsurgeon":
        return _load_message(_export_graphsurgeon(model))
    raise UsageError(
        f"a {type(model).__name__} is no model: pass a path, an onnx.ModelProto, an onnx_ir.Model or a gs.Graph"
    )


def check_unchanged(source: Source) -> None:
    """Passes if the files of a model are still those that were loaded.

    Raises:
        ModelError: one was changed, replaced or removed.
    """
    for path, stamp in source.stamps:
        try:
            same = _stamp(path) == stamp
        except OSError:
            same = False
        if not same:
            raise ModelError(f"{quote(str(path), 300)} was changed while it was in use: run again on files at rest")


def _load_file(path: Path) -> Source:
    data = read_model_file(path)
    proto = parse(data, quote(os.fspath(path), 300))
    digest, size = hashlib.sha256(data).hexdigest(), len(data)
    del data
    folder = DataFolder(path)
    unshadow(proto)
    check_model(proto, folder)
    files = _distinct(folder.known.values())
    paths = tuple(file.path for file in files)
    model = _to_ir(faithful.Original(proto, path, paths))
    stamps = tuple((p, _stamp(p)) for p in (Path(os.path.realpath(path)), *paths))
    return Source(model, path, digest, size + sum(file.size for file in files), paths, stamps)


def _load_message(message: onnx.ModelProto) -> Source:
    data = _bytes(message)
    proto = parse(data, "the model")  # a copy: what the caller does to the message later must not reach it
    unshadow(proto)
    check_model(proto, None)
    return Source(_to_ir(faithful.Original(proto)), None, hashlib.sha256(data).hexdigest(), len(data))


def _load_ir(model: ir.Model) -> Source:
    try:
        proto = ir.to_proto(model)
    except Exception as error:  # whatever onnx-ir runs into in an object that it cannot write
        raise ModelError(f"onnx-ir cannot serialize the model: {_first_line(error)}") from error
    data = _bytes(proto)
    files = _KnownFiles(_external_paths(model), {})
    check_model(proto, files)
    found = _distinct(files.known.values())
    paths = tuple(file.path for file in found)
    stamps = tuple((p, _stamp(p)) for p in paths)
    size = len(data) + sum(file.size for file in found)
    return Source(model.clone(), None, hashlib.sha256(data).hexdigest(), size, paths, stamps)


def _export_graphsurgeon(graph: Any) -> onnx.ModelProto:
    import onnx_graphsurgeon as gs

    try:
        exported: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    except Exception as error:  # its asserts and KeyErrors on graphs that are not finished
        raise ModelError(f"onnx-graphsurgeon cannot export the graph: {_first_line(error)}") from error
    return exported


@dataclass
class _KnownFiles:
    """The data files of a model in memory, whose tensors know their own paths."""

    paths: dict[str, str]
    known: dict[str, DataFile]

    def find(self, location: str, where: str) -> DataFile:
        """Returns the file of the tensors with that location."""
        path = Path(os.path.realpath(self.paths.get(location, location)))
        try:
            self.known[location] = regular_file(path, f"{where}: its data file {quote(str(path), 300)}")
        except OSError as error:
            raise ModelError(
                f"{where}: its data file {quote(str(path), 300)} cannot be read ({error.strerror})"
            ) from None
        return self.known[location]


def _external_paths(model: ir.Model) -> dict[str, str]:
    tensors: list[Any] = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    for node in faithful.nodes(model):
        tensors += [a.value for a in node.attributes.values() if a.type == ir.AttributeType.TENSOR]
    return {str(t.location): os.fspath(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)}


def _to_ir(original: faithful.Original) -> ir.Model:
    try:
        return faithful.to_ir(original)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise ModelError(f"onnx-ir cannot read the model: {_first_line(error)}") from error


def _bytes(proto: onnx.ModelProto) -> bytes:
    try:
        data: bytes = proto.SerializeToString(deterministic=True)
        return data
    except (EncodeError, ValueError):
        raise ModelError(_TOO_LARGE) from None


def _distinct(files: Any) -> tuple[DataFile, ...]:
    return tuple(dict.fromkeys(files))


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _first_line(error: BaseException) -> str:
    """Returns what the innermost cause of an error says, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
