"""What each group costs the outputs, against numpy and against runs of the whole network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxprune.allocation import sensitivity, suffix
from onnxprune.allocation.divergence import divergence, relative_error
from onnxprune.allocation.sensitivity import Sensitivity, divided, ladder, measure
from onnxprune.allocation.suffix import Change, Suffix
from onnxprune.engine.coupling import Coupling, couple
from onnxprune.engine.frontier import Feed, Frontier, Spool
from onnxprune.engine.units import Units, find_units
from onnxprune.graph.trace import trace

CPU = ("CPUExecutionProvider",)
RNG = np.random.default_rng(7)


def coupled(text: str, **weights: np.ndarray) -> Coupling:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.float32(w), n) for n, w in weights.items())
    graph = ir.from_proto(model)
    return couple(graph, trace(graph))


# two hidden layers side by side, of which the second hardly reaches the output
BRANCHES = """g (float[n, 6] x) => (float[n, 3] y) {
    a = Gemm(x, w1, b1) ra = Relu(a) ya = Gemm(ra, w2, b2)
    c = Gemm(x, w3, b3) rc = Relu(c) yc = Gemm(rc, w4, b4)
    y = Add(ya, yc)
}"""
W = {"w1": (6, 8), "b1": (8,), "w2": (8, 3), "b2": (3,), "w3": (6, 10), "b3": (10,), "w4": (10, 3), "b4": (3,)}
WEIGHTS = {name: RNG.normal(size=shape) for name, shape in W.items()} | {"w4": 1e-3 * RNG.normal(size=(10, 3))}
BATCHES: list[Feed] = [{"x": RNG.normal(size=(16, 6)).astype(np.float32)} for _ in range(8)]


@pytest.fixture(scope="module")
def branches() -> Units:
    """Returns the units of the two hidden layers."""
    return find_units(coupled(BRANCHES, **WEIGHTS))


def measured(units: Units, *, jobs: int = 1, seed: int = 0, chosen: tuple[bool, ...] | None = None) -> Sensitivity:
    fit, held = divided(BATCHES)
    scores = [np.arange(len(g), dtype=float) for g in units.groups]
    wanted = chosen or (True,) * len(units.groups)
    return measure(units, wanted, scores, fit, held, providers=CPU, seed=seed, jobs=jobs)


def test_every_group_has_a_curve_from_nothing_to_all_but_one(branches: Units) -> None:
    found = measured(branches)
    assert [(c.name, c.units) for c in found.curves] == [("w1", 8), ("w3", 10)]
    for curve in found.curves:
        assert curve.counts == (0, *ladder(curve.units, sensitivity.LADDER))
        assert curve.counts[-1] == curve.units - 1
        assert curve.divergence[0] == 0
        assert curve.divergence[1] > 0
        assert curve.divergence[-1] > curve.divergence[1]
    assert found.samples == 32


def test_a_group_that_hardly_reaches_the_output_costs_little(branches: Units) -> None:
    strong, weak = measured(branches).curves
    assert weak.divergence[-1] < 1e-3 * strong.divergence[1]


def test_units_that_repeat_others_cost_nothing() -> None:
    rng = np.random.default_rng(1)
    twice = {"w1": np.repeat(WEIGHTS["w1"], 2, axis=1), "b1": np.repeat(WEIGHTS["b1"], 2)}
    found = measured(find_units(coupled(BRANCHES, **{**WEIGHTS, **twice, "w2": rng.normal(size=(16, 3))})))
    curve = found.curves[0]
    at_half, deepest = curve.divergence[curve.counts.index(8)], curve.divergence[-1]
    assert at_half < 1e-2 * deepest


def test_the_divergence_is_that_of_a_least_squares_fit_to_what_is_kept(branches: Units) -> None:
    fit, held = ({"x": np.concatenate([b["x"] for b in part])} for part in divided(BATCHES))
    curve = measured(branches).curves[0]

    def hidden(x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ WEIGHTS["w1"] + WEIGHTS["b1"], 0)

    target, truth = (hidden(part["x"]) @ WEIGHTS["w2"] for part in (fit, held))
    other = np.maximum(held["x"] @ WEIGHTS["w3"] + WEIGHTS["b3"], 0) @ WEIGHTS["w4"] + WEIGHTS["b4"]
    fitted, losses = [], []
    for unit in range(8):
        kept = np.delete(np.arange(8), unit)
        with_ones = [np.hstack([hidden(part["x"])[:, kept], np.ones((len(part["x"]), 1))]) for part in (fit, held)]
        solved = np.linalg.lstsq(with_ones[0], target, rcond=None)[0]
        fitted.append(float(((with_ones[0] @ solved - target) ** 2).sum()))
        dense, pruned = truth + WEIGHTS["b2"] + other, with_ones[1] @ solved + WEIGHTS["b2"] + other
        losses.append(relative_error([{"y": dense}], [{"y": pruned}]))
    assert curve.counts[1] == 1
    assert curve.divergence[1] == pytest.approx(losses[int(np.argmin(fitted))], rel=0.05)


def test_the_same_seed_gives_the_same_figures_whatever_the_jobs(branches: Units) -> None:
    first = measured(branches, seed=3)
    assert measured(branches, seed=3) == first
    assert measured(branches, seed=3, jobs=4) == first


def test_groups_that_are_not_wanted_are_not_tried(branches: Units) -> None:
    found = measured(branches, chosen=(True, False))
    assert found.curves[0] == measured(branches).curves[0]
    assert (found.curves[1].counts, found.curves[1].divergence) == ((0,), (0.0,))


def test_dear_trials_are_fewer_and_on_fewer_samples(branches: Units, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "WORK", 1)
    monkeypatch.setattr(sensitivity, "LEAST_SAMPLES", 9)
    found = measured(branches)
    assert found.samples == 9
    monkeypatch.setattr(sensitivity, "MOST_WORK", 1)
    assert measured(branches).samples == 1
    assert found.curves[0].counts == (0, *ladder(8, sensitivity.SHORT_LADDER))


def test_progress_is_told_and_reaches_its_end(branches: Units) -> None:
    told: list[tuple[int, int]] = []
    fit, held = divided(BATCHES)
    scores = [np.ones(len(g)) for g in branches.groups]
    measure(branches, [True, True], scores, fit, held, providers=CPU, seed=0, progress=lambda *at: told.append(at))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_one_batch_in_four_is_held_out() -> None:
    fit, held = divided(BATCHES)
    assert (len(fit), len(held)) == (6, 2)
    assert not {id(b) for b in fit} & {id(b) for b in held}
    fit, held = divided(BATCHES[:2])
    assert (len(fit), len(held)) == (1, 1)
    assert divided(BATCHES[:1]) == (BATCHES[:1], BATCHES[:1])


# ---------------------------------------------------------------- other couplings
STREAM = """g (float[n, 3, 6, 6] x) => (float[n, 4] y) {
    s = Conv<pads = [1, 1, 1, 1]>(x, w1) r = Relu(s)
    h = Conv<pads = [1, 1, 1, 1]>(r, w2, b2) q = Relu(h) d = Conv<pads = [1, 1, 1, 1]>(q, w3)
    t = Add(d, r) u = Relu(t) p = GlobalAveragePool(u) f = Flatten(p) y = Gemm(f, w4, b4)
}"""
STREAM_WEIGHTS = {
    **{"w1": RNG.normal(size=(8, 3, 3, 3)), "w2": RNG.normal(size=(6, 8, 3, 3)) / 8, "b2": RNG.normal(size=6)},
    **{"w3": RNG.normal(size=(8, 6, 3, 3)) / 8, "w4": RNG.normal(size=(8, 4)), "b4": RNG.normal(size=4)},
}
LSTM = """g (float[5, n, 4] x) => (float[n, 2] y) {
    all, h, c = LSTM<hidden_size = 6>(x, w1, w2, b1) last = Squeeze(h, zero) y = Gemm(last, w3, b3)
}"""
LSTM_WEIGHTS = {
    **{"w1": RNG.normal(size=(1, 24, 4)), "w2": RNG.normal(size=(1, 24, 6)) / 3, "b1": RNG.normal(size=(1, 48))},
    **{"w3": RNG.normal(size=(6, 2)), "b3": RNG.normal(size=2)},
}


@pytest.mark.parametrize("kind", ["stream", "lstm"])
def test_groups_with_several_producers_and_consumers_are_measured_too(kind: str) -> None:
    rng = np.random.default_rng(1)
    if kind == "stream":
        units = find_units(coupled(STREAM, **STREAM_WEIGHTS))
        batches: list[Feed] = [{"x": rng.normal(size=(8, 3, 6, 6)).astype(np.float32)} for _ in range(4)]
    else:
        cell = coupled(LSTM.replace("last = ", "zero = Constant<value_ints = [0]>() last = "), **LSTM_WEIGHTS)
        units = find_units(cell)
        batches = [{"x": rng.normal(size=(5, 8, 4)).astype(np.float32)} for _ in range(4)]
    assert units.groups
    fit, held = divided(batches)
    scores = [np.arange(len(g), dtype=float) for g in units.groups]
    found = measure(units, [True] * len(units.groups), scores, fit, held, providers=CPU, seed=0)
    for curve in found.curves:
        assert len(curve.counts) > 2
        assert 0 < curve.divergence[1] < curve.divergence[-1]


# ---------------------------------------------------------------- suffixes
@pytest.mark.parametrize("most", [suffix.MOST_BYTES, 64])
def test_a_suffix_gives_what_the_whole_changed_network_gives(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    monkeypatch.setattr(suffix, "MOST_BYTES", most)
    model = coupled(STREAM, **STREAM_WEIGHTS)
    batches: list[Feed] = [{"x": rng.normal(size=(n, 3, 6, 6)).astype(np.float32)} for n in (4, 2)]
    changed = rng.normal(size=(8, 6, 3, 3)).astype(np.float32)
    change = Change(({"w3": changed},))
    spool = Spool()
    frontier = Frontier(model, batches, CPU, spool, [("y", len(model.nodes))])
    behind = Suffix(model, change, CPU)
    assert behind.start == 4
    assert len(behind.parts) == (1 if most > 64 else 2)
    frontier.advance(behind.start)
    found = behind.run(frontier.values, change.contents[0])
    spool.close()
    proto = ir.to_proto(coupled(STREAM, **{**STREAM_WEIGHTS, "w3": changed}).model)
    whole = ort.InferenceSession(proto.SerializeToString(), providers=list(CPU))
    for batch, outputs in zip(batches, found, strict=True):
        np.testing.assert_allclose(outputs["y"], whole.run(None, dict(batch))[0], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- divergences
def test_scores_of_classes_are_compared_as_probabilities() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5, 4))
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    q = np.roll(p, 1, axis=1)
    expected = float((p * np.log(p / q)).sum(axis=1).mean())
    for one, two in ((p, q), (np.log(p) + 3, np.log(q) - 7)):
        assert divergence([{"y": one}], [{"y": two}]) == pytest.approx(expected)
        assert divergence([{"y": one}], [{"y": one}]) == 0


def test_other_outputs_are_compared_by_relative_error() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 3, 4, 5))
    for measure_of in (divergence, relative_error):
        assert measure_of([{"y": x}], [{"y": x + 0.1 * (x - x.mean())}]) == pytest.approx(0.01)
        assert measure_of([{"y": x, "k": np.arange(3)}], [{"y": x, "k": np.arange(3) + 1}]) == 0


def test_a_shift_of_all_logits_is_no_error() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(6, 3))
    assert relative_error([{"y": logits}], [{"y": logits + 5}]) == pytest.approx(0, abs=1e-12)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    moved = logits + rng.normal(size=(6, 3)) / 10
    q = np.exp(moved) / np.exp(moved).sum(axis=1, keepdims=True)
    as_logits = relative_error([{"y": logits}], [{"y": moved}])
    assert relative_error([{"y": p}], [{"y": q}]) == pytest.approx(as_logits, rel=1e-6)


def test_outputs_that_are_no_numbers_are_the_worst() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 2))
    broken = np.where(np.eye(3, 2) > 0, np.nan, x)
    for measure_of in (divergence, relative_error):
        assert measure_of([{"y": x}], [{"y": broken}]) >= 1e6
        assert measure_of([{"y": x}], [{"y": x[:2]}]) >= 1e6
        assert measure_of([{"y": broken}], [{"y": broken}]) == 0  # where the dense one has none, nothing is asked


def test_batches_merge() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    parts = [slice(0, 4), slice(4, 6)]
    for measure_of in (divergence, relative_error):
        together = measure_of([{"y": x}], [{"y": y}])
        assert measure_of([{"y": x[p]} for p in parts], [{"y": y[p]} for p in parts]) == pytest.approx(together)


def test_a_frozen_measurement_can_be_taken_over(branches: Units) -> None:
    found = measured(branches)
    assert replace(found, samples=found.samples) == found
    assert hash(found) == hash(measured(branches))
