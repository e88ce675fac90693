"""Figures of fidelity against their definitions, and their intervals against what they claim."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from onnxprune.graph.running import Outputs
from onnxprune.proof.fidelity import LEAST_SAMPLES, LOUDEST, fidelity
from onnxprune.reports.report import OutputFidelity


def feeds(a: np.ndarray, b: np.ndarray, batch: int, name: str = "y") -> Iterator[tuple[int, Outputs, Outputs]]:
    for k in range(0, len(a), batch):
        yield len(a[k : k + batch]), {name: a[k : k + batch]}, {name: b[k : k + batch]}


def of(a: np.ndarray, b: np.ndarray, batch: int = 16, name: str = "y") -> OutputFidelity:
    found, unlike = fidelity(feeds(a, b, batch, name))
    assert not unlike
    return found[0]


def drawn(*shape: int, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal(shape)
    return a.astype(np.float32), (a + noise * rng.standard_normal(shape)).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64))
    return e / e.sum(-1, keepdims=True)


def test_figures_by_their_definitions() -> None:
    a, b = drawn(100, 7)
    found = of(a, b)
    d, x, y = (v.astype(np.float64).ravel() for v in (a.astype(np.float64) - b, a, b))
    assert found.samples == 100
    assert found.relative_error == pytest.approx(np.linalg.norm(d) / np.linalg.norm(x))
    assert found.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    assert found.snr == pytest.approx(20 * np.log10(np.linalg.norm(x) / np.linalg.norm(d)))
    p, q = softmax(a), softmax(b)
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(1).mean())
    assert found.top1_agreement == pytest.approx((a.argmax(1) == b.argmax(1)).mean())


def test_probabilities_are_taken_as_they_are() -> None:
    a, b = (softmax(x).astype(np.float32) for x in drawn(60, 5))
    assert of(a, b).kl == pytest.approx((a * np.log(a / b)).sum(1).mean(), rel=1e-5)


@pytest.mark.parametrize(("name", "scored"), [("logits", True), ("hidden", False)])
def test_scores_of_every_token(name: str, scored: bool) -> None:
    a, b = drawn(20, 6, 9)
    found = of(a, b, name=name)
    assert (found.kl is not None) == (found.top1_agreement is not None) == scored
    if scored:
        assert found.top1_agreement == pytest.approx((a.argmax(2) == b.argmax(2)).mean())


def test_batches_make_no_difference() -> None:
    a, b = drawn(50, 4, 3)
    assert of(a, b, batch=50) == of(a, b, batch=7) == of(a, b, batch=1)


def test_nothing_moved() -> None:
    a, _ = drawn(20, 5)
    found = of(a, a)
    assert (found.relative_error, found.cosine, found.snr, found.kl, found.top1_agreement) == (0, 1, LOUDEST, 0, 1)
    assert found.intervals["relative_error"].high == 0
    assert found.intervals["top1_agreement"].low < 0.9  # twenty samples cannot tell more


def test_a_number_that_became_none_counts_as_lost() -> None:
    a, b = drawn(20, 5)
    b[3, 2] = np.nan
    found = of(a, b)
    assert found.relative_error == np.inf
    assert found.kl == np.inf
    assert found.top1_agreement is not None
    assert found.top1_agreement <= 0.95
    assert set(found.intervals) <= {"top1_agreement"}


def test_nothing_is_asked_where_the_original_is_no_number() -> None:
    a, b = drawn(20, 5)
    a[3, 2], b[3, 2] = np.inf, 7.0
    assert np.isfinite(of(a, b).relative_error)


def test_outputs_that_cannot_be_compared_are_named() -> None:
    a = np.ones((4, 3), np.float32)
    same = (4, {"y": a, "n": np.arange(4)}, {"y": a, "n": np.arange(4)})
    other = (4, {"z": a}, {"z": a[:2]})
    missing = (4, {"w": a}, {"v": a})
    found, unlike = fidelity([same, other, missing])
    assert [f.name for f in found] == ["y"]
    assert unlike == ("z", "w")


def test_an_output_without_an_axis_of_samples_is_one_sample_of_each_feed() -> None:
    pairs = [(8, {"y": np.full((3, 3), k + 1.0)}, {"y": np.full((3, 3), k + 1.5)}) for k in range(12)]
    found, _ = fidelity(pairs)
    assert found[0].samples == 12


def test_few_samples_have_no_interval() -> None:
    a, b = drawn(LEAST_SAMPLES, 5)
    assert of(a, b).intervals.keys() == {"relative_error", "cosine", "snr", "kl", "top1_agreement"}
    assert of(a[1:], b[1:]).intervals == {}


def test_intervals_are_the_same_every_time() -> None:
    a, b = drawn(64, 5)
    assert of(a, b).intervals == of(a, b).intervals


def test_intervals_narrow_with_samples_and_hold_the_figure() -> None:
    widths = []
    for n in (40, 640):
        found = of(*drawn(n, 5))
        for name, interval in found.intervals.items():
            assert interval.low <= getattr(found, name) <= interval.high, name
        widths.append(found.intervals["kl"].high - found.intervals["kl"].low)
    assert 2 < widths[0] / widths[1] < 8


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = 0.3  # both parts have independent numbers, so this is the limit of the relative error
    covered = 0
    for seed in range(100):
        interval = of(*drawn(60, 4, seed=seed)).intervals["relative_error"]
        covered += interval.low <= truth <= interval.high
    assert 85 <= covered <= 99


def test_blocks_of_many_samples_give_the_intervals_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples in the order of their classes, as labelled data often are: blocks must not be of one kind."""
    a, b = drawn(6000, 5)
    b[:3000] += 0.5 * a[:3000]
    found = of(a, b, 500)
    monkeypatch.setattr("onnxprune.proof.fidelity.MOST_DRAWN", len(a))
    one_by_one = of(a, b, 500)
    for name, interval in found.intervals.items():
        wanted = one_by_one.intervals[name]
        assert interval.high - interval.low == pytest.approx(wanted.high - wanted.low, rel=0.15)
        assert interval.low == pytest.approx(wanted.low, abs=0.15 * (wanted.high - wanted.low))
