"""The plan: which units go, as a file that can be read, kept and replayed bit for bit on the same model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import DataError

VERSION = 1


@dataclass(frozen=True)
class PlannedGroup:
    """Units of one group that go, by their place in the group.

    Where the rows of a rectangle (heads, groups of a convolution, directions of a cell) lose different ones, `cut` is
    what the first row loses, and `rows` what each does.
    """

    name: str
    units: int
    cut: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class KeptLists:
    """What stays along an axis where that is not the same everywhere.

    Attributes:
        along: the axes before it that tell.
        lists: the kept indices, a list for each combination of indices that are kept along these, in order.
    """

    along: tuple[int, ...]
    lists: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class PlannedTensor:
    """What stays of one constant where one node reads it: for each cut axis the kept indices of the original."""

    name: str
    node: int
    slot: int
    shape: tuple[int, ...]
    kept: dict[str, tuple[int, ...] | KeptLists]


@dataclass(frozen=True)
class Plan:
    """Which units of a model are cut.

    Attributes:
        model: SHA-256 of the model file that the plan was made for.
        approximate: whether axes were opened that cannot be cut exactly.
        frozen: numbers of nodes whose sizes could not be rewritten, so that their labels stay.
        groups: all groups of the model.
        tensors: kept indices of every constant that loses some.
        options: what the plan was made with, for the record.
    """

    model: str
    approximate: bool
    frozen: tuple[int, ...]
    groups: tuple[PlannedGroup, ...]
    tensors: tuple[PlannedTensor, ...]
    options: dict[str, Any]

    @property
    def refits(self) -> bool:
        """Whether weights are refitted."""
        return bool(self.options.get("compensate", "auto") != "none")

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan with its version; groups and tensors are what they are."""
        return {"onnxprune_plan": VERSION, **vars(self)}

    def to_json(self) -> str:
        """Returns the plan as JSON, the same text for the same plan."""
        return json.dumps(self.to_dict(), default=vars, indent=1, sort_keys=True) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Returns the plan in a file.

        Raises:
            DataError: the file is no plan.
        """
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(path, error) from error
        return Plan.from_dict(raw, path)

    @staticmethod
    def from_dict(raw: Any, name: str | os.PathLike[str]) -> Plan:
        """Returns the plan that JSON gave as plain values; `name` is what errors call it.

        Raises:
            DataError: it is no plan.
        """
        try:
            if raw["onnxprune_plan"] != VERSION:
                raise DataError(
                    f"plan {name}: version {raw['onnxprune_plan']!r} is not {VERSION}; make it anew with --plan"
                )
            return Plan(
                model=str(raw["model"]),
                approximate=bool(raw["approximate"]),
                frozen=tuple(int(n) for n in raw["frozen"]),
                groups=tuple(
                    PlannedGroup(str(g["name"]), int(g["units"]), _indices(g["cut"]), _lists(g.get("rows", ())))
                    for g in raw["groups"]
                ),
                tensors=tuple(
                    PlannedTensor(
                        str(t["name"]),
                        int(t["node"]),
                        int(t["slot"]),
                        _indices(t["shape"]),
                        {str(axis): _kept(v) for axis, v in t["kept"].items()},
                    )
                    for t in raw["tensors"]
                ),
                options=dict(raw["options"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise _unreadable(name, error) from error


def _indices(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(map(int, values))


def _lists(values: Iterable[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(map(_indices, values))


def _kept(value: Any) -> tuple[int, ...] | KeptLists:
    return KeptLists(_indices(value["along"]), _lists(value["lists"])) if isinstance(value, dict) else _indices(value)


def _unreadable(name: str | os.PathLike[str], error: Exception) -> DataError:
    return DataError(f"{name} is no plan that can be read ({type(error).__name__}); make one with --plan PATH")
