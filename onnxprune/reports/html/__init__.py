"""Reports as one HTML page that needs nothing else: no script, no font, no picture and no request.

Texts come from models and are hostile until shown otherwise: what a terminal could not print is written out, the rest
is escaped by the template, and a content security policy in the page forbids what slips through.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from onnxprune.errors import quote
from onnxprune.reports.pages import page_of
from onnxprune.reports.records import Record

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["to_html"]

_TEXT = 1000  # characters
_NAME = 90


def to_html(report: Record) -> str:
    """Returns a report as an HTML document."""
    return _template().render(page=page_of(report))


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    here = resources.files("onnxprune.reports.html")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["text"] = lambda text: _printable(str(text), _TEXT)
    environment.filters["name"] = _name
    environment.filters["svg"] = Markup  # made by onnxprune.svg, which escapes what it is given
    environment.globals["style"] = Markup(here.joinpath("report.css").read_text(encoding="utf-8"))
    return environment.from_string(here.joinpath("report.html.j2").read_text(encoding="utf-8"))


def _printable(text: str, limit: int) -> str:
    return quote(text, limit)[1:-1]


def _name(text: str) -> str:
    """Returns a name at a length that fits, its beginning and its end kept."""
    shown = _printable(text, _TEXT)
    return shown if len(shown) <= _NAME else f"{shown[: _NAME // 2]}…{shown[1 - _NAME // 2 :]}"
