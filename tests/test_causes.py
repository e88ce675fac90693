"""Frozen channels are told by what decides that they stay, not by the nodes that only pass it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

import onnxprune
from onnxprune.errors import NothingToPruneError
from onnxprune.reports import findings

STREAM = """
<ir_version: 9, opset_import: ["" : 17]>
stream (float[N, 6] x) => (float[N, 3] y) {
  a = MatMul (x, wa)
  n = LayerNormalization <axis = -1> (a, scale)
  h1 = MatMul (n, w1)
  s1 = Add (n, h1)
  h2 = MatMul (s1, w2)
  s2 = Add (s1, h2)
  y = MatMul (s2, wy)
}
"""


def stream(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for k, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{k}"
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def test_a_stream_stays_for_the_normalisation_that_it_began_with() -> None:
    model = stream(STREAM, wa=(6, 8), scale=(8,), w1=(8, 8), w2=(8, 8), wy=(8, 3))
    rows = {(row.op, row.node): row for row in onnxprune.inspect(model).frozen}
    found = rows["LayerNormalization", "LayerNormalization_1"]
    assert "mean and variance" in found.why
    assert found.channels == 8 + 8 + 8  # of the normalisation's own input, and of both that are added behind it
    assert {"wa", "w1", "w2"} <= set(found.weights)
    assert not [op for op, _ in rows if op == "Add"]


GIVEN = """
<ir_version: 9, opset_import: ["" : 17]>
given (float[N, 6] x, float[N, 8] other) => (float[N, 3] y) {
  a = MatMul (x, wa)
  s = Add (other, a)
  y = MatMul (s, wy)
}
"""


def test_an_input_of_the_graph_is_named() -> None:
    frozen = onnxprune.inspect(stream(GIVEN, wa=(6, 8), wy=(8, 3))).frozen
    assert ("other", "an input of the graph", 8) in {(row.node, row.why, row.channels) for row in frozen}


BOXES = """
<ir_version: 9, opset_import: ["" : 17]>
boxes (float[1, 1, 5] x) => (int64[k, 3] y) {
  y = NonMaxSuppression (w, x)
}
"""


@pytest.mark.parametrize("blocked", [False, True])
def test_an_operator_without_a_rule_that_holds_weights_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, blocked: bool
) -> None:
    if blocked:
        monkeypatch.setattr(findings, "BLOCKED", "")  # as convolutions are that fit one processor
    model = stream(BOXES, w=(1, 5, 4))
    told = "no rule for 1 NonMaxSuppression node of 'ai.onnx' holding weights"
    (note,) = onnxprune.inspect(model).notes
    assert note.startswith(told) and ("one processor" in note) == blocked
    with pytest.raises(NothingToPruneError, match=told):
        onnxprune.prune(model, ratio=0.5, output=tmp_path / "pruned.onnx")


CHAIN = """
<ir_version: 9, opset_import: ["" : 17]>
chain (float[N, 5] x) => (float[N, 3] y) {
  a = MatMul (x, wa)
  r = Relu (a)
  y = MatMul (r, wy)
}
"""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ratio": 0.1}, r"ratio 0\.1 cuts no whole unit \(the largest group has 6\); give a higher ratio$"),
        ({"ratio": 0.3, "align": 4}, "where multiples of 4 stay; give a higher ratio, or a lower --align$"),
        ({"ratio": 0.5, "min_units": 6}, "--min-units bound what may go of each group"),
        ({"max_drop": 1.0, "min_units": 6}, "--min-units bound what may go of each group"),
        ({"ratio": 0.5, "include": ["nothing"]}, "no group matches --include"),
    ],
)
def test_why_nothing_goes_is_told_by_what_keeps_it(options: dict[str, Any], told: str) -> None:
    with pytest.raises(NothingToPruneError, match=told):
        onnxprune.prune(stream(CHAIN, wa=(5, 6), wy=(6, 3)), criterion="l1", compensate="none", **options)
