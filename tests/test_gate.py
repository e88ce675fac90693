"""Gates: every figure, the end of its interval that is judged, and everything that must not pass."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import RUINED, one_class_ruined

from onnxprune.errors import DataError, UsageError
from onnxprune.latency.timing import Spread, Timing
from onnxprune.proof.comparison import validate
from onnxprune.proof.gate import gate, judge, lines
from onnxprune.proof.gate_limits import Limits, parse_share, parse_size
from onnxprune.reports.report import (
    ClassChange,
    Comparison,
    Count,
    Exactness,
    Interval,
    MetricChange,
    OutputFidelity,
    ScoreChange,
    TaskChange,
    Validation,
)

BLOCKED = Path(__file__).parent / "fixtures" / "gate_must_block.json"

OUTPUT = OutputFidelity(
    "logits",
    0.2,
    0.98,
    0.95,
    14.0,
    0.05,
    100,
    {
        "relative_error": Interval(0.18, 0.22),
        "kl": Interval(0.04, 0.07),
        "top1_agreement": Interval(0.9, 0.97),
    },
)
TASK = TaskChange(
    source="data.npz",
    samples=100,
    output="logits",
    top1=MetricChange(90.0, 89.0, 1.0, Interval(-0.5, 2.5)),
    top5=MetricChange(99.0, 98.8, 0.2, Interval(-0.1, 0.5)),
    per_class=(
        ClassChange(0, 50, 92.0, 92.0, 0.0, Interval(-3.0, 3.0)),
        ClassChange(7, 50, 88.0, 86.0, 2.0, Interval(-2.0, 6.0)),
    ),
    worst=(7,),
)
REPORT = Comparison(
    tool="0",
    model="m.onnx",
    sha256="a" * 64,
    pruned="p.onnx",
    pruned_sha256="b" * 64,
    macs=Count(1000, 400),
    params=Count(100, 50),
    size=Count(8_000_000, 3_900_000),
    exactness=Exactness(True, "compared", 1e-7, 1e-3),
    validation=Validation(("CPUExecutionProvider",), 1e-7, 1e-3, ("x [1]",), (OUTPUT,), "data.npz", made_up=False),
    task=TASK,
)
TIMING = Timing(Spread(9.0, 10.0), Spread(6.0, 7.0), 1.4, 1.3, 1.5, 0.02, True, 100)

# limit, one that just holds and one that just fails on the worse end, likewise as measured; which report tells
ROWS = [
    ("max_drop", 2.5, 2.49, 1.0, 0.99),
    ("max_class_drop", 6.0, 5.9, 2.0, 1.9),
    ("max_top5_drop", 0.5, 0.4, 0.2, 0.1),
    ("max_divergence", 0.07, 0.069, 0.05, 0.049),
    ("max_error", 0.22, 0.21, 0.2, 0.19),
    ("min_agreement", 0.9, 0.91, 0.95, 0.96),
    ("min_speedup", 1.3, 1.31, 1.4, 1.41),
    ("min_cut", 0.6, 0.61, 0.6, 0.61),
    ("max_size", 3_900_000, 3_899_999, 3_900_000, 3_899_999),
    ("max_size", 0.4875, 0.48, 0.4875, 0.48),
]


def of(name: str) -> Any:
    return TIMING if name == "min_speedup" else REPORT


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
@pytest.mark.parametrize("measured", [False, True])
def test_the_worse_end_of_the_interval_is_judged(row: tuple[str, float, float, float, float], measured: bool) -> None:
    name, *limits = row
    holds, fails = limits[2:] if measured else limits[:2]
    assert judge([of(name)], Limits(**{name: holds}), measured=measured).passed
    verdict = judge([of(name)], Limits(**{name: fails}), measured=measured)
    assert [f.gate for f in verdict.failed] == [name]
    assert verdict.failed[0].bound is not None


def test_every_limit_is_in_the_table() -> None:
    assert {row[0] for row in ROWS} | {"exact"} == {f.name for f in dataclasses.fields(Limits)}


def test_a_limit_of_nothing_is_a_limit() -> None:
    assert not judge([REPORT], Limits(max_drop=0.0)).passed
    assert not judge([REPORT], Limits(max_drop=0.0), measured=True).passed


# ---------------------------------------------------------------- failing closed
def test_what_no_report_tells_of_fails() -> None:
    bare = dataclasses.replace(REPORT, task=None, validation=dataclasses.replace(REPORT.validation, fidelity=()))
    for name in ("max_drop", "max_class_drop", "max_top5_drop", "max_divergence", "max_error", "min_agreement"):
        (finding,) = judge([bare], Limits(**{name: 0.0 if name.startswith("min") else 1e9})).failed
        assert (finding.figure, finding.bound) == (None, None), name
    assert not judge([REPORT], Limits(min_speedup=0.0)).passed
    assert not judge([TIMING], Limits(max_size=1e12)).passed
    assert not judge([TIMING], Limits(exact=True)).passed


def poisoned(value: Any, poison: float) -> Any:
    """Returns a record in which every float is no number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: poisoned(getattr(value, f.name), poison) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts)
    if isinstance(value, tuple):
        return tuple(poisoned(v, poison) for v in value)
    if isinstance(value, dict):
        return {k: poisoned(v, poison) for k, v in value.items()}
    return poison if isinstance(value, float) else value


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("name", [row[0] for row in ROWS[:7]])
def test_what_is_no_number_fails(name: str, measured: bool, poison: float) -> None:
    limit = 0.0 if name.startswith("min") else 1e9
    assert not judge([poisoned(of(name), poison)], Limits(**{name: limit}), measured=measured).passed


@pytest.mark.parametrize("end", ["low", "high"])
def test_an_end_that_is_no_number_fails(end: str) -> None:
    interval = dataclasses.replace(TASK.top1.interval, **{end: math.nan})
    task = dataclasses.replace(TASK, top1=dataclasses.replace(TASK.top1, interval=interval))
    verdict = judge([dataclasses.replace(REPORT, task=task)], Limits(max_drop=1e9))
    assert verdict.passed == (end == "low")  # the lower end of a drop is not asked for


def test_an_interval_the_wrong_way_round_does_not_help() -> None:
    task = dataclasses.replace(TASK, top1=dataclasses.replace(TASK.top1, interval=Interval(5.0, -5.0)))
    assert not judge([dataclasses.replace(REPORT, task=task)], Limits(max_drop=0.5)).passed


def test_no_interval_fails_unless_the_figure_itself_is_judged() -> None:
    output = dataclasses.replace(OUTPUT, intervals={})
    bare = dataclasses.replace(REPORT, validation=dataclasses.replace(REPORT.validation, fidelity=(output,)))
    assert not judge([bare], Limits(max_error=1e9)).passed
    assert judge([bare], Limits(max_error=1e9), measured=True).passed


def test_an_output_that_was_not_compared_fails() -> None:
    odd = dataclasses.replace(REPORT, validation=dataclasses.replace(REPORT.validation, unlike=("boxes",)))
    assert not judge([odd], Limits(max_error=1e9)).passed


def test_an_empty_original_has_no_shares() -> None:
    empty = dataclasses.replace(REPORT, macs=Count(0, 0), size=Count(0, 0))
    assert not judge([empty], Limits(min_cut=0.0)).passed
    assert not judge([empty], Limits(max_size=1.0)).passed


def test_a_speedup_that_is_not_conclusive_fails() -> None:
    vague = dataclasses.replace(TIMING, conclusive=False)
    assert "not conclusive" in judge([vague], Limits(min_speedup=1.1)).failed[0].told
    assert judge([vague], Limits(min_speedup=0.9)).passed  # no slower, as far as can be told


def test_a_cut_that_is_wrong_fails_whatever_is_asked() -> None:
    wrong = dataclasses.replace(REPORT, exactness=Exactness(False, "compared", problems=("w1 is of another shape",)))
    verdict = judge([wrong], Limits(max_drop=100.0))
    assert [f.gate for f in verdict.failed] == ["exact"]
    assert "w1 is of another shape" in verdict.failed[0].told
    far = dataclasses.replace(REPORT, validation=dataclasses.replace(REPORT.validation, error=math.nan))
    assert not judge([far], Limits(max_drop=100.0)).passed


def test_a_cut_that_was_not_checked_fails_only_if_that_is_asked() -> None:
    unknown = dataclasses.replace(REPORT, exactness=Exactness(None, "no plan"))
    assert judge([unknown], Limits(max_drop=100.0)).passed
    assert "no plan" in judge([unknown], Limits(exact=True)).failed[0].told


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(UsageError, match="without a limit"):
        judge([REPORT], Limits())
    with pytest.raises(UsageError, match="without a report"):
        judge([], Limits(max_drop=1))


# ---------------------------------------------------------------- several figures
def test_the_worst_of_several_outputs_and_scores_is_judged() -> None:
    good = dataclasses.replace(
        OUTPUT, name="good", intervals={"relative_error": Interval(0, 0.01)}, relative_error=0.01
    )
    two = dataclasses.replace(REPORT, validation=dataclasses.replace(REPORT.validation, fidelity=(good, OUTPUT)))
    assert "'logits'" in judge([two], Limits(max_error=0.1)).failed[0].told
    scores = (ScoreChange("a", 1, 1, 0.0, True, Interval(0, 0)), ScoreChange("b", 1, 2, 1.0, False, Interval(0.5, 1.5)))
    verdict = judge([dataclasses.replace(REPORT, scores=scores)], Limits(max_drop=1.2))
    assert "'b'" in verdict.failed[0].told


def test_a_vague_score_beside_a_good_one_fails() -> None:
    scores = (ScoreChange("a", 1, 1, 0.0, True, Interval(0, 0)), ScoreChange("b", 1, 1, 0.0))
    assert not judge([dataclasses.replace(REPORT, scores=scores)], Limits(max_drop=1)).passed


def test_a_limit_must_hold_in_every_report_that_tells_of_it() -> None:
    slow = dataclasses.replace(TIMING, speedup=1.1, low=1.05, high=1.15)
    limits = Limits(max_drop=3.0, min_speedup=1.2)
    assert judge([REPORT, TIMING], limits).passed
    assert not judge([REPORT, TIMING, slow], limits).passed


# ---------------------------------------------------------------- files
def test_the_fixture_that_must_block() -> None:
    """A report of a ruined model, slow, large and unlike its original: no limit may let it pass."""
    for row in ROWS:
        name = row[0]
        lax = {"min_agreement": 0.5, "min_cut": 0.05, "min_speedup": 1.01, "max_size": 0.99}
        for measured in (False, True):
            verdict = gate([BLOCKED], Limits(**{name: lax.get(name, 10.0)}), measured=measured)
            assert not verdict.passed, name
    assert not gate([BLOCKED], Limits(exact=True)).passed


def test_reports_of_different_models_are_not_mixed(tmp_path: Path) -> None:
    paths = []
    for k, report in enumerate((REPORT, dataclasses.replace(REPORT, sha256="c" * 64))):
        paths.append(tmp_path / f"{k}.json")
        paths[-1].write_text(report.to_json())
    with pytest.raises(DataError, match="different originals"):
        gate(paths, Limits(max_drop=10))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", "null", '{"version": 1}', '{"version": 1, "kind": "validate"}', '{"version": 1, "kind": "gate"}'],
)
def test_what_is_no_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError):
        gate([tmp_path / "r.json"], Limits(max_drop=10))


def test_a_figure_that_was_taken_out_of_a_report_fails(tmp_path: Path) -> None:
    values = json.loads(REPORT.to_json())
    values["task"] = None
    (tmp_path / "r.json").write_text(json.dumps(values))
    assert not gate([tmp_path / "r.json"], Limits(max_drop=100)).passed
    values["task"] = json.loads(REPORT.to_json())["task"]
    values["task"]["top1"]["interval"]["high"] = None
    (tmp_path / "r.json").write_text(json.dumps(values))
    assert not gate([tmp_path / "r.json"], Limits(max_drop=100)).passed
    del values["task"]["top1"]["interval"]
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="lacks interval"):
        gate([tmp_path / "r.json"], Limits(max_drop=100))


def test_the_verdict_is_a_report_too() -> None:
    verdict = judge([REPORT], Limits(max_drop=0.0, min_cut=0.5))
    assert type(verdict).from_dict(json.loads(verdict.to_json())) == verdict
    told = list(lines(verdict))
    assert told[0].startswith("FAILED  --max-drop: the drop of top-1 is 1 points (up to 2.5), at most 0")
    assert told[1].startswith("passed  --min-cut")


# ---------------------------------------------------------------- one class ruined
def test_a_class_that_is_ruined_is_caught_though_the_mean_is_unchanged(tmp_path: Path) -> None:
    original, ruined, data = one_class_ruined(tmp_path)
    found = validate(original, ruined, evaluate=data, labels="labels")
    assert found.task is not None
    assert found.task.top1.drop == 0
    assert judge([found], Limits(max_drop=5.0)).passed
    verdict = judge([found], Limits(max_drop=5.0, max_class_drop=20.0))
    assert [f.gate for f in verdict.failed] == ["max_class_drop"]
    assert f"class {RUINED}" in verdict.failed[0].told
    assert not judge([found], Limits(max_class_drop=20.0), measured=True).passed


# ---------------------------------------------------------------- limits as users write them
@pytest.mark.parametrize(("text", "share"), [("0.4", 0.4), ("40%", 0.4), (" 0 ", 0.0), ("1", 1.0), (".5", 0.5)])
def test_shares(text: str, share: float) -> None:
    assert parse_share("min_cut", text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["40", "-0.1", "101%", "nan", "inf", "", "x", "1e-3", "0.4.1"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageError, match="--min-cut"):
        parse_share("min_cut", text)


@pytest.mark.parametrize(("text", "size"), [("4MB", 4e6), ("4 MiB", 4 * 2**20), ("0.5", 0.5), ("50%", 0.5), ("9B", 9)])
def test_sizes(text: str, size: float) -> None:
    assert parse_size("max_size", text) == pytest.approx(size)


@pytest.mark.parametrize("text", ["4", "4000000", "4TBs", "0MB", "-1MB", "nan", "MB", ""])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="--max-size"):
        parse_size("max_size", text)


def test_numpy_is_not_needed_to_be_lenient() -> None:
    assert not judge([REPORT], Limits(max_drop=float(np.nan))).passed
