"""docs/report.schema.json is what the reports are."""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from reports import KINDS

import onnxprune
from onnxprune.reports.records import Record

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8"))
    return found


def test_the_schema_is_up_to_date() -> None:
    found = subprocess.run([sys.executable, ROOT / "tools" / "document_schema.py", "--check"], check=False)
    assert found.returncode == 0, "run python tools/document_schema.py"


def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("kind", KINDS)
def test_reports_hold_to_the_schema(kind: str, schema: dict[str, Any]) -> None:
    for name in ("conv1.weight", "<script>\x1b\udcff", "x" * 10_000):
        jsonschema.validate(json.loads(KINDS[kind](name).to_json()), schema)


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_with_a_wrong_value_does_not(kind: str, schema: dict[str, Any]) -> None:
    values = json.loads(KINDS[kind]("a").to_json())
    for wrong in (
        {**values, "kind": "other"},
        {**values, "version": 2},
        {k: v for k, v in values.items() if k != "kind"},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_what_is_no_number_holds_to_the_schema(schema: dict[str, Any]) -> None:
    values = json.loads(KINDS["prune"]("a", value=math.nan).to_json())
    assert values["validation"]["fidelity"][0]["cosine"] is None
    jsonschema.validate(values, schema)


@pytest.mark.parametrize("kind", KINDS)
def test_reports_come_back_from_json(kind: str) -> None:
    report = KINDS[kind]("größe/卷积")
    assert type(report).from_dict(json.loads(report.to_json())) == report


def test_every_kind_of_report_is_in_the_schema_and_in_these_tests(schema: dict[str, Any]) -> None:
    for module in pkgutil.walk_packages(onnxprune.__path__, "onnxprune."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    kinds = {kind.kind for kind in Record.__subclasses__()}
    known = {
        schema["$defs"][each["$ref"].rpartition("/")[2]]["properties"]["kind"]["const"] for each in schema["oneOf"]
    }
    assert kinds == known == set(KINDS)
