"""Reports as JUnit XML, which CI services show as tests: each check is a case, each figure a property.

What could not be checked is skipped, never passed. Format: https://github.com/testmoapp/junitxml
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from onnxprune.errors import quote
from onnxprune.reports.pages import Check, Page, page_of
from onnxprune.reports.records import Record

__all__ = ["to_junit"]

_TEXT = 1000  # characters


def to_junit(report: Record) -> str:
    """Returns a report as a JUnit XML document in ASCII."""
    page = page_of(report)
    failed = sum(check.passed is False for check in page.checks)
    skipped = sum(check.passed is None for check in page.checks)
    counts = {"tests": str(len(page.checks)), "failures": str(failed), "errors": "0", "skipped": str(skipped)}
    root = ET.Element("testsuites", {"name": "onnxprune", **counts})
    suite = ET.SubElement(root, "testsuite", {"name": _text(page.title), **counts, "time": f"{page.seconds:.3f}"})
    properties = ET.SubElement(suite, "properties")
    for name, value in _figures(page):
        ET.SubElement(properties, "property", name=_text(name), value=_text(value))
    for check in page.checks:
        suite.append(_case(check, page.what))
    if page.warnings:
        ET.SubElement(suite, "system-err").text = "\n".join(f"warning: {_text(warning)}" for warning in page.warnings)
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="us-ascii", xml_declaration=True)
    return document.decode("ascii") + "\n"


def _figures(page: Page) -> list[tuple[str, str]]:
    figures = [("onnxprune", page.tool)]
    for tile in page.tiles:
        figures += [(f"{tile.label}, before", tile.before)] if tile.before else []
        figures.append((tile.label, tile.after))
    return figures


def _case(check: Check, kind: str) -> ET.Element:
    case = ET.Element("testcase", classname=f"onnxprune.{_text(kind).replace(' ', '_')}", name=_text(check.name))
    if check.passed is None:
        ET.SubElement(case, "skipped", message=_text(check.message))
    elif check.passed:
        ET.SubElement(case, "system-out").text = _text(check.message)
    else:
        ET.SubElement(case, "failure", message=_text(check.message)).text = _text(check.message)
    return case


def _text(text: str) -> str:
    """Returns a text of characters that XML allows."""
    return quote(text, _TEXT)[1:-1]
