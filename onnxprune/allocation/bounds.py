"""Caps and floors: how many units of a group may go at most, for all groups or by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from onnxprune.allocation.knapsack import Counts
from onnxprune.engine.units import Group, Units
from onnxprune.errors import UsageError, quote

__all__ = ["Bounds", "bounds_of", "most_that_may_go", "parse_bounds"]

Bounds = tuple[tuple[str, float], ...]
"""Pairs of a glob over the names of groups and of what makes them, and a number; the last that matches counts."""

_NUMBER = re.compile(r"\d*\.?\d+(e-?\d+)?|\d+\.")


def parse_bounds(option: str, texts: Sequence[str]) -> Bounds:
    """Returns bounds from texts such as `0.7`, for all groups, or `conv1*=0.3`, which goes before it.

    Raises:
        UsageError: a text holds no number.
    """
    found = []
    for text in texts:
        pattern, _, number = text.rpartition("=")
        if not _NUMBER.fullmatch(number.strip()):
            raise UsageError(f"{option} {quote(text)}: give a number, or a pattern of names and one, like 'conv1*=...'")
        found.append((pattern.strip() or "*", float(number)))
    return tuple(sorted(found, key=lambda bound: bound[0] != "*"))


def bounds_of(option: str, value: float | Mapping[str, float] | None, *, whole: bool) -> Bounds:
    """Returns bounds from a number, or from numbers by pattern (the last that matches counts), checked.

    Args:
        option: the name of the option.
        value: what was given.
        whole: a number of units, at least 1; else a share, at least 0 and up to 1.

    Raises:
        UsageError: a number makes no sense.
    """
    if value is None:
        return ()
    found = tuple(value.items()) if isinstance(value, Mapping) else (("*", value),)
    for _, number in found:
        if whole and (number < 1 or number != int(number)):
            raise UsageError(f"{option} {number:g}: give how many units of a group stay at least, 1 or more")
        if not whole and not 0 <= number <= 1:
            raise UsageError(f"{option} {number:g}: give the share of a group's units that may go, 0 to 1, like 0.7")
    return found


def most_that_may_go(units: Units, chosen: Sequence[bool], max_ratio: Bounds, min_units: Bounds) -> Counts:
    """Returns for each group how many units may go at most; one always stays.

    Args:
        units: the removable units.
        chosen: for each group whether it may be cut at all.
        max_ratio: shares that may go at most.
        min_units: numbers that stay at least.

    Raises:
        UsageError: a pattern matches no group.
    """
    names = [_names_of(units, group) for group in units.groups]
    for option, bounds in (("max-ratio-per-group", max_ratio), ("min-units", min_units)):
        for pattern, _ in bounds:
            if pattern != "*" and not any(_meant(own, pattern) for own in names):
                raise UsageError(f"{option} {quote(pattern)} matches no group: `onnxprune inspect` lists the names")
    return tuple(
        max(min(len(group) - 1, int(_bound(own, max_ratio, 1.0) * len(group) + 1e-9),
                len(group) - int(_bound(own, min_units, 1))), 0)
        if ok
        else 0
        for group, own, ok in zip(units.groups, names, chosen, strict=True)
    )  # fmt: skip


def _names_of(units: Units, group: Group) -> set[str]:
    """Returns a group's name, and those of the weight and the node that make it: not of those that read it."""
    uses = [units.coupling.uses[u] for u, _ in group.members]
    makers = [use for use in uses if group.name in (use.name, f"{use.name}:{group.name.rpartition(':')[2]}")]
    nodes = {units.coupling.nodes[use.node].name or "" for use in makers}
    return ({group.name} | {use.name for use in makers} | nodes) - {""}


def _bound(names: set[str], bounds: Bounds, otherwise: float) -> float:
    return next((value for pattern, value in reversed(bounds) if _meant(names, pattern)), otherwise)


def _meant(names: set[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)
