"""Reports as data: frozen dataclasses that become JSON and come back, and are refused where they don't fit.

A kind of report is a subclass of `Record` whose fields are plain values, tuples, dicts and other dataclasses. Its name
stands in the JSON (`kind`) beside the version of the format. Fields that a later version adds have defaults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import secrets
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from onnxprune.errors import DataError, RunError, quote
from onnxprune.graph.unfinished import PREFIX, Unfinished

__all__ = ["VERSION", "Record", "read", "write"]

VERSION = 1

_NAME_LIMIT = 4096  # characters of one text: a model may hold names of many megabytes


@dataclass(frozen=True)
class Record:
    """What all kinds of reports have in common: `kind` and the way to JSON and back."""

    kind: ClassVar[str]
    version: ClassVar[int] = VERSION

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values, keys always in the same order."""
        return {"version": VERSION, "kind": self.kind, **_plain(self)}

    def to_json(self) -> str:
        """Returns the report as JSON in ASCII."""
        # ASCII only: names in models must not steer the terminal or the log that this is printed to.
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=True, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the report that `to_dict` made the values from.

        Raises:
            DataError: they are no report of this kind and version.
        """
        found = values.get("version")
        if found != VERSION or isinstance(found, bool):
            shown = quote(str(found), 20)
            raise DataError(f"the report is of version {shown}, not {VERSION}: make it anew with --report")
        kind = values.get("kind")
        if kind != cls.kind:
            shown = quote(str(kind), 20)
            raise DataError(f"the report is of kind {shown}, not {cls.kind!r}: give the report of onnxprune {cls.kind}")
        try:
            record: Self = _record(cls, values, "the report")
        except RecursionError:
            raise DataError("the report is nested too deep: make it anew with --report") from None
        return record


# -------------------------------------------------------------------------------------------------- files
_R = TypeVar("_R", bound=Record)


def read(path: str | os.PathLike[str], kind: type[_R], *others: type[_R]) -> _R:
    """Returns the report in a JSON file.

    Args:
        path: of the file.
        kind: the one that it should be.
        others: what it may be as well.

    Raises:
        DataError: it is none of them.
    """
    shown = quote(os.fspath(path), 300)
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{shown} is no report that can be read ({_told(error)})") from error
    if not isinstance(values, dict):
        raise DataError(f"{shown} is no report: make one with --report PATH")
    return next((other for other in others if values.get("kind") == other.kind), kind).from_dict(values)


def write(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        RunError: it cannot be written, and what was there still is.
    """
    target = Path(path)
    temporary = target.absolute().parent / f"{PREFIX}{secrets.token_hex(8)}"
    unfinished = Unfinished(target)
    unfinished.add(temporary)
    try:
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            unfinished.remove()
    except OSError as error:
        raise RunError(f"{quote(os.fspath(path), 300)} cannot be written ({_told(error)})") from error


def _told(error: BaseException) -> str:
    return (getattr(error, "strerror", None) if isinstance(error, OSError) else None) or type(error).__name__


# -------------------------------------------------------------------------------------------------- plain values
def _plain(value: Any) -> Any:
    """Returns a value as JSON knows it: no infinities, and no text longer than the limit."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(each) for key, each in sorted(value.items())}
    if isinstance(value, (tuple, list)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str) and len(value) > _NAME_LIMIT:
        return f"{value[:_NAME_LIMIT]}... ({len(value):,} characters)"
    return value


def _typed(kind: Any, value: Any, where: str) -> Any:
    """Returns a plain value as what a field declares; keys that no field has are left out."""
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of([each for each in arguments if each is not type(None)], value, where)
    if origin is tuple and isinstance(value, list):
        return _tuple(arguments, value, where)
    if origin is dict and isinstance(value, dict):
        return {str(key): _typed(arguments[1], each, f"{where}.{key}") for key, each in value.items()}
    if kind is Any or (origin is None and type(value) is kind):
        return value
    if kind is float and (value is None or type(value) is int):
        return math.nan if value is None else float(value)
    raise DataError(f"{where} should not be a {type(value).__name__}: make the report anew with --report")


def _one_of(kinds: list[Any], value: Any, where: str) -> Any:
    """Returns a value as the first of several kinds that it fits; nothing as nothing."""
    if value is None:
        return None
    for kind in kinds[:-1]:
        with contextlib.suppress(DataError):
            return _typed(kind, value, where)
    return _typed(kinds[-1], value, where)


def _tuple(kinds: tuple[Any, ...], values: list[Any], where: str) -> tuple[Any, ...]:
    if kinds[-1] is Ellipsis:
        kinds = kinds[:1] * len(values)
    elif len(kinds) != len(values):
        raise DataError(f"{where} should have {len(kinds)} entries: make the report anew with --report")
    pairs = zip(kinds, values, strict=True)
    return tuple(_typed(kind, each, f"{where}[{k}]") for k, (kind, each) in enumerate(pairs))


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise DataError(f"{where} should be an object: make the report anew with --report")
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)
    given = {field.name: value[field.name] for field in fields if field.name in value}
    missing = [field.name for field in fields if field.name not in given and _is_needed(field)]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}: make the report anew with --report")
    return kind(**{name: _typed(hints[name], each, f"{where}.{name}") for name, each in given.items()})


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
