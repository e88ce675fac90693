"""Measured times by what was measured, kept on disk for one machine: the only clock that a plan ever sees.

The folder is `$ONNXPRUNE_CACHE`, else `onnxprune` in the user's cache folder. One file holds the times of one
processor, provider, number of threads and version of onnxruntime. A file that is damaged or foreign counts as empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime as ort

from onnxprune.errors import RunError
from onnxprune.reports.records import write

__all__ = ["Timetable", "cache_folder", "open_timetable"]

VERSION = 1
_MOST_BYTES = 1 << 26


@dataclass(eq=False)
class Timetable:
    """Milliseconds by key.

    Attributes:
        where: what the times hold for, in words.
        path: the file that keeps them, None for none.
        times: milliseconds by key, -1 for what cannot be measured.
        used: keys that were asked for.
    """

    where: str
    path: Path | None = None
    times: dict[str, float] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def get(self, key: str, measure: Callable[[], float | None]) -> float | None:
        """Returns the milliseconds of a key, measured if it is not there yet; None for what cannot be measured."""
        if key not in self.times:
            self.put(key, measure())
        return self.known(key)

    def known(self, key: str) -> float | None:
        """Returns the milliseconds of a key, None for what is not there or cannot be measured."""
        self.used.add(key)
        ms = self.times.get(key, -1.0)
        return None if ms < 0 else ms

    def put(self, key: str, ms: float | None) -> None:
        """Keeps the milliseconds of a key, None for what cannot be measured."""
        # rounded, so that what is kept is what is used
        self.times[key] = -1.0 if ms is None else float(f"{max(ms, 1e-6):.6g}")

    @property
    def digest(self) -> str:
        """SHA-256 of all times that were used: equal tables give equal plans."""
        rows = [(key, self.times.get(key)) for key in sorted(self.used)]
        return hashlib.sha256(json.dumps([self.where, rows]).encode()).hexdigest()

    def save(self) -> None:
        """Writes the times for the next run, whole or not at all; without a place to write to nothing is lost."""
        if self.path is None:
            return
        times = {**_read(self.path, self.where), **self.times}  # another process may have been here
        text = json.dumps({"onnxprune_times": VERSION, "where": self.where, "ms": times}, indent=0, sort_keys=True)
        with contextlib.suppress(OSError, RunError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write(self.path, text + "\n")


def open_timetable(providers: Sequence[str], threads: int) -> Timetable:
    """Returns the times that are known on this machine for these providers and threads."""
    where = "; ".join(
        (
            processor(),
            f"{os.cpu_count()} cores",
            " ".join(providers),
            f"{threads} threads",
            f"onnxruntime {ort.__version__}",
        )
    )
    name = hashlib.sha256(where.encode()).hexdigest()[:16]
    path = cache_folder() / f"times-{name}.json"
    return Timetable(where, path, _read(path, where))


def cache_folder() -> Path:
    """Returns where measured times are kept."""
    own = os.environ.get("ONNXPRUNE_CACHE")
    if own:
        return Path(own)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "onnxprune"


def processor() -> str:
    """Returns the processor's name, and what it can do where the system tells."""
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
        flags = re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.MULTILINE)
        if name or flags:
            able = hashlib.sha256(flags[1].encode()).hexdigest()[:8] if flags else ""
            return f"{name[1] if name else platform.machine()} {able}".strip()
    return platform.processor() or platform.machine()


def _read(path: Path, where: str) -> dict[str, float]:
    """Returns the times in a file, none where it is not one of ours for this machine."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if path.stat().st_size > _MOST_BYTES:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["onnxprune_times"] != VERSION or found["where"] != where:
            return {}
        times = {str(key): float(ms) for key, ms in found["ms"].items()}
        if all(math.isfinite(ms) for ms in times.values()):
            return times
    return {}
