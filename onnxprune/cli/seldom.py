"""Modules that libraries import and seldom use: the command loads them when they are used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["postpone"]

_SELDOM = frozenset({"sympy", "onnx_ir._symbolic_shapes"})
"""onnx-ir does arithmetic on names of dims with them, which nothing here asks for: a quarter of a second."""


class _Postponing:
    """Finds the modules that are seldom used, and has them loaded at the first use of what is in them."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns how a module is loaded, or None where that is for others to say."""
        if name not in _SELDOM:
            return None
        from importlib.machinery import PathFinder  # not for --help
        from importlib.util import LazyLoader

        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def postpone() -> None:
    """Postpones what is seldom used, in this process: it is for the command, not for a library, to say so."""
    if not any(isinstance(finder, _Postponing) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Postponing())
