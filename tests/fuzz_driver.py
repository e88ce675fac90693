"""Trying mutations fast: in worker processes that have imported everything, one after another, watched from outside.

A worker that dies or hangs costs its mutation, not the run: it is ended, what happened is noted, and another one goes
on. What the command prints goes where it can be looked at, at the level of file descriptors, so that a line that a
native library prints is seen too.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hostile import contents

CODES = frozenset({0, 3, 5, 6, 7})
"""What may come of a damaged model: done, rejected, cannot be run here, nothing to prune, failed while running."""
LIMIT = 20.0
"""Seconds that one mutation may take; then it is ended, as `--timeout` does it."""
MEMORY = 4 << 30
"""Bytes that a worker may allocate, as `--max-memory` does it."""
_ROUNDS = 150  # mutations until a worker is replaced: what one leaves behind must not help or harm all others


@dataclass(frozen=True)
class Finding:
    """What came of one mutation.

    Attributes:
        seed: of the mutation.
        code: exit code; the negative number of the signal if the process died; None if it ran out of time.
        seconds: that it took.
        peak: bytes of memory at most.
        faults: what is wrong with that, in words; a good run has none.
        stderr: what was printed there.
        what: base and edits.
    """

    seed: int
    code: int | None
    seconds: float
    peak: int
    faults: tuple[str, ...] = ()
    stderr: str = ""
    what: str = ""


def faults_of(code: int, stdout: str, stderr: str, native: str, *, command: str) -> Iterator[str]:
    """Yields what is wrong with how a command ended, whatever it did to files."""
    lines = stderr.splitlines()
    if code not in CODES:
        yield f"exit code {code}"
    if "Traceback" in stderr:
        yield "traceback"
    if any(c != "\n" and not c.isprintable() for c in stdout + stderr):
        yield "unprintable output"
    if native:
        yield f"a library printed {native[:300]!r}"
    if code == 0:
        if any(not line.startswith("warning: ") for line in lines):
            yield "stderr holds more than warnings"
        if command == "prune" and '"validation"' not in stdout:
            yield "no validation in the report"
    else:
        if stdout:
            yield "stdout of a failure"
        if len(lines) != 1 or not stderr.startswith("error: "):
            yield f"{len(lines)} lines instead of one error"


def attempt(seed: int, folder: Path) -> Finding:
    """Returns what comes of a seed's mutation, tried in this very process."""
    from fuzzing import draw

    mutation = draw(seed)
    for old in list(folder.iterdir()):
        old.unlink()
    model, output = folder / "model.onnx", folder / "out.onnx"
    model.write_bytes(mutation.data)
    output.write_bytes(b"an older result")
    arguments = [*mutation.arguments(model), "--json"]
    if mutation.command[0] == "prune":
        arguments += ["-o", str(output)]
    before = contents(folder)
    start = time.perf_counter()
    code, stdout, stderr, native = _run(arguments)
    seconds = time.perf_counter() - start
    faults = list(faults_of(code, stdout, stderr, native, command=mutation.command[0]))
    after = contents(folder)
    written = code == 0 and mutation.command[0] == "prune" and "--dry-run" not in mutation.command
    if not written and after != before:
        changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
        faults.append(f"files were changed: {changed}")
    if written:
        faults += _wrong_output(output, set(after), mutation.data)
    what = f"{mutation.base}: {', '.join(mutation.edits)}; {' '.join(mutation.command)}"
    return Finding(seed, code, seconds, _peak(), tuple(faults), stderr[-3000:], what)


def _wrong_output(output: Path, there: set[str], original: bytes) -> Iterator[str]:
    """Yields what is wrong with a pruned model; that it computes what it should the command itself has proved."""
    import onnx

    if left := {name for name in there if name not in ("model.onnx", "out.onnx") and not name.startswith("out.")}:
        yield f"files were left: {sorted(left)}"
    try:
        onnx.checker.check_model(onnx.load_from_string(original), full_check=True)
    except Exception:  # the checker's own classes: what it refuses before it may refuse after
        return
    try:
        onnx.checker.check_model(str(output), full_check=True)
    except Exception as error:
        yield f"the output is not valid: {str(error)[:300]}"


def _run(arguments: list[str]) -> tuple[int, str, str, str]:
    """Returns exit code, stdout, stderr, and what was printed past Python."""
    from click.testing import CliRunner

    from onnxprune.cli import cli

    with tempfile.TemporaryFile() as file:
        kept = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            result = CliRunner().invoke(cli, arguments)
        finally:
            for old, place in zip(kept, (1, 2), strict=True):
                os.dup2(old, place)
                os.close(old)
        file.seek(0)
        native = file.read().decode(errors="replace")
    return result.exit_code, result.stdout, result.stderr, native


def _peak() -> int:
    """Returns the most memory since the last call, in bytes (Linux)."""
    with contextlib.suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        Path("/proc/self/clear_refs").write_text("5")
        return int(lines["VmHWM"].split()[0]) << 10
    return 0


def retried(finding: Finding) -> Finding:
    """Returns what the command itself makes of a mutation that ended a worker: in one line, exit code 7."""
    from fuzzing import draw

    mutation = draw(finding.seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        model, output = Path(name) / "model.onnx", Path(name) / "out.onnx"
        model.write_bytes(mutation.data)
        output.write_bytes(b"an older result")
        before = contents(Path(name))
        limits = ["--timeout", str(LIMIT), "--max-memory", str(MEMORY), "--json"]
        target = ["-o", str(output)] if mutation.command[0] == "prune" else []
        command = [sys.executable, "-m", "onnxprune", *mutation.arguments(model), *limits, *target]
        start = time.perf_counter()
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10 * LIMIT)
        seconds = time.perf_counter() - start
        faults = list(faults_of(found.returncode, found.stdout, found.stderr, "", command=mutation.command[0]))
        if found.returncode and contents(Path(name)) != before:
            faults.append("files were changed")
    return replace(finding, code=found.returncode, seconds=seconds, faults=tuple(faults), stderr=found.stderr)


def _work(seeds: list[int], pipe: Connection, memory: int) -> None:
    """Tries seeds, and tells of each when it begins and what came of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # as the command does it
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        tempfile.tempdir = name
        (folder := Path(name) / "model").mkdir()
        _peak()
        for seed in seeds:
            pipe.send(seed)
            pipe.send(attempt(seed, folder))
            gc.collect()
    pipe.close()


class _Worker:
    """A process with a share of the seeds."""

    def __init__(self, seeds: list[int], memory: int) -> None:
        context = multiprocessing.get_context("fork")
        self.seeds, self.current, self.since = seeds, seeds[0], time.monotonic()
        self.pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(seeds, theirs, memory))
        self.process.start()
        theirs.close()

    def left(self) -> list[int]:
        """Returns the seeds behind the one that it is or was at."""
        return self.seeds[self.seeds.index(self.current) + 1 :]

    def end(self) -> int:
        """Ends the process and returns its exit code."""
        self.process.kill()
        self.process.join()
        self.pipe.close()
        return self.process.exitcode or 0


def fuzz(
    seeds: Iterable[int],
    *,
    workers: int = 2,
    limit: float = LIMIT,
    memory: int = MEMORY,
    tell: Callable[[Finding], Any] = lambda finding: None,
) -> list[Finding]:
    """Returns what came of every seed, in their order.

    Args:
        seeds: what to try.
        workers: processes at a time.
        limit: seconds for one mutation.
        memory: bytes that a worker may allocate.
        tell: called with each finding as it comes.
    """
    _preload()
    waiting = list(seeds)
    found: dict[int, Finding] = {}
    order = list(waiting)
    running: list[_Worker] = []

    def note(finding: Finding) -> None:
        found[finding.seed] = finding
        tell(finding)

    try:
        while waiting or running:
            while waiting and len(running) < workers:
                share = max(1, min(_ROUNDS, len(waiting) // workers + 1))
                running.append(_Worker(waiting[:share], memory))
                del waiting[:share]
            ready = wait([worker.pipe for worker in running], timeout=0.5)
            for worker in list(running):
                over = False
                if worker.pipe in ready:
                    over = _read(worker, note)
                elif time.monotonic() - worker.since > limit:
                    worker.end()
                    note(_ended(worker.current, None, limit))
                    over = True
                if over:
                    running.remove(worker)
                    if worker.current not in found:
                        worker.process.join()
                        code = worker.process.exitcode or 0
                        note(_ended(worker.current, code, time.monotonic() - worker.since))
                    if worker.left():
                        waiting[:0] = worker.left()
    finally:
        for worker in running:
            worker.end()
    return [found[seed] for seed in order]


def _read(worker: _Worker, note: Callable[[Finding], None]) -> bool:
    """Takes one message of a worker, and returns whether it has ended."""
    try:
        message = worker.pipe.recv()
    except (EOFError, OSError):
        return True
    if isinstance(message, Finding):
        note(message)
    else:
        worker.current = message
    worker.since = time.monotonic()
    return False


def _ended(seed: int, code: int | None, seconds: float) -> Finding:
    from fuzzing import draw

    mutation = draw(seed)
    what = f"{mutation.base}: {', '.join(mutation.edits)}; {' '.join(mutation.command)}"
    return Finding(seed, code, seconds, 0, (), "", what)


def _preload() -> None:
    """Imports once what every worker needs."""
    import fuzzing  # noqa: F401


def to_json(finding: Finding) -> str:
    """Returns a finding on one line."""
    return json.dumps(asdict(finding))
