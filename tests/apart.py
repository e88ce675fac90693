"""A program that does some work in a process of its own: `python apart.py METHOD SECONDS WORK`.

The work goes wrong in one way or another while a save is under way. Prints what the caller is told.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from onnxprune.errors import OnnxPruneError
from onnxprune.graph.isolation import Limits, run_apart
from onnxprune.graph.unfinished import Unfinished


def save() -> Unfinished:
    """Begins a save, with a temporary file and a data file that is in its place already."""
    unfinished = Unfinished(Path("out.onnx"))
    for name in (".onnxprune-0.onnx", "out.0123456789ab.data"):
        unfinished.add(Path(name).absolute())
        Path(name).write_text("new")
    tempfile.mkdtemp()
    Path("started").touch()
    return unfinished


def nothing() -> None:
    """Comes to an end."""


def spin() -> None:
    """Never ends, in Python."""
    while True:
        pass


def sleep() -> None:
    """Is stuck where no exception reaches it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    time.sleep(100)


def crash() -> None:
    """Dies of what a native library does."""
    ctypes.string_at(0)


def abort() -> None:
    """Dies with last words."""
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n\x1b[31m")
    os.abort()


def killed() -> None:
    """Is ended by the system."""
    os.kill(os.getpid(), signal.SIGKILL)


def chatter() -> None:
    """Prints past Python, on both streams, and in Python."""
    subprocess.run("echo noise; echo noise >&2", shell=True, check=True)
    os.write(1, b"noise\n")
    print("said")


def moved_in() -> None:
    """Has its .onnx in place when it dies."""
    Path("out.onnx").write_text("its data lie in out.0123456789ab.data")
    crash()


def interrupted() -> None:
    """Gets what a terminal sends to all of its processes."""
    os.kill(os.getpid(), signal.SIGINT)
    print("went on")


def work(name: str) -> int:
    """Does one of the above, and returns 5."""
    unfinished = save()
    try:
        globals()[name]()
    finally:
        unfinished.remove()
        Path("unwound").touch()
    return 5


def main() -> None:
    """Runs the work, and prints what becomes of it."""
    method, seconds, name = sys.argv[1:]
    limits = Limits(float(seconds) if seconds else None)
    try:
        print("code", run_apart(work, name, limits=limits, method=method or None))
    except OnnxPruneError as error:
        click.echo(f"{error.exit_code}: {error}")


if __name__ == "__main__":
    main()
