from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from hostile import Case, contents, corpus

from onnxprune.cli import cli
from onnxprune.cli.prune import default_output

SECONDS = 30


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Ends a test that hangs."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def over(*_: object) -> None:
        raise TimeoutError(f"still busy after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def tried(args: list[str]) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of the command; in a process of its own where it may end that."""
    if "--timeout" in args:
        command = [sys.executable, "-m", "onnxprune", *args]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
        return found.returncode, found.stdout, found.stderr
    with at_most(SECONDS):
        result = CliRunner().invoke(cli, args)
    return result.exit_code, result.stdout, result.stderr


def name_of(case: Case) -> str:
    return ascii(f"{case.row}-{case.name}"[:60])[1:-1]


@pytest.mark.parametrize("case", corpus(), ids=name_of)
def test_the_command_survives(case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    args = case.make(tmp_path)
    old = default_output(Path(args[0]))
    if "-o" not in args and tmp_path in old.parents:
        old.write_bytes(b"an older result")
    before = contents(tmp_path)
    code, stdout, stderr = tried(args)
    assert code in case.codes, stderr
    assert capfd.readouterr().err == ""  # nor does the runtime print anything
    assert "Traceback" not in stderr
    assert all(c == "\n" or c.isprintable() for c in stdout + stderr)
    lines = stderr.splitlines()
    if code == 0:
        assert all(line.startswith("warning: ") for line in lines)
        after = contents(tmp_path)
        assert set(after) - set(before) <= {str(old.relative_to(tmp_path))} | set(data_files(after, old))
        unchanged = {name: content for name, content in before.items() if name != str(old.relative_to(tmp_path))}
        assert {name: after[name] for name in unchanged} == unchanged
    else:
        assert stdout == ""
        assert len(lines) == 1, stderr
        assert lines[0].startswith("error: ")
        assert len(lines[0]) < 2500
        assert contents(tmp_path) == before


def data_files(found: dict[str, object], output: Path) -> Iterator[str]:
    """Yields the names of files with external data of one output."""
    return (name for name in found if Path(name).name.startswith(f"{output.stem}.") and name.endswith(".data"))
