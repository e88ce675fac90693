"""What a run says about itself: figures, reasons and warnings, as data. JSON is the source of all other formats."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import secrets
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from onnxprune.errors import DataError, RunError, quote

__all__ = [
    "VERSION",
    "Count",
    "FrozenRow",
    "GroupRow",
    "Inspection",
    "OutputFidelity",
    "Report",
    "Validation",
    "by_reason",
    "read",
    "units_of",
    "write",
]

VERSION = 1

_NAME_LIMIT = 4096  # characters of one text: a model may hold names of many megabytes


@dataclass(frozen=True)
class Count:
    """A figure of the original and of the pruned model."""

    before: int
    after: int

    @property
    def ratio(self) -> float:
        """The share that is left."""
        return self.after / self.before if self.before else 1.0


@dataclass(frozen=True)
class GroupRow:
    """A pruning group.

    Attributes:
        name: of the group.
        units: how many it has.
        cut: how many of them go.
        members: the weights that lose something with each unit.
        macs_per_unit: multiply-accumulates that go with one unit, all else uncut.
        params_per_unit: parameters that go with one unit.
    """

    name: str
    units: int
    cut: int
    members: tuple[str, ...]
    macs_per_unit: float
    params_per_unit: float


@dataclass(frozen=True)
class FrozenRow:
    """Channels that stay, and why.

    Attributes:
        node: where the reason lies.
        op: that node's operator.
        why: the reason.
        channels: how many it freezes.
        weights: the weights that they belong to.
    """

    node: str
    op: str
    why: str
    channels: int
    weights: tuple[str, ...]


@dataclass(frozen=True)
class OutputFidelity:
    """How far one output moved from the original's.

    Attributes:
        name: of the output.
        relative_error: norm of the difference by the norm of the original.
        cosine: of the angle between the two.
        top1_agreement: share of samples with the same largest entry; None where the output is no vector of scores.
    """

    name: str
    relative_error: float
    cosine: float
    top1_agreement: float | None = None


@dataclass(frozen=True)
class Validation:
    """What was measured on the pruned model in onnxruntime.

    Attributes:
        provider: the execution providers, in order.
        error: largest difference from the original with the cut weights set to zero, relative; None if the cut is
            approximate, so that this says nothing.
        tolerance: what was allowed.
        sizes: the shapes of the inputs that it was measured at.
        fidelity: how far each output moved.
    """

    provider: tuple[str, ...]
    error: float | None
    tolerance: float
    sizes: tuple[str, ...]
    fidelity: tuple[OutputFidelity, ...]


@dataclass(frozen=True)
class Report:
    """What a pruning run did.

    Attributes:
        tool: version of onnxprune.
        model: path of the original, empty if there is no file.
        sha256: of the original file.
        output: path of the pruned model, None if it was not written.
        options: what was asked for.
        macs: multiply-accumulates of one sample.
        params: parameters.
        size: bytes, data files included.
        groups: all pruning groups.
        frozen: what stays, and why.
        notes: what else is worth knowing.
        warnings: what should not be overlooked.
        validation: None if nothing was validated.
        seconds: by stage.
        version: of this format.
    """

    tool: str
    model: str
    sha256: str
    output: str | None
    options: dict[str, Any]
    macs: Count
    params: Count
    size: Count
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    validation: Validation | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values, keys always in the same order."""
        return _to_dict(self)

    def to_json(self) -> str:
        """Returns the report as JSON in ASCII."""
        return _to_json(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the report that `to_dict` made the values from.

        Raises:
            DataError: they are no report of this version.
        """
        return _from_dict(cls, values)


@dataclass(frozen=True)
class Inspection:
    """What could be cut out of a model.

    Attributes:
        tool: version of onnxprune.
        model: path of the model, empty if there is no file.
        sha256: of the file.
        macs: multiply-accumulates of one sample.
        params: parameters.
        size: bytes, data files included.
        groups: all pruning groups.
        frozen: what stays, and why.
        macs_at_half: multiply-accumulates that would be left at ratio 0.5.
        version: of this format.
    """

    tool: str
    model: str
    sha256: str
    macs: int
    params: int
    size: int
    groups: tuple[GroupRow, ...]
    frozen: tuple[FrozenRow, ...]
    macs_at_half: int
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """Returns the inspection as plain values, keys always in the same order."""
        return _to_dict(self)

    def to_json(self) -> str:
        """Returns the inspection as JSON in ASCII."""
        return _to_json(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Returns the inspection that `to_dict` made the values from.

        Raises:
            DataError: they are no inspection of this version.
        """
        return _from_dict(cls, values)


def by_reason(frozen: Sequence[FrozenRow]) -> list[tuple[str, int, list[FrozenRow]]]:
    """Returns each reason once, with the number of channels that it freezes and its rows, the largest first."""
    rows: dict[str, list[FrozenRow]] = {}
    for row in frozen:
        rows.setdefault(row.why, []).append(row)
    found = [(why, sum(row.channels for row in own), own) for why, own in rows.items()]
    return sorted(found, key=lambda each: -each[1])


def units_of(groups: Sequence[GroupRow]) -> Count:
    """Returns how many units there are, and how many are left."""
    total = sum(group.units for group in groups)
    return Count(total, total - sum(group.cut for group in groups))


# -------------------------------------------------------------------------------------------------- files
def read(path: str | os.PathLike[str]) -> Report:
    """Returns the report in a JSON file.

    Raises:
        DataError: it is none.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{quote(os.fspath(path), 300)} is no report that can be read ({_told(error)})") from error
    if not isinstance(values, dict):
        raise DataError(f"{quote(os.fspath(path), 300)} is no report: make one with --report PATH")
    return Report.from_dict(values)


def write(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file whole or not at all.

    Raises:
        RunError: it cannot be written, and what was there still is.
    """
    target = Path(path)
    temporary = target.absolute().parent / f".onnxprune-{secrets.token_hex(8)}"
    try:
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            with contextlib.suppress(OSError):  # the error that led here says more
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{quote(os.fspath(path), 300)} cannot be written ({_told(error)})") from error


def _told(error: BaseException) -> str:
    return (getattr(error, "strerror", None) if isinstance(error, OSError) else None) or type(error).__name__


# -------------------------------------------------------------------------------------------------- plain values
_T = TypeVar("_T")


def _to_dict(record: Any) -> dict[str, Any]:
    return {"version": record.version, **_plain(record)}


def _to_json(record: Any) -> str:
    # ASCII only: names in models must not steer the terminal or the log that this is printed to.
    return json.dumps(_to_dict(record), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


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


def _from_dict(kind: type[_T], values: Mapping[str, Any]) -> _T:
    found = values.get("version")
    if found != VERSION:
        raise DataError(f"the report is of version {str(found)[:20]!r}, not {VERSION}: make it anew with --report")
    try:
        record: _T = _typed(kind, values, "the report")
    except RecursionError:
        raise DataError("the report is nested too deep: make it anew with --report") from None
    return record


def _typed(kind: Any, value: Any, where: str) -> Any:
    """Returns a plain value as what a field declares; keys that no field has are left out."""
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = next(each for each in arguments if each is not type(None))
        return None if value is None else _typed(inner, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], each, f"{where}[{k}]") for k, each in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {str(key): _typed(arguments[1], each, f"{where}.{key}") for key, each in value.items()}
    if kind is Any or (origin is None and type(value) is kind):
        return value
    if kind is float and (value is None or type(value) is int):
        return math.nan if value is None else float(value)
    raise DataError(f"{where} should not be a {type(value).__name__}: make the report anew with --report")


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise DataError(f"{where} should be an object: make the report anew with --report")
    hints = get_type_hints(kind)
    given = {field.name: value[field.name] for field in dataclasses.fields(kind) if field.name in value}
    missing = [field.name for field in dataclasses.fields(kind) if field.name not in given]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}: make the report anew with --report")
    return kind(**{name: _typed(hints[name], each, f"{where}.{name}") for name, each in given.items()})
