"""How the tables of this folder are proved: every row under both consumers, against groups written by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from onnxprune.testing import Case, Consumer, check

CONSUMERS: tuple[Consumer, ...] = ("matmul", "sum")


def table(rows: Sequence[Case]) -> pytest.MarkDecorator:
    """Returns the parameters of a test over rows: each is read through weights, and added up."""
    return pytest.mark.parametrize(
        ("case", "consumer"), [pytest.param(c, k, id=f"{c}-{k}") for c in rows for k in CONSUMERS]
    )


def prove(case: Case, consumer: Consumer) -> None:
    """Cuts what the rule says, compares with the masked original in onnxruntime and with the groups of the table."""
    expected = case.summed if consumer == "sum" and case.summed is not None else case.units
    assert expected is not None
    outcome = check(case, consumer)
    assert outcome.wrong == ()
    assert outcome.units == expected, f"{case.why} {outcome.frozen}"
    assert bool(outcome.stuck) == case.stuck, outcome.stuck
    assert outcome.cuts or case.stuck or not any(n > 1 for n in expected)
