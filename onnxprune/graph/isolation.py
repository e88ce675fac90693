"""A process of its own for the work on a model that nobody vouches for.

Native libraries die of models, or take all memory and time. The process that was started by the user only waits: it
ends the other one when its time is up or the user has had enough, removes what that leaves behind, and says in one
line what happened. Nothing of weight is imported here: the process that waits is small.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import RunError, UsageError, quote
from onnxprune.graph import unfinished

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

__all__ = ["GRACE", "Limits", "run_apart"]

GRACE = 1.0
"""Seconds that a process has to end by itself before it is killed."""

_PATIENCE = 0.25  # seconds between two looks at the clock
_ROOM = 64 << 20  # bytes that must be free beyond what the program itself takes
_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_JOURNAL, _NATIVE = "journal", "native"  # files in the folder of a run


@dataclass(frozen=True)
class Limits:
    """How long a process may take and how much memory it may have.

    Attributes:
        seconds: of wall clock; None for ever.
        memory: bytes that may be allocated (mapped files do not count); None as many as there are.
    """

    seconds: float | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        """Refuses what is no limit.

        Raises:
            UsageError: names the option.
        """
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise UsageError(
                f"--timeout {self.seconds} is no time: give the seconds after which to give up, more than 0"
            )
        if self.memory is not None and not sys.platform.startswith("linux"):
            raise UsageError("--max-memory works on Linux only: leave it out, and limit the container instead")

    @classmethod
    def parse(cls, seconds: float | None, memory: str | None) -> Limits:
        """Returns the limits of the options `--timeout` and `--max-memory`.

        Raises:
            UsageError: one is no limit.
        """
        return cls(seconds, None if memory is None else _size(memory))

    def bind_memory(self) -> None:
        """Binds this process to the limit of memory, for good.

        Raises:
            UsageError: the program itself takes more.
        """
        if self.memory is None:
            return
        import resource

        import onnxprune.pipeline  # noqa: F401 - what it takes is not the model's fault

        need = _allocated() + _ROOM
        if need > self.memory:
            raise UsageError(f"--max-memory {self.memory:,} is too little: the program itself needs {need:,} bytes")
        resource.setrlimit(resource.RLIMIT_DATA, (self.memory, self.memory))


def _allocated() -> int:
    """Returns the bytes that count against the limit."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["VmData"].split()[0]) << 10


def _size(text: str) -> int:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.IGNORECASE)
    if found is None or found[2].lower() not in _UNITS or not float(found[1]):
        raise UsageError(f"--max-memory {quote(text, 40)} is no size: give it like 2GB, 512MiB or 2000000000")
    return int(min(float(found[1]) * _UNITS[found[2].lower()], 2**62))


def run_apart(
    work: Callable[..., int], *args: Any, limits: Limits, native: bool = False, method: str | None = None
) -> int:
    """Returns the exit code of some work that is done in a process of its own.

    Args:
        work: what to do; it tells its user itself what goes wrong, and returns an exit code.
        args: passed to it.
        limits: of time; that of memory is for the work to bind itself to.
        native: let pass what native libraries print; else it is only shown, one line of it, if they die.
        method: how the process is started, see `multiprocessing`; default: by a fork where there is one.

    Raises:
        RunError: the process died, ran out of time, or was interrupted; nothing that it was making is left.
    """
    method = method or ("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")
    context: Any = multiprocessing.get_context(method)
    with _own_folder() as folder:
        process = context.Process(target=_apart, args=(work, args, folder, native))
        guard = _Guard(process, limits.seconds)
        with guard.listening():
            process.start()
            guard.wait()
        code = process.exitcode
        if code < 0 or guard.message:
            unfinished.remove_left(folder / _JOURNAL)
            _show_cursor()
            raise RunError(guard.message or _died(-code, folder / _NATIVE, limits))
        return int(code)


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Gives a folder for all temporary files of a run, so that they go with it however it ends."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True)
    except OSError as error:
        raise RunError(
            f"no temporary files can be made ({error.strerror or error}): set TMPDIR to a folder with room"
        ) from None
    with folder as name:
        yield Path(name)


# -------------------------------------------------------------------------------------------------- the waiting side
@dataclass
class _Guard:
    """Waits for a process, and ends it when it is time to."""

    process: BaseProcess
    seconds: float | None
    message: str = ""
    _deadline: float = field(default=math.inf, init=False)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals that ask for an end, for the process as well."""
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
        before = {}
        for name in names:
            number = getattr(signal, name)
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup wants it
                before[number] = signal.signal(number, self._asked)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self) -> None:
        """Returns when the process has ended, one way or the other."""
        if self.seconds is not None:
            self._deadline = time.monotonic() + self.seconds
        while self.process.exitcode is None:
            self.process.join(min(max(self._deadline - time.monotonic(), 0.01), _PATIENCE))
            if self.process.exitcode is None and time.monotonic() >= self._deadline:
                self._end(
                    f"gave up after {self.seconds or 0:g} seconds (--timeout): give it more time, or a smaller model"
                )
        self.process.join()

    def _asked(self, number: int, frame: object) -> None:
        self._end("interrupted: run it again")

    def _end(self, message: str) -> None:
        """Asks the process to end; the second time, because its time is up or the user has no patience, kills it."""
        again, self.message = bool(self.message), self.message or message
        self._deadline = time.monotonic() + GRACE
        with contextlib.suppress(AttributeError, ValueError):  # not even started, or gone
            if again:
                self.process.kill()
            else:
                self.process.terminate()


def _died(number: int, native: Path, limits: Limits) -> str:
    """Returns what to say of a process that a signal ended."""
    if number == getattr(signal, "SIGKILL", 9):
        return (
            "the system ended the process that worked on the model, most likely for lack of memory: "
            "take a machine with more, or a smaller model"
        )
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    said = _last_line(native)
    hint = "give it more than --max-memory, " if limits.memory is not None and number == signal.SIGABRT else ""
    return (
        f"onnxruntime, or another native library, crashed on the model ({name}{said}): "
        f"{hint}export the model again, or try another version of onnxruntime"
    )


def _last_line(path: Path) -> str:
    """Returns the last words of native libraries, to go into a message."""
    with contextlib.suppress(OSError):
        lines = [line for line in path.read_text(errors="replace")[-4000:].splitlines() if line.strip()]
        if lines:
            return f", {quote(lines[-1].strip(), 200)}"
    return ""


def _show_cursor() -> None:
    """Brings back the cursor of a terminal, which a spinner that was killed has hidden, on a clean line."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[2K\x1b[?25h")
        sys.stderr.flush()


# -------------------------------------------------------------------------------------------------- the working side
class _Stop(BaseException):
    """Unwinds everything: the other process has decided that this one ends."""


def _apart(work: Callable[..., int], args: tuple[Any, ...], folder: Path, native: bool) -> None:
    """Does the work; the first thing that the new process runs."""
    _answer_signals()
    threading.Thread(target=_watch_parent, args=(folder,), name="onnxprune-parent", daemon=True).start()
    _leave_no_core()
    _be_killed_first()
    tempfile.tempdir = str(folder)
    if not native:
        _catch_native(folder / _NATIVE)
    code = RunError.exit_code
    with contextlib.suppress(_Stop), unfinished.journal_to(folder / _JOURNAL):
        code = work(*args)
    _silence_streams()
    sys.exit(code)


def _answer_signals() -> None:
    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what unwinds must not be unwound
        raise _Stop

    # A terminal interrupts all processes at once, but only the one that waits decides.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, stop)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: None)


def _watch_parent(folder: Path) -> None:
    """Ends this process, and removes its traces, when the one that waits for it is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    unfinished.remove_left()
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    os._exit(RunError.exit_code)


def _leave_no_core() -> None:
    """Keeps the image of a process that crashes out of the user's folder."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _be_killed_first() -> None:
    """Asks the system to end this process, and no other one, when memory runs out (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")


def _catch_native(path: Path) -> None:
    """Sends what native libraries print to a file; Python's own streams stay what they are."""
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None or stream.fileno() != number:
            continue
        stream.flush()
        kept = os.dup(number)
        own = os.fdopen(kept, "w", encoding=stream.encoding, errors=stream.errors, buffering=1 if kept == 2 else -1)
        setattr(sys, name, own)
        os.dup2(handle, number)
    os.close(handle)


def _silence_streams() -> None:
    """Flushes, and lets nothing fail that is flushed at the very end: who reads may be gone."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
