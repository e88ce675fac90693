from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from reports import KINDS, NASTY, comparison, pruning, verdict

from onnxprune.reports.formats import SUMMARY, add_to_summary, to_text
from onnxprune.reports.junit import to_junit
from onnxprune.reports.report import OutputFidelity, Validation

PAGES = sorted(set(KINDS) - {"history"})


def cases(text: str) -> dict[str, str]:
    """Returns for each case how it ended."""
    found = {}
    for case in ET.fromstring(text).iter("testcase"):
        ends = [child.tag for child in case if child.tag in ("failure", "skipped", "error")]
        found[case.attrib["name"]] = ends[0] if ends else "passed"
    return found


def test_each_check_is_a_case() -> None:
    text = to_junit(pruning())
    assert cases(text) == {
        "the cut is exact": "passed",
        "output conv1.weight has not collapsed": "passed",
        "output y2 has not collapsed": "passed",
    }
    (suite,) = ET.fromstring(text)
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["skipped"]) == ("3", "0", "0")
    figures = {each.attrib["name"]: each.attrib["value"] for each in suite.iter("property")}
    assert figures["MACs, before"] == "1,353,344"
    assert figures["MACs"] == "676,000"
    assert figures["Size"] == "210,000 B"


def test_what_failed_fails_and_what_was_not_done_is_skipped() -> None:
    collapsed = Validation(
        ("cpu",), 0.1, 1e-3, (), (OutputFidelity("y", 0.9, 0.1), OutputFidelity("z", float("nan"), 1))
    )
    assert set(cases(to_junit(pruning(validation=collapsed))).values()) == {"failure"}
    assert cases(to_junit(pruning(validation=None))) == {"the cut is exact": "skipped"}
    assert cases(to_junit(comparison(exact=False)))["the cut is exact"] == "failure"
    assert cases(to_junit(comparison(exact=None)))["the cut is exact"] == "skipped"
    assert cases(to_junit(verdict())) == {"max_drop": "passed", "min_speedup": "failure"}
    (suite,) = ET.fromstring(to_junit(verdict()))
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("2", "1")


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("name", NASTY, ids=range(len(NASTY)))
def test_no_name_becomes_xml(name: str, kind: str) -> None:
    plain, text = ET.fromstring(to_junit(KINDS[kind]("plain"))), to_junit(KINDS[kind](name))
    assert [each.tag for each in ET.fromstring(text).iter()] == [each.tag for each in plain.iter()]
    assert all(c == "\n" or " " <= c <= "~" for c in text)
    assert not any(line.strip().startswith(("::", "##")) for line in text.splitlines())
    assert len(text) < 100_000


# -------------------------------------------------------------------------------------------------- formats
@pytest.mark.parametrize("kind", PAGES)
def test_every_kind_is_written_in_every_format(kind: str) -> None:
    report = KINDS[kind]("a")
    assert to_text(report, ".json") == report.to_json()
    assert to_text(report, ".html").startswith("<!doctype html>")
    assert to_text(report, ".md").startswith("# ")
    assert to_text(report, ".xml").startswith("<?xml")


def test_the_summary_of_a_step_is_appended_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.md"
    monkeypatch.setenv(SUMMARY, str(path))
    add_to_summary(pruning())
    add_to_summary(comparison())
    assert path.read_text(encoding="utf-8") == to_text(pruning(), ".md") + to_text(comparison(), ".md")


def test_the_summary_stays_below_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.md"
    monkeypatch.setenv(SUMMARY, str(path))
    large = pruning("卷" * 290, groups=pruning("卷" * 290).groups * 500)
    assert len(to_text(large, ".md").encode()) > 1 << 20
    for _ in range(30):
        add_to_summary(large)
        assert path.stat().st_size <= 1 << 20
    assert "more rows are in the JSON report" in path.read_text(encoding="utf-8")


def test_without_a_summary_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("", str(tmp_path / "none" / "x.md"), str(tmp_path)):
        monkeypatch.setenv(SUMMARY, value)
        add_to_summary(pruning())
    monkeypatch.delenv(SUMMARY)
    add_to_summary(pruning())
    assert list(tmp_path.iterdir()) == []
