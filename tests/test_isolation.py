"""The process that waits outlives whatever becomes of the one that works, and leaves nothing of it behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxprune.errors import UsageError
from onnxprune.graph.isolation import GRACE, Limits

APART = Path(__file__).parent / "apart.py"
METHODS = ["fork", "spawn"]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals as POSIX has them")


def start(folder: Path, work: str, seconds: str = "", method: str = "") -> subprocess.Popen[str]:
    (folder / "tmp").mkdir()
    (folder / "home").mkdir()
    return subprocess.Popen(
        [sys.executable, str(APART), method, seconds, work],
        cwd=folder / "home",
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, work: str, seconds: str = "", method: str = "") -> tuple[str, str]:
    """Returns what a program printed that did some work apart."""
    process = start(folder, work, seconds, method)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    return stdout, stderr


def left(folder: Path) -> set[str]:
    """Returns what lies in the folders that the work wrote to, but for its own marks."""
    assert not list((folder / "tmp").iterdir())
    return {path.name for path in (folder / "home").iterdir()} - {"started", "unwound"}


def until(path: Path) -> None:
    """Waits for a file."""
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("method", METHODS)
def test_the_exit_code_comes_back(method: str, tmp_path: Path) -> None:
    assert run(tmp_path, "nothing", method=method) == ("code 5\n", "")
    assert left(tmp_path) == set()


@pytest.mark.parametrize("method", METHODS)
def test_a_crash_is_one_line_and_leaves_nothing(method: str, tmp_path: Path) -> None:
    stdout, stderr = run(tmp_path, "crash", method=method)
    assert stdout.startswith("7: onnxruntime, or another native library, crashed on the model (SIGSEGV)")
    assert stderr == ""
    assert left(tmp_path) == set()


def test_last_words_are_told_in_one_safe_line(tmp_path: Path) -> None:
    stdout, stderr = run(tmp_path, "abort")
    assert "SIGABRT, '\\x1b[31m')" in stdout or "SIGABRT, 'terminate called" in stdout
    assert len(stdout.splitlines()) == 1
    assert "\x1b" not in stdout
    assert stderr == ""
    assert left(tmp_path) == set()


def test_a_process_that_the_system_ends_is_told_by_memory(tmp_path: Path) -> None:
    stdout, _ = run(tmp_path, "killed")
    assert stdout.startswith("7: the system ended the process")
    assert "memory" in stdout
    assert left(tmp_path) == set()


def test_the_data_of_a_model_that_was_moved_in_stay(tmp_path: Path) -> None:
    stdout, _ = run(tmp_path, "moved_in")
    assert stdout.startswith("7: ")
    assert left(tmp_path) == {"out.onnx", "out.0123456789ab.data"}


def test_python_code_unwinds_when_its_time_is_up(tmp_path: Path) -> None:
    stdout, stderr = run(tmp_path, "spin", "5")
    assert "gave up after" in stdout and "(--timeout)" in stdout
    assert stdout.startswith("7: ") and stderr == ""
    assert (tmp_path / "home" / "unwound").exists()
    assert left(tmp_path) == set()


def test_what_is_stuck_is_killed(tmp_path: Path) -> None:
    begun = time.monotonic()
    stdout, stderr = run(tmp_path, "sleep", "0.5")
    assert stdout.startswith("7: gave up after 0.5 seconds")
    assert stderr == ""
    assert time.monotonic() - begun < 30
    assert not (tmp_path / "home" / "unwound").exists()
    assert left(tmp_path) == set()


def test_enough_time_changes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "nothing", "100") == ("code 5\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("work", ["spin", "sleep"])
def test_an_interrupt_ends_both(number: signal.Signals, work: str, tmp_path: Path) -> None:
    process = start(tmp_path, work)
    until(tmp_path / "home" / "started")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert stdout == "7: interrupted: run it again\n"
    assert stderr == ""
    assert (tmp_path / "home" / "unwound").exists() == (work == "spin")
    assert left(tmp_path) == set()


def test_only_the_process_that_waits_decides_on_an_interrupt(tmp_path: Path) -> None:
    assert run(tmp_path, "interrupted") == ("went on\ncode 5\n", "")


def test_the_work_does_not_outlive_the_process_that_waits(tmp_path: Path) -> None:
    process = start(tmp_path, "spin")
    until(tmp_path / "home" / "started")
    process.kill()
    process.communicate(timeout=60)  # until nobody holds its streams
    assert left(tmp_path) == set()


@pytest.mark.parametrize("method", METHODS)
def test_native_libraries_print_nowhere(method: str, tmp_path: Path) -> None:
    assert run(tmp_path, "chatter", method=method) == ("said\ncode 5\n", "")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_times_that_are_none(seconds: float) -> None:
    with pytest.raises(UsageError, match="--timeout"):
        Limits.parse(seconds, None)


@pytest.mark.parametrize("size", ["", "0", "x", "2 QB", "-1", "1e9", "nan", "GB", "inf"])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(UsageError, match="--max-memory"):
        Limits.parse(None, size)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux limits what is allocated")
@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2_000_000_000), ("512MiB", 512 << 20), ("1.5 kb", 1500), ("123", 123), ("1tb", 10**12)],
)
def test_sizes(text: str, size: int) -> None:
    assert Limits.parse(None, text).memory == size


def test_the_grace_is_short() -> None:
    assert 0 < GRACE <= 2
