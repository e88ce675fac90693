"""Folders of pictures as calibration data."""

from __future__ import annotations

import builtins
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxprune.calibration import PictureOptions, open_calibration, pictures
from onnxprune.errors import DataError, ProviderError, UsageError
from onnxprune.graph.inputs import InputSpec

Image = pytest.importorskip("PIL.Image")

F32 = np.dtype(np.float32)


def spec(*shape: int | str | None, dtype: Any = F32) -> tuple[InputSpec, ...]:
    return (InputSpec("image", np.dtype(dtype), shape),)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def only(folder: Path, specs: tuple[InputSpec, ...], options: PictureOptions | None = None) -> np.ndarray:
    (batch,) = open_calibration(folder, specs, pictures=options).batches()
    return batch["image"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with three pictures of one colour each, two of them in folders of their class."""
    for k, name in enumerate(("cat/1.png", "dog/2.BMP", "3.ppm")):
        save(tmp_path / name, np.full((20, 30, 3), [k, 100, 200], np.uint8))
    (tmp_path / "labels.txt").write_text("cat dog")
    save(tmp_path / ".hidden/4.png", np.zeros((20, 30, 3), np.uint8))
    return tmp_path


def test_pixels_are_scaled_to_one_and_put_into_the_models_layout(folder: Path) -> None:
    calibration = open_calibration(folder, spec("n", 3, 8, 10))
    assert calibration.samples == 3
    assert any("scaled to 0..1" in w for w in calibration.warnings)
    for _ in range(2):  # decoded, then from the cache
        (batch,) = calibration.batches()
        assert batch["image"].shape == (3, 3, 8, 10) and batch["image"].dtype == F32
        np.testing.assert_allclose(batch["image"][:, 1], 100 / 255, rtol=1e-6)
        np.testing.assert_allclose(batch["image"][:, 0, 0, 0] * 255, [2, 0, 1], atol=1e-4)
    assert only(folder, spec("n", 8, 10, 3)).shape == (3, 8, 10, 3)


def test_mean_and_std_are_of_pixels_to_1_or_to_255(folder: Path) -> None:
    small = only(folder, spec("n", 3, 8, 8), PictureOptions((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    large = only(folder, spec("n", 3, 8, 8), PictureOptions((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    np.testing.assert_allclose(small[0, 1], (100 / 255 - 0.456) / 0.224, rtol=1e-5)
    np.testing.assert_allclose(small, large, rtol=1e-4, atol=1e-5)
    tensorflow = only(folder, spec("n", 3, 8, 8), PictureOptions((127.5,), (127.5,)))
    np.testing.assert_allclose(tensorflow[:, 2], 200 / 127.5 - 1, rtol=1e-6)


def test_bytes_are_fed_as_bytes(folder: Path) -> None:
    found = only(folder, spec("n", 8, 8, 3, dtype=np.uint8))
    assert found.dtype == np.uint8 and (found[..., 2] == 200).all()
    with pytest.raises(UsageError, match="takes bytes"):
        only(folder, spec("n", 8, 8, 3, dtype=np.uint8), PictureOptions(mean=(0.5,)))


def test_half_precision_is_rounded(folder: Path) -> None:
    assert only(folder, spec("n", 3, 8, 8, dtype=np.float16)).dtype == np.float16


def test_open_sizes_and_layouts_are_asked_for(folder: Path) -> None:
    open_size = spec("n", 3, "h", "w")
    with pytest.raises(UsageError, match="--image-size"):
        only(folder, open_size)
    assert only(folder, open_size, PictureOptions(size=(6, 9))).shape == (3, 3, 6, 9)
    unknown = spec("n", None, None, None)
    with pytest.raises(UsageError, match="--layout"):
        only(folder, unknown, PictureOptions(size=(6, 9)))
    assert only(folder, unknown, PictureOptions(size=(6, 9), layout="nhwc")).shape == (3, 6, 9, 3)
    with pytest.raises(UsageError, match="another size"):
        only(folder, spec("n", 3, 8, 8), PictureOptions(size=(6, 9)))


@pytest.mark.parametrize("numbers", [(0.1, 0.2), (float("nan"),)])
def test_mean_needs_a_number_per_channel(folder: Path, numbers: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="--mean"):
        only(folder, spec("n", 3, 8, 8), PictureOptions(mean=numbers))
    with pytest.raises(UsageError, match="--std"):
        only(folder, spec("n", 3, 8, 8), PictureOptions(std=(0.0,)))


def test_the_middle_is_cut_out_after_resizing_the_shorter_side(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    save(tmp_path / "a.png", wide)
    found = only(tmp_path, spec("n", 3, 10, 10))
    assert found[..., 1:-1].min() > 0.95


def test_grey_alpha_and_deep_pictures_become_what_the_model_takes(tmp_path: Path) -> None:
    save(tmp_path / "deep.png", np.full((9, 9), 128 << 8, np.uint16))
    save(tmp_path / "alpha.png", np.full((9, 9, 4), 128, np.uint8))
    save(tmp_path / "grey.png", np.full((9, 9), 128, np.uint8))
    Image.fromarray(np.full((9, 9), 128, np.uint8)).convert("P").save(tmp_path / "palette.gif")
    for channels in (1, 3, 4):
        found = only(tmp_path, spec("n", channels, 8, 8))
        np.testing.assert_allclose(found[:, 0], 128 / 255, atol=0.005)


def test_rotation_in_the_metadata_is_undone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    half = np.zeros((16, 16, 3), np.uint8)
    half[:8] = 255
    Image.fromarray(half).save(tmp_path / "a.jpg", exif=exif, quality=95)
    found = only(tmp_path, spec("n", 3, 16, 16))
    assert found[0, :, :, 9:].mean() > 0.9 and found[0, :, :, :7].mean() < 0.1


def test_jpegs_are_decoded_small(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", np.full((1024, 2048, 3), 77, np.uint8))
    np.testing.assert_allclose(only(tmp_path, spec("n", 3, 32, 32)), 77 / 255, atol=0.01)


def test_a_damaged_picture_is_named(folder: Path) -> None:
    whole = (folder / "cat/1.png").read_bytes()
    (folder / "cat/1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"'1\.png' cannot be decoded"):
        only(folder, spec("n", 3, 8, 8))
    (folder / "cat/1.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"'1\.png'"):
        only(folder, spec("n", 3, 8, 8))


def test_a_picture_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100000)))
    (tmp_path / "bomb.png").write_bytes(bomb + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"bomb\.png"):
        only(tmp_path, spec("n", 3, 8, 8))


def test_formats_that_run_other_programs_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(DataError, match="cannot be decoded"):
        only(tmp_path, spec("n", 3, 8, 8))


@pytest.mark.parametrize("shape", [("n", 8), ("n", 5, 8, 8), (3, 8, 8)])
def test_models_that_take_no_pictures_say_so(folder: Path, shape: tuple[int | str, ...]) -> None:
    with pytest.raises(DataError, match="input 'image'"):
        only(folder, spec(*shape))
    with pytest.raises(DataError, match="2 inputs"):
        open_calibration(folder, (*spec("n", 3, 8, 8), InputSpec("other", F32, ("n", 3))))


def test_arrays_and_pictures_in_one_folder_are_refused(folder: Path) -> None:
    np.save(folder / "a.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match="arrays and pictures"):
        only(folder, spec("n", 3, 8, 8))


def test_a_declared_batch_of_one_takes_pictures_one_by_one(folder: Path) -> None:
    assert [b["image"].shape for b in open_calibration(folder, spec(1, 3, 8, 8)).batches()] == [(1, 3, 8, 8)] * 3


def test_without_pillow_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "PIL" or name.startswith("PIL."):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    pictures.pillow.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ProviderError, match=r"onnxprune\[images\]"):
        only(folder, spec("n", 3, 8, 8))
