from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import NASTY, pruning

import onnxprune
from onnxprune import errors
from onnxprune.errors import DataError, RunError
from onnxprune.reports import records
from onnxprune.reports import report as reports
from onnxprune.reports.report import Count, FrozenRow, GroupRow, Inspection, OutputFidelity, Report, Validation
from onnxprune.reports.terminal import console_on, print_inspection, print_report, safe


def full(name: str = "conv1.weight", **changes: Any) -> Report:
    """Returns a report with every field in use, and one name everywhere."""
    fidelity = tuple(OutputFidelity(name, 0.1, 0.9, 0.5) for _ in range(5))
    report = Report(
        tool="0.1.0",
        model=name,
        sha256="ab" * 32,
        output=name,
        options={"ratio": 0.5, "include": [name], "criterion": "l1"},
        macs=Count(1000, 250),
        params=Count(100, 50),
        size=Count(4000, 2100),
        groups=(GroupRow(name, 16, 8, (name, name, name, name), 12.5, 3.0), GroupRow("other", 4, 0, (name,), 1.0, 1.0)),
        frozen=(FrozenRow(name, "Softmax", name, 10, (name,)), FrozenRow("", "", "others stay", 3, ())),
        notes=(name,),
        warnings=(name,),
        validation=Validation((name,), 3e-7, 1e-3, (name, "b"), fidelity),
        seconds={"load": 0.1, "cut": 0.2},
    )
    return dataclasses.replace(report, **changes)


def inspection(name: str = "conv1.weight") -> Inspection:
    return Inspection("0.1.0", name, "ab" * 32, 1000, 100, 4000, full(name).groups, full(name).frozen, 500)


def printed(report: Report | Inspection, **options: bool) -> str:
    file = io.StringIO()
    if isinstance(report, Report):
        print_report(report, console_on(file), **options)
    else:
        print_inspection(report, console_on(file))
    return file.getvalue()


# -------------------------------------------------------------------------------------------------- data
def test_a_report_survives_json() -> None:
    report = full()
    assert Report.from_dict(json.loads(report.to_json())) == report
    assert Inspection.from_dict(json.loads(inspection().to_json())) == inspection()


def test_json_names_its_version_first_and_options_in_order() -> None:
    values = full().to_dict()
    assert next(iter(values)) == "version"
    assert values["version"] == 1
    assert list(values["options"]) == ["criterion", "include", "ratio"]
    assert next(iter(inspection().to_dict())) == "version"


def test_the_same_report_gives_the_same_text() -> None:
    one = full(options={"a": 1, "b": 2})
    two = full(options={"b": 2, "a": 1})
    assert one.to_json() == two.to_json()


def test_json_has_no_infinities() -> None:
    fidelity = (OutputFidelity("y", math.inf, math.nan),)
    report = full(validation=Validation(("cpu",), math.inf, 1e-3, (), fidelity))
    values = json.loads(report.to_json(), parse_constant=pytest.fail)
    assert values["validation"]["fidelity"][0]["cosine"] is None
    back = Report.from_dict(values)
    assert back.validation is not None
    assert math.isnan(back.validation.fidelity[0].cosine)


def test_json_is_printable_ascii_whatever_the_names() -> None:
    for name in NASTY:
        text = full(name).to_json()
        assert all(c == "\n" or " " <= c <= "~" for c in text)
        assert len(text) < 200_000


@given(st.text(max_size=50))
def test_any_name_survives_json(name: str) -> None:
    report = full(name)
    assert Report.from_dict(json.loads(report.to_json())) == report


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.update(version=2), "version"),
        (lambda v: v.pop("version"), "version"),
        (lambda v: v.update(version=True), "version"),
        (lambda v: v.update(kind="inspect"), "kind 'inspect', not 'prune'"),
        (lambda v: v.pop("kind"), "kind"),
        (lambda v: v.pop("macs"), "lacks macs"),
        (lambda v: v.update(macs=3), "macs should be an object"),
        (lambda v: v["macs"].update(before="many"), "report.macs.before should not be a str"),
        (lambda v: v["macs"].update(before=True), "should not be a bool"),
        (lambda v: v.update(groups={}), "groups should not be a dict"),
        (lambda v: v["groups"][1].update(members=[1]), r"groups\[1\].members\[0\]"),
        (lambda v: v.update(seconds={"load": "x"}), "seconds.load"),
        (lambda v: v.update(version="\x1b[31m" * 1000), "version"),
    ],
)
def test_what_is_no_report_is_refused(change: Any, says: str) -> None:
    values = full().to_dict()
    change(values)
    with pytest.raises(DataError, match=says):
        Report.from_dict(values)


def test_reading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    records.write(path, full().to_json())
    assert reports.read(path) == full()
    for text in ("", "[]", "{", "[" * 100_000, "nul"):
        path.write_text(text)
        with pytest.raises(DataError, match="is no report"):
            reports.read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError):
        reports.read(path)
    with pytest.raises(DataError, match="No such file"):
        reports.read(tmp_path / "none.json")


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        records.write(path, "\udcff")
    assert path.read_text() == "old"
    with pytest.raises(RunError, match="cannot be written"):
        records.write(tmp_path / "none" / "r.json", "new")
    (tmp_path / "taken").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        records.write(tmp_path / "taken", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "taken"]


def test_counts() -> None:
    assert Count(4, 1).ratio == 0.25
    assert Count(0, 0).ratio == 1
    assert reports.units_of(full().groups) == Count(20, 12)


def test_reasons_come_once_and_the_largest_first() -> None:
    rows = [FrozenRow(str(k), "Op", why, n, ()) for k, (why, n) in enumerate([("a", 1), ("b", 5), ("a", 2), ("c", 3)])]
    found = reports.by_reason(rows)
    assert [(why, n) for why, n, _ in found] == [("b", 5), ("a", 3), ("c", 3)]
    assert [row.node for row in found[1][2]] == ["0", "2"]


# -------------------------------------------------------------------------------------------------- terminal
def test_the_table_has_before_after_and_what_is_left() -> None:
    text = printed(full())
    rows = [line.split() for line in text.splitlines()]
    assert ["MACs", "1,000", "250", "25.0", "%"] in rows
    assert ["bytes", "4,000", "2,100", "52.5", "%"] in rows
    assert ["units", "20", "12", "60.0", "%"] in rows
    assert "cut: 8 of 20 units, in 1 of 2 groups" in text
    assert "MACs expected to remain at ratio 0.5: 25.0 %" in text
    assert "cut is exact: 3e-07" in text
    assert "at 2 sizes" in text
    assert "relative error 0.1, cosine 0.9000, top-1 agreement 50.0 %" in text
    assert "2 more outputs" in text
    assert "frozen: 13 channels" in text
    assert "10: conv1.weight (Softmax conv1.weight)" in text
    assert "note: conv1.weight" in text
    assert text.endswith("written: conv1.weight\n")


def test_what_was_not_done_is_said() -> None:
    assert "--no-validate" in printed(full(validation=None))
    assert "dry run" in printed(full(validation=None, output=None), dry_run=True)
    assert "written" not in printed(full(output=None))
    found = full().validation
    assert found is not None
    assert "approximate" in printed(full(validation=dataclasses.replace(found, error=None)))


def test_what_was_measured_is_shown() -> None:
    text = printed(pruning())
    rows = [line.split() for line in text.splitlines()]
    assert ["latency,", "ms", "0.4", "0.25", "62.5", "%"] in rows
    assert ["top-1,", "%", "99.0", "98.0"] in rows
    assert "top-1 drop: 1.0 points (-0.5 to 2.5) on 180 samples of conv1.weight" in text
    assert "classes that lost most, in points: 1 lost 5.0" in text
    assert "speedup: 1.60 (1.50 to 1.70)\n" in text
    assert "(on conv1.weight)" in text


def test_verbose_shows_groups_and_stages() -> None:
    text = printed(full(), verbose=True)
    assert "MACs/unit" in text
    assert "load 0.10" in text
    assert "MACs/unit" not in printed(full())


def test_an_inspection_shows_groups_and_reasons() -> None:
    text = printed(inspection())
    assert "20 units in 2 groups; --ratio 0.5 is expected to leave 50.0 % of the MACs" in text
    assert "Softmax" in text
    assert "others stay" in text
    nothing = dataclasses.replace(inspection(), groups=(), frozen=())
    assert "nothing can be cut" in printed(nothing)


@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
def test_no_name_steers_a_terminal_or_a_log(name: str) -> None:
    reports = (full(name), pruning(name), inspection(name))
    for text in (printed(full(name), verbose=True), *map(printed, reports)):
        assert all(c == "\n" or c.isprintable() for c in text)
        assert "##" not in text
        assert not any(line.strip().startswith("::") for line in text.splitlines())
        assert max(map(len, text.splitlines())) < 3000


def test_markup_and_emoji_are_shown_as_they_are() -> None:
    assert "[bold red]markup[/]" in printed(full("[bold red]markup[/]"))
    assert ":smile:" in printed(full(":smile:"))


def test_a_narrow_terminal_loses_no_number() -> None:
    file = io.StringIO()
    console = console_on(file)
    console.width = 50
    print_inspection(inspection("a/very/long/name/of/a/weight/in/some/layer"), console)
    assert "MACs/unit" in file.getvalue()
    assert "12 " in file.getvalue()
    assert "…" in file.getvalue()


def test_safe() -> None:
    assert safe("layer1.0/conv/Conv_0") == "layer1.0/conv/Conv_0"
    assert safe("aten::relu") == "aten::relu"
    assert safe("größe/卷积") == "größe/卷积"
    assert safe("::error::x") == "\\::error::x"
    assert safe("a\x1b[0mb\u202e") == "a\\x1b[0mb\\u202e"
    assert len(safe("x" * 10_000_000, 60)) < 80


# -------------------------------------------------------------------------------------------------- public names
def test_every_public_name_is_there() -> None:
    for name in onnxprune.__all__:
        assert getattr(onnxprune, name) is not None
    assert sorted(onnxprune.__all__) == onnxprune.__all__
    assert set(onnxprune.__all__) <= set(dir(onnxprune))


def test_all_errors_are_public() -> None:
    assert {name for name in errors.__all__ if name.endswith("Error")} <= set(onnxprune.__all__)


def test_other_names_are_not_there() -> None:
    for name in ("nonsense", "_private", "__wrapped__"):
        assert not hasattr(onnxprune, name)


def test_the_version_is_that_of_the_package() -> None:
    assert importlib.metadata.version("onnxprune") == onnxprune.__version__
