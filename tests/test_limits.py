"""The command in a process of its own: crashes, memory and time, seen from the shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hostile
import numpy as np
import pytest
from onnx import numpy_helper

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals as POSIX has them")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux limits what is allocated")


def start(*args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "onnxprune", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def line_of(process: subprocess.Popen[str], code: int) -> str:
    """Returns the one line of a command that fails."""
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert stdout == "" and stderr.startswith("error: ") and len(stderr.splitlines()) == 1, stderr
    return stderr


def script(folder: Path, body: str) -> Path:
    """Returns a script whose data are never there."""
    path = folder / "data.py"
    path.write_text(f"def data():\n    {body}\n    yield {{}}\n")
    return path


def sound(folder: Path) -> Path:
    (folder / "model.pruned.onnx").write_bytes(b"an older result")
    return hostile.write(hostile.sound(), folder)


def test_a_crash_is_one_line_and_the_destination_stays(tmp_path: Path) -> None:
    path, data = sound(tmp_path), script(tmp_path, "import ctypes; ctypes.string_at(0)")
    before = hostile.contents(tmp_path)
    line = line_of(start(path, "--ratio", "0.5", "--data-script", data), 7)
    assert "crashed on the model (SIGSEGV" in line
    assert hostile.contents(tmp_path) == before


def test_an_interrupt_is_one_line_and_the_destination_stays(tmp_path: Path) -> None:
    waiting = tmp_path.parent / f"{tmp_path.name}.waiting"
    body = f"import pathlib, time; pathlib.Path({str(waiting)!r}).touch(); time.sleep(100)"
    path, data = sound(tmp_path), script(tmp_path, body)
    before = hostile.contents(tmp_path)
    process = start(path, "--ratio", "0.5", "--data-script", data)
    while not waiting.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert line_of(process, 7) == "error: interrupted: run it again\n"
    assert hostile.contents(tmp_path) == before


@linux
def test_memory_is_bounded(tmp_path: Path) -> None:
    model = hostile.bomb("Tile")
    amount = next(each for each in model.graph.initializer if each.name == "amount")
    amount.CopyFrom(numpy_helper.from_array(np.array([1, 1 << 24]), "amount"))  # 2 GB at a batch of 2
    path = hostile.write(model, tmp_path)
    process = start(path, "--ratio", "0.5", "--max-memory", "700MB")
    line = line_of(process, 3)
    assert "memory" in line or "bytes" in line or "alloc" in line


@linux
def test_too_little_memory_for_the_program_is_told(tmp_path: Path) -> None:
    line = line_of(start(sound(tmp_path), "--ratio", "0.5", "--max-memory", "1MB"), 2)
    assert "--max-memory" in line and "needs" in line


@linux
def test_enough_memory_changes_nothing(tmp_path: Path) -> None:
    path = hostile.write(hostile.sound(), tmp_path)
    results = []
    for more in ((), ("--max-memory", "2GB")):
        process = start(path, "--ratio", "0.5", "--criterion", "l1", "-q", *more)
        process.communicate(timeout=120)
        assert process.returncode == 0
        results.append((tmp_path / "model.pruned.onnx").read_bytes())
    assert results[0] == results[1]
