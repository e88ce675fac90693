"""Inputs that are made up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from onnxprune.calibration import PictureOptions, open_calibration
from onnxprune.calibration.synthetic import dead_leaves, synthetic
from onnxprune.errors import UsageError
from onnxprune.graph import inputs
from onnxprune.graph.inputs import InputSpec
from onnxprune.graph.model import load

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
MODELS = sorted((Path(__file__).parent.parent / "models").glob("*.onnx"))


def joined(spec: InputSpec, samples: int, seed: int = 0, **options: Any) -> np.ndarray:
    calibration = synthetic([spec], samples, seed, **options)
    assert calibration.synthetic and calibration.samples == samples
    return np.concatenate([b[spec.name] for b in calibration.batches()])


def test_pictures_are_normalised_and_differ() -> None:
    found = joined(InputSpec("x", F32, ("n", 3, 32, 32)), 256)
    assert found.shape == (256, 3, 32, 32) and found.dtype == F32
    assert abs(found.mean()) < 0.15 and 0.8 < found.std() < 1.2
    assert len({p.tobytes() for p in found}) == 256


def test_pictures_have_the_statistics_of_photographs() -> None:
    found = joined(InputSpec("x", F32, ("n", 3, 64, 64)), 100)
    colours = np.corrcoef(found.transpose(1, 0, 2, 3).reshape(3, -1))
    assert colours[0, 1] > 0.8 and colours[0, 2] > 0.7  # mostly light and dark
    near = np.mean((found[..., 1:] - found[..., :-1]) ** 2)
    far = np.mean((found[..., 16:] - found[..., :-16]) ** 2)
    assert near < 0.2 * far
    flat = np.abs(np.diff(found, axis=-1)).ravel()
    assert np.median(flat) < 0.3 * flat.std()  # heavy tails: smooth leaves, sharp edges


@pytest.mark.parametrize("options", [{}, {"batch": 7}])
def test_the_seed_alone_decides(options: dict[str, Any]) -> None:
    spec = InputSpec("x", F32, ("n", 3, 16, 16))
    first = joined(spec, 20, 5)
    np.testing.assert_array_equal(first, joined(spec, 20, 5, **options))
    np.testing.assert_array_equal(first[:10], joined(spec, 10, 5, **options))
    assert not np.array_equal(first, joined(spec, 20, 6, **options))


def test_a_second_pass_gives_the_same() -> None:
    specs = [InputSpec("x", F32, ("n", 3, 16, 16)), InputSpec("y", F32, ("n", 5))]
    calibration = synthetic(specs, 10, batch=4)
    for a, b in zip(calibration.batches(), calibration.batches(), strict=True):
        for name in ("x", "y"):
            np.testing.assert_array_equal(a[name], b[name])


def test_layouts_channels_and_bytes() -> None:
    assert joined(InputSpec("x", F32, ("n", 16, 24, 1)), 3).shape == (3, 16, 24, 1)
    assert joined(InputSpec("x", F32, ("n", 4, 16, 24)), 3).shape == (3, 4, 16, 24)
    found = joined(InputSpec("x", np.dtype(np.uint8), ("n", 3, 32, 32)), 50)
    assert found.dtype == np.uint8 and 80 < found.mean() < 150 and found.std() > 40
    signed = joined(InputSpec("x", np.dtype(np.int8), ("n", 3, 32, 32)), 50)
    np.testing.assert_array_equal(signed.astype(int) + 128, found)


def test_the_users_normalisation_and_size_are_taken() -> None:
    spec = InputSpec("x", F32, ("n", 3, "h", "w"))
    options = PictureOptions(mean=(0.0,), std=(1.0,), size=(20, 40))
    found = joined(spec, 10, pictures=options)
    assert found.shape == (10, 3, 20, 40) and found.min() >= 0 and found.max() <= 1
    with pytest.raises(UsageError, match="--image-size"):
        joined(InputSpec("x", F32, ("n", 3, 8, 8)), 10, pictures=options)


def test_tokens_fill_the_vocabulary_and_masks_are_ones() -> None:
    specs = [
        InputSpec("input_ids", I64, ("batch", "seq"), bound=50),
        InputSpec("attention_mask", I64, ("batch", "seq")),
        InputSpec("position_ids", I64, ("batch", "seq")),
        InputSpec("token_type_ids", I64, ("batch", "seq"), bound=2),
        InputSpec("keep", np.dtype(bool), ("batch", "seq")),
        InputSpec("float_mask", F32, ("batch", 1, "seq", "seq")),
    ]
    (batch,) = synthetic(specs, 30).batches()
    assert set(batch["input_ids"].ravel()) == set(range(50))
    assert all((batch[name] == 1).all() for name in ("attention_mask", "keep", "float_mask"))
    length = batch["input_ids"].shape[1]
    assert (batch["position_ids"] == np.arange(length)).all()
    assert (batch["token_type_ids"] == 0).all()


@pytest.mark.parametrize(
    ("shape", "axes", "white"),
    [(("n", 40), (), 1), (("n", "t", 64), (1,), 2), (("n", 20, 400), (2,), 1), (("n", 16, 32, 32), (2, 3), 1)],
)
def test_noise_is_normal_and_smooth_in_time_and_space(
    shape: tuple[int | str, ...], axes: tuple[int, ...], white: int
) -> None:
    known = {"x": tuple(2 if d == "n" else 48 if d == "t" else int(d) for d in shape)}
    found = joined(InputSpec("x", F32, shape), 400, shapes=known).astype(float)
    assert abs(found.mean()) < 0.1 and 0.9 < found.std() < 1.1
    for axis in range(1, found.ndim):
        moved = np.moveaxis(found, axis, -1)
        alike = np.corrcoef(moved[..., 1:].ravel(), moved[..., :-1].ravel())[0, 1]
        assert alike > 0.4 if axis in axes else abs(alike) < 0.05


def test_shapes_of_a_trace_are_taken_and_the_batch_is_free() -> None:
    spec = InputSpec("x", F32, ("n", "t", 6))
    (batch,) = synthetic([spec], 10, shapes={"x": (2, 11, 6)}).batches()
    assert batch["x"].shape == (10, 11, 6)


def test_a_declared_batch_and_inputs_without_one_are_respected() -> None:
    fixed = synthetic([InputSpec("x", F32, (4, 3, 16, 16))], 10)
    assert [b["x"].shape[0] for b in fixed.batches()] == [4, 4, 4] and fixed.samples == 12
    mixed = [InputSpec("x", F32, ("n", 3)), InputSpec("scale", F32, ())]
    found = list(synthetic(mixed, 6, batch=4).batches())
    assert [b["x"].shape for b in found] == [(2, 3)] * 3 and found[0]["scale"].shape == ()
    assert not np.array_equal(found[0]["x"], found[1]["x"])


def test_the_batch_axis_may_be_the_second() -> None:
    specs = [InputSpec("x", F32, ("seq", "batch", 2)), InputSpec("h", F32, (1, "batch", 4))]
    (batch,) = synthetic(specs, 6).batches()
    assert batch["x"].shape[1] == batch["h"].shape[1] == 6


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_models_run_on_it(path: Path) -> None:
    calibration = open_calibration(None, inputs.specs(load(path).model), samples=5, batch=3)
    assert calibration.synthetic and "dead leaves" in calibration.source
    session = ort.InferenceSession(str(path))
    for batch in calibration.batches():
        assert np.isfinite(session.run(None, batch)[0]).all()


@pytest.mark.parametrize("samples", [0, -3])
def test_no_samples_make_no_sense(samples: int) -> None:
    with pytest.raises(UsageError):
        synthetic([InputSpec("x", F32, ("n", 3))], samples)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (6, 300), (33, 17)])
def test_leaves_of_any_size(height: int, width: int) -> None:
    for channels in (1, 3, 4):
        picture = dead_leaves(np.random.default_rng(0), height, width, channels)
        assert picture.shape == (height, width, channels) and picture.dtype == np.uint8


def test_pictures_are_made_quickly() -> None:
    start = time.process_time()
    joined(InputSpec("x", F32, ("n", 3, 32, 32)), 256)
    joined(InputSpec("x", F32, ("n", 3, 224, 224)), 10)
    assert time.process_time() - start < 1.25  # 1,024 in 3 s, 20 per second
