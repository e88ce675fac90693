"""The formats that a report can be written in, by the ending of the file's name."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from onnxprune.reports.records import Record

__all__ = ["FORMATS", "add_to_summary", "to_text"]

FORMATS = (".html", ".json", ".md", ".xml")

SUMMARY = "GITHUB_STEP_SUMMARY"  # a file that GitHub shows beside a step of a workflow
SUMMARY_BYTES = 1 << 20  # what is longer is not shown at all


def to_text(report: Record, ending: str) -> str:
    """Returns a report in the format of an ending: JSON, or an HTML, Markdown or JUnit XML document."""
    if ending == ".json":
        return report.to_json()
    if ending == ".html":
        from onnxprune.reports.html import to_html

        return to_html(report)
    if ending == ".xml":
        from onnxprune.reports.junit import to_junit

        return to_junit(report)
    from onnxprune.reports.markdown import to_markdown

    return to_markdown(report)


def add_to_summary(report: Record) -> None:
    """Appends a report to the summary of the step that runs it, where GitHub asks for one.

    A summary that cannot be written is no reason to fail: it is the log's, not the user's.
    """
    path = os.environ.get(SUMMARY)
    if not path:
        return
    from onnxprune.reports.markdown import to_markdown

    with contextlib.suppress(OSError):
        file = Path(path)
        room = SUMMARY_BYTES - (file.stat().st_size if file.is_file() else 0)
        text = to_markdown(report, most=room)
        if text:
            with file.open("a", encoding="utf-8", newline="\n") as out:
                out.write(text)
