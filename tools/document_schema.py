"""Writes docs/report.schema.json, the JSON Schema of all reports: python tools/document_schema.py [--check]."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from onnxprune.latency.timing import Timing
from onnxprune.proof.gate import Verdict
from onnxprune.reports.history import History
from onnxprune.reports.records import VERSION, Record
from onnxprune.reports.report import Comparison, Inspection, Report
from onnxprune.tradeoff import Sweep

FILE = Path(__file__).resolve().parent.parent / "docs" / "report.schema.json"
KINDS: tuple[type[Record], ...] = (Report, Inspection, Comparison, Timing, Sweep, Verdict, History)
PLAIN = {str: "string", int: "integer", bool: "boolean"}


def schema() -> dict[str, Any]:
    """Returns the schema."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        _define(kind, found)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Reports of onnxprune, version {VERSION}",
        "description": "What --json and --report PATH.json write, by `kind`. Figures that are no numbers are null.",
        "oneOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in KINDS],
        "$defs": dict(sorted(found.items())),
    }


def _define(kind: type, found: dict[str, Any]) -> None:
    """Adds what a dataclass is written as, and what it holds."""
    if kind.__name__ in found:
        return
    found[kind.__name__] = {}
    described = dict(_described(kind.__doc__ or ""))
    hints = get_type_hints(kind)
    properties: dict[str, Any] = {}
    if issubclass(kind, Record):
        properties |= {"version": {"const": VERSION}, "kind": {"const": kind.kind}}
    for field in dataclasses.fields(kind):
        told = {"description": described[field.name]} if field.name in described else {}
        properties[field.name] = told | _of(hints[field.name], found)
    found[kind.__name__] = {
        "description": (kind.__doc__ or "").partition("\n")[0],
        "type": "object",
        "properties": properties,
        "required": list(properties),
    }


def _of(kind: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a field's type."""
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        _define(kind, found)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(each, found) for each in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return {"type": "array", "items": _of(arguments[0], found)}
        return {"type": "array", "prefixItems": [_of(each, found) for each in arguments], "items": False}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1], found)}
    if kind is Any:
        return {}
    if kind is float:
        return {"type": ["number", "null"]}
    return {"type": "null"} if kind is type(None) else {"type": PLAIN[kind]}


def _described(doc: str) -> Iterator[tuple[str, str]]:
    """Yields what a docstring says of each attribute."""
    _, _, attributes = doc.partition("Attributes:\n")
    for name, text in re.findall(r"^        (\w+): ((?:.|\n(?=            ))*)", attributes, re.MULTILINE):
        yield name, " ".join(text.split())


def main() -> None:
    """Writes the file, or says whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the file is not up to date")
    text = json.dumps(schema(), indent=1) + "\n"
    if parser.parse_args().check:
        sys.exit(FILE.read_text(encoding="utf-8") != text)
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
