"""Scores of units from the weights of all members of their groups."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune import abreast
from onnxprune.criteria import CRITERIA, OnWeights
from onnxprune.criteria.magnitude import l1
from onnxprune.criteria.scoring import has_scales, score
from onnxprune.engine.coupling import couple
from onnxprune.engine.units import Units, find_units
from onnxprune.graph.trace import trace


def units(text: str, **weights: np.ndarray) -> Units:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.float32(w), n) for n, w in weights.items())
    graph = ir.from_proto(model)
    return find_units(couple(graph, trace(graph)))


MLP = "g (float[n, 3] x) => (float[n, 2] y) { h = Gemm(x, w1, b1) r = Relu(h) y = MatMul(r, w2) }"
RNG = np.random.default_rng(0)
W1, B1, W2 = RNG.normal(size=(3, 5)), RNG.normal(size=5), RNG.normal(size=(5, 2))


def test_members_weigh_alike_whatever_their_size() -> None:
    parts = [np.abs(W1).sum(axis=0), np.abs(B1), np.abs(W2).sum(axis=1)]
    expected = sum(p / p.mean() for p in parts) / 3
    for factor in (1, 1000):
        (found,) = score(units(MLP, w1=W1 * factor, b1=B1, w2=W2), OnWeights(l1), 0)
        assert np.allclose(found, expected, rtol=1e-5)


def test_scores_that_compare_are_not_divided_by_their_mean() -> None:
    lamp = CRITERIA["lamp"]
    assert isinstance(lamp, OnWeights)
    parts = [lamp.rule(m, RNG) for m in (W1.T, B1[:, None], W2)]
    (found,) = score(units(MLP, w1=W1, b1=B1, w2=W2), lamp, 0)
    assert np.allclose(found, np.mean(parts, axis=0), rtol=1e-5)


@pytest.mark.parametrize("name", ["l1", "fpgm", "random"])
def test_members_that_are_looked_at_side_by_side_score_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    criterion = CRITERIA[name]
    assert isinstance(criterion, OnWeights)
    found_units = units(MLP, w1=W1, b1=B1, w2=W2)
    expected = score(found_units, criterion, 7)
    monkeypatch.setattr(abreast, "LARGE", 1)
    for jobs in (1, 3):
        found = score(found_units, criterion, 7, jobs)
        assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def test_members_of_nothing_but_zeros_do_not_count() -> None:
    (found,) = score(units(MLP, w1=W1, b1=B1 * 0, w2=W2 * 0), OnWeights(l1), 0)
    expected = np.abs(W1).sum(axis=0)
    assert np.allclose(found, expected / expected.mean(), rtol=1e-5)
    (found,) = score(units(MLP, w1=W1 * 0, b1=B1 * 0, w2=W2 * 0), OnWeights(l1), 0)
    assert found.tolist() == [0] * 5


TWO_GROUPS = """g (float[n, 3] x) => (float[n, 2] y) {
    h = MatMul(x, w1) a, b = Split<axis = 1>(h, parts) ra = Relu(a) rb = Relu(b)
    ya = MatMul(ra, w2) yb = MatMul(rb, w3) y = Add(ya, yb)
}"""


def test_a_criterion_sees_the_rows_of_one_group_only() -> None:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {TWO_GROUPS}')
    w1, w2, w3 = RNG.normal(size=(3, 9)), RNG.normal(size=(4, 2)), RNG.normal(size=(5, 2))
    constants = {"w1": np.float32(w1), "w2": np.float32(w2), "w3": np.float32(w3), "parts": np.array([4, 5])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, n) for n, w in constants.items())
    graph = ir.from_proto(model)
    shown: list[np.ndarray] = []

    def spy(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        shown.append(rows)
        return l1(rows, rng)

    found = score(find_units(couple(graph, trace(graph))), OnWeights(spy), 0)
    assert sorted(len(f) for f in found) == [4, 5]
    for expected in (w1.T[:4], w1.T[4:], w2, w3):
        assert any(r.shape == expected.shape and np.allclose(r, expected) for r in shown)


NORMALISED = """g (float[n, 2, 4, 4] x) => (float[n, 3] y) {
    c = Conv(x, w1) b = BatchNormalization(c, s, t, m, v) r = Relu(b)
    d = Conv(r, w2) q = Relu(d) p = GlobalAveragePool(q) f = Flatten(p) y = MatMul(f, w3)
}"""


def test_scales_are_asked_for_where_a_batch_normalisation_stands_and_l1_elsewhere() -> None:
    s = np.array([0.3, -2, 1, 0.1])
    found_units = units(
        NORMALISED,
        **{"w1": RNG.normal(size=(4, 2, 1, 1)), "s": s, "t": RNG.normal(size=4), "m": RNG.normal(size=4)},
        **{"v": RNG.uniform(1, 2, 4), "w2": RNG.normal(size=(5, 4, 1, 1)), "w3": RNG.normal(size=(5, 3))},
    )
    by_name = {g.name: k for k, g in enumerate(found_units.groups)}
    assert has_scales(found_units, found_units.groups[by_name["w1"]])
    assert not has_scales(found_units, found_units.groups[by_name["w2"]])
    bn_scale = CRITERIA["bn_scale"]
    assert isinstance(bn_scale, OnWeights)
    found = score(found_units, bn_scale, 0)
    assert np.allclose(found[by_name["w1"]], np.abs(s) / np.abs(s).mean())
    assert np.allclose(found[by_name["w2"]], score(found_units, OnWeights(l1), 0)[by_name["w2"]])
