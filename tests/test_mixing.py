"""Mixtures of calibration inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

import onnxprune
from onnxprune.calibration import mixtures
from onnxprune.engine.frontier import Live, Spool
from onnxprune.graph.inputs import InputSpec

MODELS = Path(__file__).parent.parent / "models"


def spec(name: str, *shape: int | str | None, dtype: type = np.float32) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_each_lies_between_two_samples_of_its_own() -> None:
    given = drawn(6, 50)
    mixed = list(mixtures([{"x": given[:3]}, {"x": given[3:]}], [spec("x", "batch", 50)], 30, 0))
    rows = np.concatenate([m["x"] for m in mixed])
    assert rows.shape == (30, 50) and rows.dtype == np.float32
    shares = np.linalg.lstsq(given.T, rows.T, rcond=None)[0].T
    np.testing.assert_allclose(shares @ given, rows, atol=1e-5)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert (shares > -1e-5).all() and ((shares > 1e-5).sum(axis=1) <= 2).all()
    assert len(np.unique(shares.max(axis=1).round(4))) > 20


def test_the_batch_axis_may_stand_anywhere_and_inputs_stay_together() -> None:
    x, y = drawn(5, 4), drawn(4, seed=1)
    (mixed,) = mixtures([{"x": x, "y": y}], [spec("x", 5, "batch"), spec("y", "batch")], 4, 3)
    shares = np.linalg.lstsq(x, mixed["x"], rcond=None)[0]
    np.testing.assert_allclose(y @ shares, mixed["y"], atol=1e-5)


def test_there_are_no_more_than_are_worth_it() -> None:
    def count(wanted: int) -> int:
        return sum(len(m["x"]) for m in mixtures([{"x": drawn(4, 2)}], [spec("x", "batch", 2)], wanted, 0))

    assert [count(0), count(-5), count(8), count(1000)] == [0, 0, 8, 28]


def test_what_needs_no_mixtures_is_not_read() -> None:
    class Unread(dict[str, np.ndarray]):
        def __getitem__(self, name: str) -> np.ndarray:
            raise AssertionError(f"{name} is read")

    specs = [spec("x", "batch", 2)]
    assert not list(mixtures([Unread(x=drawn(4, 2))], specs, 0, 0))
    with pytest.raises(AssertionError, match="x is read"):
        list(mixtures([Unread(x=drawn(4, 2))], specs, 4, 0))


def test_the_seed_tells() -> None:
    def made(seed: int) -> np.ndarray:
        return next(mixtures([{"x": drawn(4, 2)}], [spec("x", "batch", 2)], 4, seed))["x"]

    np.testing.assert_array_equal(made(1), made(1))
    assert (made(1) != made(2)).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_whole_numbers_stay_whole_and_types_as_they_are(dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(8, 20)).astype(dtype)
    shape = spec("x", "batch", 20, dtype=dtype)
    for mixed in mixtures([{"x": pixels}], [shape], 56, 0):
        assert mixed["x"].dtype == dtype
        np.testing.assert_array_equal(mixed["x"], np.rint(mixed["x"]))
    parts = next(mixtures([{"x": pixels / dtype(256)}], [shape], 8, 0))["x"]
    assert parts.dtype == dtype and (parts * 256 != np.rint(parts * 256)).any()


def test_nothing_lies_between_token_ids() -> None:
    ids = np.arange(12).reshape(4, 3)
    specs = [spec("ids", "batch", 3, dtype=np.int64), spec("x", "batch", 2)]
    assert not list(mixtures([{"ids": ids, "x": drawn(4, 2)}], specs, 8, 0))


def test_what_is_equal_in_all_samples_stays() -> None:
    same = np.full((4, 3), 7)
    scale = np.full((4, 1), 0.1, np.float32)
    specs = [spec("same", "batch", 3, dtype=np.int64), spec("scale", "batch", 1), spec("x", "batch", 2)]
    for mixed in mixtures([{"same": same, "scale": scale, "x": drawn(4, 2)}], specs, 28, 0):
        np.testing.assert_array_equal(mixed["same"], same)
        np.testing.assert_array_equal(mixed["scale"], scale)


def test_inputs_without_a_batch_axis_are_mixed_whole() -> None:
    given = [{"x": drawn(3, 5, seed=k)} for k in range(3)]
    specs = [spec("x", "height", 5)]
    mixed = [m["x"] for m in mixtures(given, specs, 9, 0)]
    assert len(mixed) == 9
    flat = np.stack([g["x"].ravel() for g in given])
    shares = np.linalg.lstsq(flat.T, np.stack(mixed).reshape(9, -1).T, rcond=None)[0].T
    assert ((np.abs(shares) > 1e-5).sum(axis=1) <= 2).all()
    assert not list(mixtures(given[:1], specs, 9, 0))


def test_only_what_has_one_shape_is_mixed() -> None:
    given = [{"x": drawn(1, 3)}, {"x": drawn(1, 4)}, {"x": drawn(1, 4, seed=1)}]
    widths = {m["x"].shape[1] for m in mixtures(given, [spec("x", "batch", "width")], 12, 0)}
    assert widths == {4}
    assert not list(mixtures(given[:2], [spec("x", "batch", "width")], 12, 0))


@pytest.mark.parametrize("how", [("obs", "bias"), ("mean", "none"), ("obs", "none")])
def test_what_needs_means_alone_sees_what_is_given_alone(how: tuple[str, str]) -> None:
    given = np.load(MODELS / "digits.npz")["input"][:256]

    def made(samples: int | None) -> bytes:
        criterion, compensate = how
        found = onnxprune.prune(
            MODELS / "digits_mlp.onnx",
            ratio=0.4,
            calibration={"input": given},
            samples=samples,
            criterion=criterion,
            compensate=compensate,
        )
        assert not any("mixtures" in note for note in found.report.notes)
        return b"".join(v.const_value.tobytes() for v in found.model.graph.initializers.values() if v.const_value)

    assert made(None) == made(256)


def test_a_batch_tells_that_it_is_mixed_whatever_is_made_of_it() -> None:
    spool = Spool()
    (mixed,), (given,) = spool.store([{"x": drawn(4, 2)}], mixed=True), spool.store([{"x": drawn(4, 2)}])
    assert isinstance(mixed, Live) and isinstance(given, Live)
    assert [b.mixed for b in (mixed, Live(spool, mixed), mixed.first(2), given, given.first(2))] == [1, 1, 1, 0, 0]
    assert mixed.first(2)["x"].shape == (2, 2)


def test_few_inputs_go_further() -> None:
    model, name = MODELS / "digits_resnet.onnx", "input"
    given = np.load(MODELS / "digits.npz")[name][:48]
    test = np.load(MODELS / "digits_test.npz")[name]

    def outputs(model: str | bytes) -> np.ndarray:
        (found,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {name: test})
        return found

    def error(samples: int | None) -> tuple[float, bool]:
        result = onnxprune.prune(model, ratio=0.4, calibration={name: given}, samples=samples, jobs=1)
        told = any("mixtures" in note for note in result.report.notes)
        dense = outputs(str(model))
        moved = outputs(ir.to_proto(result.model).SerializeToString()) - dense
        return float(np.square(moved).mean()), told

    (alone, without), (filled, with_mixtures) = error(48), error(None)
    assert (without, with_mixtures) == (False, True)
    assert filled < 0.7 * alone
