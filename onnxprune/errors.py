"""The errors that onnxprune raises, each with the exit code that the command gives for it.

    OnnxPruneError            7
    ├── GateError             1   a gate was judged and failed
    ├── UsageError            2   an option, a path or a combination of them makes no sense
    ├── ModelError            3   the model is broken, hostile or not supported
    ├── DataError             4   calibration or evaluation data, a plan or statistics file is no good
    ├── ProviderError         5   an execution provider, operator or package is not there
    ├── NothingToPruneError   6   no unit can be cut
    ├── TargetError           6   the target is out of reach
    └── RunError              7   something failed while running (disk, time, memory)
        └── ValidationError   7   the pruned model does not compute what it should

Each takes one message: a single line that says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

__all__ = [
    "DataError",
    "GateError",
    "ModelError",
    "NothingToPruneError",
    "OnnxPruneError",
    "ProviderError",
    "RunError",
    "TargetError",
    "UsageError",
    "ValidationError",
    "one_of",
    "quote",
]

_LINE_LIMIT = 2000


def quote(name: str, limit: int = 80) -> str:
    """Returns a name from a model or a file in quotes, safe to print: nothing that steers a terminal, never long."""
    shown = _printable(name[: limit + 1])
    return f"'{shown}'" if len(shown) <= limit else f"'{shown[:limit]}...'"


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class OnnxPruneError(Exception):
    """An error that is the user's to mend: shown as one line, without a traceback."""

    exit_code = 7

    def __init__(self, message: str) -> None:
        # Names in models are untrusted: a line break or an escape sequence in one must not reach a terminal or CI log.
        line = _printable(message[:_LINE_LIMIT])
        super().__init__(line if len(message) <= _LINE_LIMIT else line + " ...")


class GateError(OnnxPruneError):
    """A gate was judged and failed."""

    exit_code = 1


class UsageError(OnnxPruneError):
    """An option, a path or a combination of them makes no sense."""

    exit_code = 2


class ModelError(OnnxPruneError):
    """The model is broken, hostile or not supported."""

    exit_code = 3


class DataError(OnnxPruneError):
    """Calibration or evaluation data, a plan or a statistics file is no good."""

    exit_code = 4


class ProviderError(OnnxPruneError):
    """An execution provider, an operator or a package is not there."""

    exit_code = 5


class NothingToPruneError(OnnxPruneError):
    """No unit of the model can be cut."""

    exit_code = 6


class TargetError(OnnxPruneError):
    """The target is out of reach."""

    exit_code = 6


class RunError(OnnxPruneError):
    """Something failed while running: disk, time or memory."""

    exit_code = 7


class ValidationError(RunError):
    """The pruned model does not compute what it should."""


def one_of(option: str, value: str, known: Sequence[str]) -> None:
    """Passes if `value` is one of `known`.

    Raises:
        UsageError: it is not; the nearest one is named.
    """
    if value not in known:
        near = get_close_matches(value, known, 1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{option} {quote(value)} is not known: {hint}one of {', '.join(known)}")
