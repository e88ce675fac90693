"""Options written out as the command line that asks for them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from onnxprune.options import Options

__all__ = ["as_arguments"]

_FLAGS = {"targets": "--target"}
_IMPLIED = {"hold_out"}  # by other options


def as_arguments(options: Mapping[str, Any]) -> str:
    """Returns the arguments that mean these options (`Options.to_dict`, or read from JSON) without the defaults."""
    usual = Options().to_dict()
    words: list[str] = []
    for name, value in options.items():
        if name not in _IMPLIED and _plain(value) != _plain(usual.get(name)):
            words.extend(_words(_FLAGS.get(name, f"--{name.replace('_', '-')}"), value))
    return shlex.join(words)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _words(flag: str, value: Any) -> Iterator[str]:
    if isinstance(value, bool):
        yield flag if value else flag.replace("--", "--no-", 1)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from (flag, f"{key}={_number(each)}")
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from (flag, _number(each))
    elif value is not None:
        yield from (flag, _number(value))


def _number(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)
