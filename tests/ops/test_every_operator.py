"""What holds for all operators: each has a row in a table and random cases, and no row hides a freedom."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxprune.ops import REGISTRY
from onnxprune.testing import Case, check
from onnxprune.testing.__main__ import main
from onnxprune.testing.freedom import missing
from onnxprune.testing.generate import GENERATORS, random_case

SLOW = {"test_attention", "test_quantized"}
SEEDS = (0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 6)))


def modules() -> Iterator[str]:
    """Yields the names of the tables beside this file."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.stem != Path(__file__).stem:
            yield path.stem


def rows(module: str) -> list[Case]:
    return list(getattr(importlib.import_module(module), "ROWS", []))


ALL = [(name, case) for name in modules() for case in rows(name)]


def test_every_operator_has_a_row() -> None:
    assert set(REGISTRY) - {(case.domain, case.op) for _, case in ALL} == set()


def test_every_operator_has_random_cases() -> None:
    assert set(GENERATORS) == set(REGISTRY)


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=str(case), marks=[pytest.mark.slow] if name in SLOW else []) for name, case in ALL],
)
def test_a_slot_that_could_go_is_known(case: Case) -> None:
    found = missing(case)
    assert bool(found) == case.missing, found
    assert case.why or not case.missing


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("domain", "op"), sorted(GENERATORS))
def test_a_random_case_is_exact(domain: str, op: str, seed: int) -> None:
    case = random_case(domain, op, seed)
    print(f"seed {seed}: {case}")
    for consumer in ("matmul", "sum"):
        assert check(case, consumer, seed).wrong == ()


def test_the_checker_prints_a_row_for_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Relu", "--cases", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["ok"] * 4
    assert sum("Relu-" in line for line in lines) == 4


def test_the_checker_knows_its_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Rellu"]) == 2
    assert "no rule for Rellu" in capsys.readouterr().err
