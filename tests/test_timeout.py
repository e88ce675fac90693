from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxprune.errors import UsageError
from onnxprune.timeout import GRACE, time_limit

START = """
import sys, tempfile, time
from pathlib import Path
from onnxprune import writing
from onnxprune.errors import RunError
from onnxprune.timeout import time_limit
def leave(message): print(message)
try:
    with time_limit({seconds}, leave):
        save = writing._Transaction(Path("out.onnx"))
        data = save.create(".data")
        model = save.create(".onnx")
        save.rename(data, Path("out.0123456789ab.data").absolute())
        tempfile.mkdtemp()
        tempfile.mkstemp()
        {work}
    sys.exit(0)
except RunError as error:
    print("unwound:", error)
    sys.exit(3)
finally:
    save.clean_up()
"""


def run(folder: Path, work: str, seconds: float = 0.3) -> subprocess.CompletedProcess[str]:
    """Returns what became of a program with a save under way."""
    (folder / "tmp").mkdir()
    code = f"import tempfile; tempfile.tempdir = {str(folder / 'tmp')!r}\n" + START.format(seconds=seconds, work=work)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_python_code_unwinds(tmp_path: Path) -> None:
    found = run(tmp_path, "while True: pass")
    assert found.returncode == 3, found.stderr
    assert found.stdout.startswith("unwound: gave up after 0.3 seconds (--timeout)")
    assert left(tmp_path) == ["tmp"]


def test_a_process_that_is_stuck_is_ended_and_leaves_nothing(tmp_path: Path) -> None:
    start = time.perf_counter()
    found = run(tmp_path, "time.sleep(50)")  # the interrupt is no signal of the system: this sleeps on
    assert found.returncode == 7, found.stderr
    assert found.stdout.startswith("gave up after 0.3 seconds")
    assert found.stderr == ""
    assert left(tmp_path) == ["tmp"]
    assert time.perf_counter() - start < 20


def test_the_data_of_a_model_that_was_moved_in_stays(tmp_path: Path) -> None:
    found = run(tmp_path, "model.replace('out.onnx'); time.sleep(50)")
    assert found.returncode == 7, found.stderr
    assert left(tmp_path) == ["out.0123456789ab.data", "out.onnx", "tmp"]


def test_code_that_is_done_in_time_goes_on(tmp_path: Path) -> None:
    found = run(tmp_path, "pass", seconds=50)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
    assert left(tmp_path) == ["tmp"]


def test_an_interrupt_of_the_user_stays_one(tmp_path: Path) -> None:
    found = run(tmp_path, "raise KeyboardInterrupt", seconds=50)
    assert "KeyboardInterrupt" in found.stderr
    assert left(tmp_path) == ["tmp"]


def test_no_limit_costs_nothing() -> None:
    with time_limit(None, pytest.fail):
        pass


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_times_that_are_none(seconds: float) -> None:
    with pytest.raises(UsageError, match="--timeout"), time_limit(seconds, pytest.fail):
        pytest.fail("must not begin")


def test_the_grace_is_short() -> None:
    assert 0 < GRACE <= 2
