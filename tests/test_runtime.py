"""onnxruntime's words and limits, as this program passes them on."""

from __future__ import annotations

import pytest

from onnxprune.graph.runtime import Clock, first_line, memory_to_give


@pytest.mark.parametrize(
    ("said", "passed_on"),
    [
        ("[ONNXRuntimeError] : 10 : INVALID_GRAPH : This is bad\nSecond line", "This is bad"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Status Message: /onnxruntime_src/core/bfc_arena.cc:360 "
            "void* onnxruntime::BFCArena::Alloc(size_t, bool) Available memory of 3 is smaller",
            "Status Message: Available memory of 3 is smaller",
        ),
        ("", "RuntimeError"),
        ("x" * 9999, "x" * 400),
    ],
)
def test_first_line_says_what_and_not_where_in_onnxruntime(said: str, passed_on: str) -> None:
    assert first_line(RuntimeError(said)) == passed_on


def test_there_is_memory_to_give_and_less_than_any_machine_has() -> None:
    assert 1 << 28 <= memory_to_give() <= 1 << 33


def test_a_clock_ends_runs_only_when_its_time_is_over() -> None:
    with Clock(60) as patient, Clock(None) as endless:
        assert not patient.over
        assert not endless.over
        assert not patient.options.terminate
    with Clock(0.0) as hasty:
        assert hasty._timer is not None
        hasty._timer.join()
    assert hasty.over
    assert hasty.options.terminate
