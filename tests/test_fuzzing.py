"""Damaged models end in one error line or in a sound output, never in anything else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_driver import Finding, retried
from fuzzing import draw

HERE = Path(__file__).parent
COUNT = 250

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers are bound as on Linux")


def kept() -> list[int]:
    """Returns the seeds that went wrong once."""
    lines = (HERE / "fuzz_seeds.txt").read_text(encoding="utf-8").splitlines()
    return [int(line.split()[0]) for line in lines if not line.startswith("#")]


def bad(found: list[Finding]) -> list[str]:
    """Returns what is wrong with findings; what ended a worker must end the command in one line."""
    found = [retried(each) if each.code is None or each.code < 0 else each for each in found]
    return [f"seed {each.seed} ({each.what}): {each.faults} {each.stderr}" for each in found if each.faults]


def in_a_process_of_its_own(seeds: list[int]) -> None:
    """Tries seeds from a process without threads, which can be forked."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from fuzz_driver import fuzz\n"
        "from test_fuzzing import bad\n"
        "wrong = bad(fuzz(map(int, sys.argv[2:])))\n"
        "print('\\n'.join(wrong)); sys.exit(bool(wrong))\n"
    )
    command = [sys.executable, "-c", code, str(HERE), *map(str, seeds)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_what_went_wrong_once_does_not_again() -> None:
    in_a_process_of_its_own(kept())


def test_mutations_end_well() -> None:
    start = 1_000_000 + int(os.environ.get("FUZZ_START", "0"))
    in_a_process_of_its_own(list(range(start, start + COUNT)))


def test_a_seed_tells_all() -> None:
    assert all(draw(seed) == draw(seed) for seed in range(30))
    assert len({draw(seed).data for seed in range(30)}) == 30


def test_the_driver_sees_what_is_wrong(tmp_path: Path) -> None:
    """A worker that dies, and one that hangs, cost their seed and are told."""
    code = (
        "import os, sys, time; sys.path.insert(0, sys.argv[1])\n"
        "import fuzz_driver\n"
        "sound = fuzz_driver.attempt\n"
        "def attempt(seed, folder):\n"
        "    if seed == 1: os.abort()\n"
        "    if seed == 2: time.sleep(100)\n"
        "    return fuzz_driver.Finding(seed, 0, 0.0, 0, ('traceback',) if seed == 3 else ())\n"
        "fuzz_driver.attempt = attempt\n"
        "for found in fuzz_driver.fuzz(range(5), workers=1, limit=1): print(found.seed, found.code, found.faults)\n"
    )
    found = subprocess.run([sys.executable, "-c", code, str(HERE)], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == ["0 0 ()", "1 -6 ()", "2 None ()", "3 0 ('traceback',)", "4 0 ()"]
