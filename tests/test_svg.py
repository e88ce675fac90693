from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.reports.svg import COLOURS, Axis, Line, line_chart

SVG = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)


def texts(text: str) -> list[str]:
    return [each.text or "" for each in parsed(text).iter(f"{SVG}text")]


def dots(text: str) -> list[tuple[float, float]]:
    return [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in parsed(text).iter(f"{SVG}circle")]


def test_a_chart_has_its_lines_axes_and_legend() -> None:
    lines = [
        Line("one", [(0, 0), (0.5, 1), (1, 4)]),
        Line("two", [(0, 1), (1, 2)]),
        Line("grey", [(0, 3), (1, 3)], True),
    ]
    text = line_chart(lines, title="loss", x=Axis("share cut", percent=True), y=Axis("divergence"))
    root = parsed(text)
    assert root.find(f"{SVG}title").text == "loss"  # type: ignore[union-attr]
    assert {"share cut", "divergence", "40 %", "one", "two", "4"} <= set(texts(text))
    assert "grey" not in texts(text)
    assert len(list(root.iter(f"{SVG}polyline"))) == 3
    assert len(dots(text)) == 5
    assert COLOURS[0] in text
    assert COLOURS[1] in text


def test_higher_values_stand_higher_and_later_ones_further_right() -> None:
    (x1, y1), (x2, y2) = dots(line_chart([Line("", [(1, 10), (2, 20)])], title=""))
    assert x1 < x2
    assert y1 > y2


def test_equal_ratios_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    text = line_chart([Line("", [(0, 0.001), (1, 0.01), (2, 0.1), (3, 0)])], title="", y=Axis(log=True))
    heights = [y for _, y in dots(text)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert "0.01" in texts(text)


def test_what_is_not_finite_is_left_out() -> None:
    text = line_chart([Line("", [(0, math.nan), (1, math.inf), (math.nan, 1), (2, 3)])], title="")
    assert len(dots(text)) == 1
    assert "nan" not in text
    assert "inf" not in text.replace("infinite", "")


@pytest.mark.parametrize(
    "points", [[], [(1.0, 1.0)], [(0.0, 0.0), (0.0, 0.0)], [(1e90, -1e90), (-1e90, 1e90)], [(0.0, 0.0), (0.0, 5e-324)]]
)
@pytest.mark.parametrize("log", [False, True])
def test_any_number_of_points_can_be_drawn(points: list[tuple[float, float]], log: bool) -> None:
    text = line_chart([Line("a", points)], title="", x=Axis(log=log), y=Axis(log=log))
    assert len(dots(text)) == len(points)


@given(st.text(), st.lists(st.tuples(st.floats(), st.floats()), max_size=8), st.booleans())
def test_anything_gives_well_formed_xml(name: str, points: list[tuple[float, float]], log: bool) -> None:
    axis = Axis(name, log=log)
    text = line_chart([Line(name, points, notes=[name]), Line(name, [(0, 0)])], title=name, x=axis, y=axis)
    known = ("svg", "title", "rect", "line", "text", "polyline", "circle")
    assert {each.tag for each in parsed(text).iter()} <= {SVG + tag for tag in known}


def test_the_legend_stays_inside() -> None:
    names = [f"a rather long name of a layer {k}" for k in range(12)]
    root = parsed(line_chart([Line(name, [(0, k)]) for k, name in enumerate(names)], title="", width=500))
    height = float(root.attrib["height"])
    entries = [each for each in root.iter(f"{SVG}text") if each.text in names]
    assert len(entries) == 12
    assert all(float(e.attrib["y"]) < height for e in entries)
    assert all(float(e.attrib["x"]) + 5 * len(e.text or "") < 500 for e in entries)


def test_nothing_comes_from_elsewhere() -> None:
    text = line_chart([Line("http://evil", [(0, 1)])], title="")
    assert "href" not in text
    assert "url(" not in text
