from __future__ import annotations

import pytest
from reports import KINDS, NASTY, pruning

from onnxprune.reports.markdown import to_markdown

PAGES = sorted(set(KINDS) - {"history"})


def test_markdown_has_all_parts() -> None:
    text = to_markdown(pruning())
    assert "| MACs | 1,353,344 | 676,000 | −50.0 % | 50.0 % of 1.35 M |" in text
    assert "| `conv1.weight` | 8 / 16 | −50.0 % | 12.5 | 3 | 0.3 | `conv1.weight` +1 |" in text
    assert "> **Warning:** conv1.weight" in text
    assert "| 3 | others stay |" in text
    assert "- difference: 3.0e-07 from the original" in text
    assert "`onnxprune conv1.weight --ratio 0.5`" in text
    assert "| 1 | 60 | 99.0 % | 94.0 % | −5.0 points | −2.5 to +0.5 |" in text
    assert "Sensitivity" not in text  # a picture
    assert "**not validated**" in to_markdown(pruning(validation=None))


@pytest.mark.parametrize("kind", PAGES)
@pytest.mark.parametrize("name", [name for name in NASTY if name], ids=range(len(NASTY) - 1))
def test_no_name_becomes_markdown(name: str, kind: str) -> None:
    plain, text = to_markdown(KINDS[kind]("conv1.weight")), to_markdown(KINDS[kind](name))
    assert len(text.splitlines()) == len(plain.splitlines())
    for line, model in zip(text.splitlines(), plain.splitlines(), strict=True):
        if model.startswith("|"):  # as many cells: no pipe but an escaped one ends one
            assert line.replace("\\|", "").count("|") == model.count("|")
        outside = without_code(line)
        assert "<" not in outside
        assert "](" not in outside
        assert "@everyone" not in outside
        assert "http" not in outside or "&#58;//" in outside
        assert not line.startswith(("::", "##["))
    assert all(c == "\n" or c.isprintable() for c in text)
    assert len(text) < 100_000


def without_code(line: str) -> str:
    """Returns a line without its code spans, found as CommonMark finds them: runs of equally many backticks."""
    out, position = "", 0
    while position < len(line):
        run = len(line[position:]) - len(line[position:].lstrip("`"))
        if not run:
            out, position = out + line[position], position + 1
            continue
        end = position + run
        while (end := line.find("`" * run, end)) >= 0:
            length = len(line[end:]) - len(line[end:].lstrip("`"))
            if length == run:
                break
            end += length
        position = position + run if end < 0 else end + run
    return out


def test_long_tables_are_cut_short() -> None:
    assert "500 more rows are in the JSON report." in to_markdown(pruning(groups=pruning().groups[:1] * 1500))


def test_a_report_is_cut_to_size_or_left_out() -> None:
    large = pruning(groups=pruning().groups * 500)
    for most in (50_000, 10_000, 4_000):
        assert 0 < len(to_markdown(large, most=most).encode()) <= most
    assert to_markdown(large, most=100) == ""
