"""Seconds by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Clock"]


@dataclass
class Clock:
    """Seconds by stage, and a word to the user at the start of each.

    Attributes:
        progress: called with the name of a stage as it starts, and with how far it is.
        seconds: what each stage took, all its turns together.
    """

    progress: Callable[[str], None] | None
    seconds: dict[str, float] = field(default_factory=dict)
    _within: float = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what runs inside; a stage within another counts for itself only."""
        self.tell(name)
        start, within = time.perf_counter(), self._within
        self._within = 0.0
        yield
        elapsed = time.perf_counter() - start
        self.seconds[name] = round(self.seconds.get(name, 0.0) + elapsed - self._within, 3)
        self._within = within + elapsed

    def tell(self, what: str) -> None:
        """Says what is going on."""
        if self.progress is not None:
            self.progress(what)

    def counter(self, name: str) -> Callable[[int, int], None]:
        """Returns what tells how many steps of a stage are done."""
        return lambda done, of: self.tell(f"{name} {done + 1}/{of}")
