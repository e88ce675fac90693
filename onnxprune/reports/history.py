"""What was done to a model, kept in the model: each pruning adds an entry to its metadata and touches no other.

An entry is JSON under the key `onnxprune.history.N`, N = 1, 2, ... It holds what decides about the written bytes and
nothing else: no time, no path, no name of the model, and nothing that was measured by running it, since the same input
must give the same file on any machine. What was measured stands in the report. docs/plans.md describes the format.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onnxprune.errors import DataError, ModelError, quote
from onnxprune.graph.files import read_model_file
from onnxprune.graph.guard import parse
from onnxprune.plan import KeptLists, Plan
from onnxprune.reports.records import Record
from onnxprune.reports.report import Count

__all__ = ["History", "Step", "append", "plan_of", "read", "steps"]

VERSION = 1

_KEY = "onnxprune.history."
_MOST = 1 << 20  # characters of all entries together from which on plans are left out
_OPTIONS = 1 << 13  # characters of the options from which on they are left out
_READ = 1 << 22  # characters of an entry that is read at all
_STEPS = 10_000
_INDICES = 1 << 24  # of a plan that is read


@dataclass(frozen=True)
class Step:
    """One pruning.

    Attributes:
        number: from 1 on.
        tool: version of onnxprune.
        sha256: of the .onnx that was pruned.
        macs: multiply-accumulates of one sample.
        params: parameters.
        bytes: of the model that was pruned, data files included.
        units: of all pruning groups.
        data: what the weights were refitted on, in words; empty: nothing.
        samples: how many of them.
        options: what was asked for.
        has_plan: whether the plan is kept, too.
    """

    number: int
    tool: str
    sha256: str
    macs: Count
    params: Count
    bytes: int
    units: Count
    data: str
    samples: int
    options: dict[str, Any]
    has_plan: bool


@dataclass(frozen=True)
class History(Record):
    """The prunings that a model remembers.

    Attributes:
        model: path of the model.
        sha256: of the file.
        steps: the first pruning first.
    """

    kind: ClassVar[str] = "history"

    model: str
    sha256: str
    steps: tuple[Step, ...]


# -------------------------------------------------------------------------------------------------- writing
def append(
    metadata: MutableMapping[str, str],
    plan: Plan,
    *,
    tool: str,
    macs: Count,
    params: Count,
    size: int,
    data: str = "",
    samples: int = 0,
) -> None:
    """Adds a pruning to a model's metadata; what stands there stays as it is.

    Args:
        metadata: of the model that is about to be written.
        plan: what was cut.
        tool: version of onnxprune.
        macs: multiply-accumulates of one sample.
        params: parameters.
        size: bytes of the model that was pruned.
        data: what the weights were refitted on, in words.
        samples: how many of them.
    """
    entries = list(_entries(metadata))
    cut = sum(len(group.cut) for group in plan.groups)
    units = sum(group.units for group in plan.groups)
    packed = _packed(plan)
    options = packed.pop("options")
    entry = {
        "version": VERSION,
        "tool": tool,
        "sha256": plan.model,
        "macs": [macs.before, macs.after],
        "params": [params.before, params.after],
        "bytes": size,
        "units": [units, units - cut],
        "data": data[:200],
        "samples": samples,
        "options": options if len(_json(options)) <= _OPTIONS else {},
        "plan": packed,
    }
    if entry["options"] != options or sum(map(len, entries)) + len(_json(entry)) > _MOST:
        entry["plan"] = None
    metadata[f"{_KEY}{len(entries) + 1}"] = _json(entry)


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _entries(metadata: Mapping[str, str]) -> Iterator[str]:
    """Yields the entries up to the first number that is missing."""
    for number in range(1, _STEPS):
        if (entry := metadata.get(f"{_KEY}{number}")) is None:
            return
        yield entry


# Index lists become bit masks, and equal masks are written once: about a sixth of a character for each unit. No
# compression: its output differs between versions of zlib, and the same input must give the same file.
def _packed(plan: Plan) -> dict[str, Any]:
    """Returns a plan's JSON with masks in the place of indices."""
    masks: dict[str, int] = {}

    def mask(indices: Sequence[int], count: int) -> int:
        bits = np.zeros(count, np.uint8)
        bits[list(indices)] = 1
        text = base64.b64encode(np.packbits(bits, bitorder="little").tobytes()).decode("ascii")
        return masks.setdefault(text, len(masks))

    def masked(kept: tuple[int, ...] | KeptLists, count: int) -> Any:
        if isinstance(kept, KeptLists):
            return {"along": kept.along, "lists": [mask(each, count) for each in kept.lists]}
        return mask(kept, count)

    groups = []
    for group in plan.groups:
        groups.append({"name": group.name, "units": group.units, "cut": mask(group.cut, group.units)})
        if group.rows:
            groups[-1]["rows"] = [mask(row, group.units) for row in group.rows]
    tensors = [
        {**vars(tensor), "kept": {axis: masked(kept, tensor.shape[int(axis)]) for axis, kept in tensor.kept.items()}}
        for tensor in plan.tensors
    ]
    return {**plan.to_dict(), "groups": groups, "tensors": tensors, "masks": list(masks)}


# -------------------------------------------------------------------------------------------------- reading
def read(path: Path) -> tuple[History, dict[str, str]]:
    """Returns what a model file remembers, and its metadata.

    Raises:
        UsageError: there is no such file.
        ModelError: it is no model, or its history cannot be read.
    """
    data = read_model_file(path)
    proto = parse(data, quote(os.fspath(path), 300))
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    return History(str(path), hashlib.sha256(data).hexdigest(), steps(metadata)), metadata


def steps(metadata: Mapping[str, str]) -> tuple[Step, ...]:
    """Returns the prunings that a model's metadata tell of.

    Raises:
        ModelError: an entry cannot be read.
    """
    return tuple(_step(number, entry) for number, entry in enumerate(_entries(metadata), 1))


def plan_of(metadata: Mapping[str, str], number: int) -> Plan:
    """Returns the plan of a step, as it was written when the model was pruned.

    Raises:
        DataError: there is no such step, or it has kept no plan.
        ModelError: its entry cannot be read.
    """
    entries = list(_entries(metadata))
    if not 1 <= number <= len(entries):
        raise DataError(
            f"there is no step {number}: the model remembers {len(entries)}; `onnxprune history` shows them"
        )
    entry = _loaded(number, entries[number - 1])
    if entry.get("plan") is None:
        raise DataError(f"step {number} has kept no plan: it was too large; keep plans in files (--plan PATH)")
    try:
        return Plan.from_dict({**_unpacked(entry["plan"]), "options": entry["options"]}, f"step {number}")
    except (DataError, *_WRONG) as error:
        raise _damaged(number) from error


_WRONG = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, MemoryError)


def _damaged(number: int) -> ModelError:
    return ModelError(
        f"step {number} of the model's history cannot be read: its metadata were changed, or written by a newer version"
    )


def _loaded(number: int, text: str) -> dict[str, Any]:
    if len(text) > _READ:
        raise _damaged(number)
    try:
        entry = json.loads(text)
        if entry["version"] != VERSION:
            raise _damaged(number)
    except _WRONG as error:
        raise _damaged(number) from error
    assert isinstance(entry, dict)
    return entry


def _step(number: int, text: str) -> Step:
    entry = _loaded(number, text)
    try:
        return Step(
            number=number,
            tool=str(entry["tool"]),
            sha256=str(entry["sha256"]),
            macs=_count(entry["macs"]),
            params=_count(entry["params"]),
            bytes=int(entry["bytes"]),
            units=_count(entry["units"]),
            data=str(entry["data"]),
            samples=int(entry["samples"]),
            options=dict(entry["options"]),
            has_plan=entry["plan"] is not None,
        )
    except _WRONG as error:
        raise _damaged(number) from error


def _count(values: Sequence[Any]) -> Count:
    before, after = values
    return Count(int(before), int(after))


def _unpacked(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a plan's JSON with indices in the place of masks."""
    masks = [np.frombuffer(base64.b64decode(text, validate=True), np.uint8) for text in plan["masks"]]

    left = _INDICES

    def indices(number: int, count: int) -> list[int]:
        nonlocal left
        left -= count
        if count < 0 or left < 0 or len(masks[number]) != -(-count // 8):
            raise ValueError(f"mask {number} does not have {count} bits")
        found: list[int] = np.flatnonzero(np.unpackbits(masks[number], count=count, bitorder="little")).tolist()
        return found

    def kept(told: Any, count: int) -> Any:
        if isinstance(told, dict):
            return {**told, "lists": [indices(number, count) for number in told["lists"]]}
        return indices(told, count)

    groups = [
        {
            **group,
            "cut": indices(group["cut"], group["units"]),
            "rows": [indices(number, group["units"]) for number in group.get("rows", ())],
        }
        for group in plan["groups"]
    ]
    tensors = [
        {**each, "kept": {axis: kept(told, each["shape"][int(axis)]) for axis, told in each["kept"].items()}}
        for each in plan["tensors"]
    ]
    return {**{key: value for key, value in plan.items() if key != "masks"}, "groups": groups, "tensors": tensors}
