"""Giving up after a time, whatever the program is stuck in, and leaving nothing behind."""

from __future__ import annotations

import _thread
import contextlib
import math
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxprune.errors import RunError, UsageError

__all__ = ["GRACE", "time_limit"]

GRACE = 1.0
"""Seconds that the main thread has to end by itself before the process is ended from beside it."""


@contextmanager
def time_limit(seconds: float | None, leave: Callable[[str], None]) -> Iterator[None]:
    """Ends what runs inside after some seconds; for a command's main thread only.

    The main thread is interrupted, so that everything unwinds. Stuck in a runtime's kernel it does not notice: then
    the files that it was making are removed for it, and the process ends.

    Args:
        seconds: None waits for ever.
        leave: called from another thread with the message before the process ends without unwinding.

    Raises:
        UsageError: the time is no positive number.
        RunError: the time is over.
    """
    if seconds is None:
        yield
        return
    if not 0 < seconds < math.inf:
        raise UsageError(f"--timeout {seconds} is no time: give the seconds after which to give up, more than 0")
    watchdog = _Watchdog(seconds, leave)
    with _own_temporary_folder() as folder:
        watchdog.folder = folder
        try:
            try:
                watchdog.start()
                yield
            finally:
                watchdog.stop()  # an interrupt that is under way arrives before this returns
        except KeyboardInterrupt:
            watchdog.stop()  # it may have come in the middle of that
            if watchdog.fired:
                raise RunError(watchdog.message) from None
            raise


class _Watchdog(threading.Thread):
    """A thread that interrupts the main one after a time, and ends the process if that does not help."""

    def __init__(self, seconds: float, leave: Callable[[str], None]) -> None:
        super().__init__(name="onnxprune-timeout", daemon=True)
        self.seconds, self.leave = min(seconds, threading.TIMEOUT_MAX), leave
        self.folder: Path | None = None
        self.fired = False
        self.message = f"gave up after {seconds:g} seconds (--timeout): give it more time, or a smaller model"
        self._done = threading.Event()
        self._deciding = threading.Lock()

    def run(self) -> None:
        """Waits, interrupts, waits a little, and ends the process."""
        if self._done.wait(self.seconds):
            return
        with self._deciding:
            if self._done.is_set():
                return
            self.fired = True
            _thread.interrupt_main()
        if self._done.wait(GRACE):
            return
        for file in _files_in_the_making():
            with contextlib.suppress(OSError):
                file.unlink()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(Exception):
            self.leave(self.message)
            sys.stderr.flush()
        os._exit(RunError.exit_code)

    def stop(self) -> None:
        """Lets the main thread go on for good."""
        with self._deciding:
            self._done.set()
        self.join()


def _files_in_the_making() -> list[Path]:
    """Returns the temporary files of unfinished saves in this process."""
    writing = sys.modules.get("onnxprune.writing")
    return [] if writing is None else writing.unfinished()


@contextmanager
def _own_temporary_folder() -> Iterator[Path]:
    """Gives a folder that all temporary files go to, so that they can be removed from another thread."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="onnxprune-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = before
