"""Calibration data in all forms but pictures and scripts: what is fed, and what is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.calibration import Calibration, find_test_data, open_calibration
from onnxprune.errors import DataError, RunError, UsageError
from onnxprune.graph.inputs import InputSpec

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
X = (InputSpec("x", F32, ("n", 3)),)
TOKENS = (InputSpec("ids", I64, ("batch", "seq"), bound=100), InputSpec("mask", I64, ("batch", "seq")))


def rows(n: int, *shape: int) -> np.ndarray:
    """Return n samples that all differ, as float32."""
    return np.arange(n * int(np.prod(shape)), dtype=np.float32).reshape(n, *shape)


def batches(calibration: Calibration) -> list[dict[str, np.ndarray]]:
    return list(calibration.batches())


def joined(calibration: Calibration, name: str = "x") -> np.ndarray:
    return np.concatenate([b[name] for b in calibration.batches()])


class Reader:
    """A CalibrationDataReader, which gives its feeds once."""

    def __init__(self, feeds: list[Any]) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Any:
        return next(self.feeds, None)


# ---------------------------------------------------------------- files
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_is_fed_in_batches_and_again_in_a_second_pass(tmp_path: Path, save: Any, order: Any) -> None:
    data = rows(10, 3)
    save(tmp_path / "c.npz", x=np.asarray(data, order=order))
    calibration = open_calibration(tmp_path / "c.npz", X, batch=4)
    assert [b["x"].shape for b in calibration.batches()] == [(4, 3), (4, 3), (2, 3)]
    for _ in range(2):
        np.testing.assert_array_equal(joined(calibration), data)
    assert (calibration.samples, calibration.synthetic, calibration.source) == (10, False, "'c.npz'")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_choice_of_samples_is_random_seeded_and_in_stored_order(tmp_path: Path, save: Any, order: Any) -> None:
    data = rows(500, 3)
    save(tmp_path / "c.npz", x=np.asarray(data, order=order))
    first, again, other = (
        open_calibration(tmp_path / "c.npz", X, samples=50, batch=7, seed=seed) for seed in (1, 1, 2)
    )
    found = joined(first)
    assert first.samples == len(found) == 50
    assert first.source == "'c.npz', 50 of 500 samples"
    numbers = found[:, 0] / 3
    assert (np.diff(numbers) > 0).all() and numbers.max() > 300
    np.testing.assert_array_equal(found, data[numbers.astype(int)])
    np.testing.assert_array_equal(found, joined(again))
    assert not np.array_equal(found, joined(other))


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_serves_a_model_with_one_input(tmp_path: Path, order: Any) -> None:
    np.save(tmp_path / "c.npy", np.asarray(rows(6, 3), order=order))
    np.testing.assert_array_equal(joined(open_calibration(tmp_path / "c.npy", X)), rows(6, 3))
    with pytest.raises(DataError, match=r"one array.*'ids', 'mask'"):
        open_calibration(tmp_path / "c.npy", TOKENS)


def test_a_folder_of_arrays_holds_samples_or_lots_of_them(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", rows(2, 3))
    np.save(tmp_path / "b.npy", rows(1, 3)[0])
    np.savez(tmp_path / "c.npz", x=rows(3, 3))
    calibration = open_calibration(str(tmp_path), X, batch=4)
    assert [len(b["x"]) for b in calibration.batches()] == [4, 2]
    np.testing.assert_array_equal(joined(calibration), np.concatenate([rows(2, 3), rows(1, 3), rows(3, 3)]))


def test_a_folder_may_hold_one_array_per_input(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(40).reshape(8, 5))
    np.save(tmp_path / "mask.npy", np.ones((8, 5), np.int64))
    (batch,) = batches(open_calibration(tmp_path, TOKENS))
    assert batch["ids"].shape == batch["mask"].shape == (8, 5)


def test_samples_of_different_lengths_are_batched_with_their_like(tmp_path: Path) -> None:
    for k, length in enumerate((5, 7, 5, 7, 5)):
        np.savez(tmp_path / f"{k}.npz", ids=np.full((1, length), k), mask=np.ones((1, length), np.int64))
    found = batches(open_calibration(tmp_path, TOKENS, batch=2))
    assert [b["ids"][:, 0].tolist() for b in found] == [[0, 2], [1, 3], [4]]


@pytest.mark.parametrize("wrapped", [True, False])
def test_test_data_sets_go_by_name_or_by_number(tmp_path: Path, wrapped: bool) -> None:
    for k in (10, 2):
        folder = tmp_path / f"test_data_set_{k}" if wrapped else tmp_path
        folder.mkdir(exist_ok=True)
        arrays = [("mask", np.ones((2, 4), np.int64)), ("ids", np.full((2, 4), k))]
        for n, (name, array) in enumerate(arrays if k == 2 else reversed(arrays)):
            tensor = numpy_helper.from_array(array, name if k == 2 else "")
            (folder / f"input_{n}.pb").write_bytes(tensor.SerializeToString())
    assert find_test_data(tmp_path / "model.onnx") == tmp_path
    calibration = open_calibration(tmp_path, TOKENS)
    assert joined(calibration, "ids")[:, 0].tolist() == ([2, 2, 10, 10] if wrapped else [2, 2])
    assert all((b["mask"] == 1).all() for b in calibration.batches())


def test_no_test_data_beside_a_model(tmp_path: Path) -> None:
    assert find_test_data(tmp_path / "model.onnx") is None


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (onnx.TensorProto(dims=[1 << 40, 3], data_type=1, raw_data=bytes(12)), "no data for it"),
        (onnx.TensorProto(dims=[-1, 3], data_type=1, raw_data=bytes(12)), "no data for it"),
        (onnx.TensorProto(dims=[2, 3], data_type=1, raw_data=bytes(12)), "no valid tensor"),
        (onnx.TensorProto(dims=[1, 3], data_type=999, raw_data=bytes(12)), "no valid tensor"),
        (onnx.TensorProto(dims=[1, 3], data_type=1, data_location=1), "another file"),
        (b"\xff" * 50, "no tensor"),
    ],
)
def test_broken_test_data_are_refused(tmp_path: Path, tensor: Any, says: str) -> None:
    (tmp_path / "input_0.pb").write_bytes(tensor if isinstance(tensor, bytes) else tensor.SerializeToString())
    with pytest.raises(DataError, match=says):
        open_calibration(tmp_path, X)


def test_test_data_need_one_file_per_input(tmp_path: Path) -> None:
    (tmp_path / "input_0.pb").write_bytes(numpy_helper.from_array(rows(1, 3)).SerializeToString())
    with pytest.raises(DataError, match="1 inputs, and the model takes 2"):
        open_calibration(tmp_path, TOKENS)


# ---------------------------------------------------------------- in memory
def test_a_dict_of_arrays_has_samples_along_axis_0() -> None:
    np.testing.assert_array_equal(joined(open_calibration({"x": rows(5, 3).tolist()}, X)), rows(5, 3))
    np.testing.assert_array_equal(joined(open_calibration(rows(5, 3), X)), rows(5, 3))


def test_feeds_of_a_list_are_put_together_anew() -> None:
    data = [{"x": rows(3, 3)}, {"x": rows(2, 3)}]
    assert [len(b["x"]) for b in open_calibration(data, X, batch=4).batches()] == [4, 1]


@pytest.mark.parametrize("form", ["reader", "generator", "iterable"])
def test_one_pass_data_can_be_read_again(form: str) -> None:
    feeds = [{"x": rows(4, 3) + k} for k in range(5)]
    data: Any = {"reader": Reader(feeds), "generator": (f for f in feeds), "iterable": dict.fromkeys(range(1))}[form]
    if form == "iterable":

        class Loader:
            def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
                return iter(feeds)

        data = Loader()
    calibration = open_calibration(data, X, samples=9, batch=4)
    assert calibration.samples == 9
    expected = np.concatenate([f["x"] for f in feeds])
    for _ in range(2):
        found = joined(calibration)
        assert len(found) == 9
        assert {tuple(r) for r in found} <= {tuple(r) for r in expected[:12]}


def test_a_reader_that_never_ends_is_read_as_far_as_needed() -> None:
    read = []

    def forever() -> Iterator[dict[str, np.ndarray]]:
        while True:
            read.append(1)
            yield {"x": rows(1, 3)}

    assert open_calibration(forever(), X, samples=20).samples == len(read) == 20


def test_a_reader_that_was_read_before_holds_nothing() -> None:
    reader = Reader([{"x": rows(2, 3)}])
    open_calibration(reader, X)
    with pytest.raises(DataError, match=r"no samples.*read to the end before"):
        open_calibration(reader, X)


def test_what_an_iterable_raises_is_told_with_its_place() -> None:
    def failing() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": rows(1, 3)}
        raise RuntimeError("no more\nlines")

    with pytest.raises(DataError, match=r"item 1 of the data.*RuntimeError: no more\)") as caught:
        open_calibration(failing(), X)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("data", [3, object(), [rows(2, 3)], ["x"], [{"x": object()}], {"x": [[1, 2, 3], [4]]}])
def test_other_things_are_refused(data: Any) -> None:
    with pytest.raises(DataError):
        open_calibration(data, X)


# ---------------------------------------------------------------- batch axes
def test_a_declared_batch_is_kept_and_what_does_not_fill_one_is_left_out() -> None:
    fixed = (InputSpec("x", F32, (4, 3)),)
    calibration = open_calibration({"x": rows(11, 3)}, fixed, batch=64)
    assert [b["x"].shape for b in calibration.batches()] == [(4, 3), (4, 3)]
    assert calibration.samples == 8
    assert any("3 samples fill no batch of 4" in w for w in calibration.warnings)
    assert open_calibration({"x": rows(11, 3)}, fixed, samples=5).samples == 8
    with pytest.raises(DataError, match=r"3 samples.*batch is 4"):
        open_calibration({"x": rows(3, 3)}, fixed)


@pytest.mark.parametrize("order", ["C", "F"])
def test_feeds_of_a_fixed_model_may_be_stacked(tmp_path: Path, order: Any) -> None:
    np.save(tmp_path / "c.npy", np.asarray(rows(20, 3).reshape(5, 4, 3), order=order))
    calibration = open_calibration(tmp_path / "c.npy", (InputSpec("x", F32, (4, 3)),), samples=8)
    assert [b["x"].shape for b in calibration.batches()] == [(4, 3), (4, 3)]
    full = open_calibration(tmp_path / "c.npy", (InputSpec("x", F32, (4, 3)),))
    np.testing.assert_array_equal(joined(full), rows(20, 3))


def test_the_batch_axis_need_not_be_the_first() -> None:
    recurrent = (InputSpec("x", F32, ("seq", "batch", 2)), InputSpec("h", F32, (1, "batch", 4)))
    data = {"x": rows(6, 5, 2), "h": rows(6, 1, 4)}
    (batch,) = batches(open_calibration(data, recurrent))
    assert batch["x"].shape == (5, 6, 2) and batch["h"].shape == (1, 6, 4)
    np.testing.assert_array_equal(batch["x"][:, 2], data["x"][2])
    fed = [{"x": np.moveaxis(data["x"], 0, 1), "h": np.moveaxis(data["h"], 0, 1)}]
    (same,) = batches(open_calibration(fed, recurrent))
    np.testing.assert_array_equal(same["x"], batch["x"])


def test_an_input_without_batch_axis_is_shared_or_fed_sample_by_sample() -> None:
    mixed = (*X, InputSpec("scale", F32, ()))
    shared = batches(open_calibration({"x": rows(6, 3), "scale": np.float32(2)}, mixed, batch=4))
    assert [(len(b["x"]), b["scale"].shape) for b in shared] == [(4, ()), (2, ())]
    apart = batches(open_calibration({"x": rows(6, 3), "scale": rows(6)}, mixed, batch=4))
    assert [(len(b["x"]), float(b["scale"])) for b in apart] == [(1, float(k)) for k in range(6)]
    feeds = [{"x": rows(3, 3), "scale": np.float32(k)} for k in range(4)]
    whole = open_calibration(feeds, mixed, samples=6, batch=2)
    assert [len(b["x"]) for b in whole.batches()] == [3, 3] and whole.samples == 6


def test_a_model_without_any_batch_takes_one_feed_at_a_time() -> None:
    bare = (InputSpec("a", F32, (3, 8)), InputSpec("b", F32, (2,)))
    found = batches(open_calibration({"a": rows(5, 3, 8), "b": rows(5, 2)}, bare))
    assert [(b["a"].shape, b["b"].shape) for b in found] == [((3, 8), (2,))] * 5


def test_empty_dimensions_are_data_too() -> None:
    past = (*X, InputSpec("past", F32, ("n", 2, "past", 4)))
    (batch,) = batches(open_calibration({"x": rows(3, 3), "past": np.zeros((3, 2, 0, 4), np.float32)}, past))
    assert batch["past"].shape == (3, 2, 0, 4)


# ---------------------------------------------------------------- types and contents
@pytest.mark.parametrize("dtype", [np.float16, ">f4", np.int16, np.uint8, np.bool_, np.float64])
def test_a_cast_that_keeps_every_value_is_made(dtype: Any) -> None:
    data = (rows(4, 3) % 2).astype(dtype)
    found = joined(open_calibration({"x": data}, X))
    assert found.dtype == F32
    np.testing.assert_array_equal(found, data.astype(np.float32))


def test_bfloat16_survives_numpys_file_format(tmp_path: Path) -> None:
    spec = (InputSpec("x", np.dtype(ml_dtypes.bfloat16), ("n", 3)),)
    data = rows(4, 3).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "c.npy", data)
    found = joined(open_calibration(tmp_path / "c.npy", spec))
    assert found.dtype == spec[0].dtype
    np.testing.assert_array_equal(found.astype(np.float32), rows(4, 3))


def test_bytes_for_floats_are_pointed_out() -> None:
    calibration = open_calibration({"x": np.zeros((20, 3), np.uint8)}, X)
    assert any("not normalised" in w for w in calibration.warnings)


def test_strings_are_fed_as_objects(tmp_path: Path) -> None:
    spec = (InputSpec("text", np.dtype(object), ("n", 1)),)
    words = np.array([["a"], ["longer"]])
    np.save(tmp_path / "c.npy", words)
    data: Any
    for data in (tmp_path / "c.npy", {"text": words.astype(object)}, Reader([{"text": words.tolist()}])):
        found = joined(open_calibration(data, spec), "text")
        assert found.dtype == object and found.tolist() == words.tolist()


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full((4, 3), 0.1), "float32"),
        (np.full((4, 3), 2**53 + 1, np.int64), "float32"),
        (np.zeros((4, 3), complex), "complex128"),
        (np.zeros((4, 3), "M8[s]"), "datetime64"),
        (np.full((4, 3), "a"), "<U1"),
        (rows(4, 5), r"\(4, 5\)"),
        (rows(4), r"\(4\)"),
        (rows(4, 3, 1), r"\(4, 3, 1\)"),
        (np.float32(3), r"\(\)"),
        (rows(3), "add an axis of samples"),
    ],
)
def test_wrong_types_and_shapes_are_refused(tmp_path: Path, array: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_calibration({"x": array}, X)
    np.savez_compressed(tmp_path / "c.npz", x=array)
    with pytest.raises(DataError, match=says):
        open_calibration(tmp_path / "c.npz", X)
    if "samples" not in says:
        with pytest.raises(DataError, match="'x'"):
            open_calibration(iter([{"x": array}]), X)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_with_their_sample(bad: float) -> None:
    data = rows(9, 3)
    data[7, 1] = bad
    calibration = open_calibration({"x": data}, X, batch=5)  # the first batch is fine
    with pytest.raises(DataError, match=r"sample 7: input 'x' holds NaN or Inf"):
        batches(calibration)
    with pytest.raises(DataError, match=r"item 1 of the data: input 'x' holds NaN"):
        open_calibration(iter([{"x": data[:5]}, {"x": data[5:]}]), X)


def test_the_sample_is_named_by_its_number_in_the_file() -> None:
    data = rows(400, 3)
    data[200:] = np.nan
    with pytest.raises(DataError, match=r"sample (2|3)[0-9][0-9]:"):
        batches(open_calibration({"x": data}, X, samples=50))


@pytest.mark.parametrize("bad", [100, -1])
def test_ids_out_of_the_vocabulary_are_refused(bad: int) -> None:
    ids = np.zeros((4, 6), np.int64)
    ids[3, 2] = bad
    with pytest.raises(DataError, match=rf"sample 3: input 'ids' holds {bad}.*0 to 99"):
        open_calibration({"ids": ids, "mask": np.ones_like(ids)}, TOKENS)


def test_missing_and_extra_names_are_both_listed(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", ids=np.zeros((2, 4), np.int64), token_type_ids=np.zeros((2, 4), np.int64))
    for data in (tmp_path / "c.npz", {"ids": 0, "token_type_ids": 0}):
        with pytest.raises(DataError, match=r"missing 'mask'; extra 'token_type_ids'"):
            open_calibration(data, TOKENS)


def test_names_that_change_midway_are_told_with_the_item() -> None:
    feeds = [{"x": rows(1, 3)}, {"x": rows(1, 3)}, {"y": rows(1, 3)}]
    for data in (feeds, iter(feeds), Reader(feeds)):
        with pytest.raises(DataError, match=r"item 2 of the data.*missing 'x'; extra 'y'"):
            open_calibration(data, X)


def test_inputs_need_equally_many_samples() -> None:
    ids, mask = np.zeros((4, 6), np.int64), np.ones((3, 6), np.int64)
    for data in ({"ids": ids, "mask": mask}, [{"ids": ids, "mask": mask}]):
        with pytest.raises(DataError, match=r"'ids' 4, 'mask' 3"):
            open_calibration(data, TOKENS)


@pytest.mark.parametrize("data", [{"x": rows(0, 3)}, [], [{"x": rows(0, 3)}], iter(())])
def test_no_samples_are_refused(data: Any) -> None:
    with pytest.raises(DataError, match="no samples"):
        open_calibration(data, X)


def test_one_sample_works_and_warns() -> None:
    calibration = open_calibration({"x": rows(1, 3)}, X)
    assert calibration.samples == 1
    assert any("one calibration sample" in w for w in calibration.warnings)
    assert not open_calibration({"x": rows(100, 3)}, X).warnings


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": -1}, {"batch": 0}])
def test_options_that_ask_for_nothing_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="1 or more"):
        open_calibration({"x": rows(4, 3)}, X, **options)


def test_a_model_without_inputs_has_nothing_to_calibrate_on() -> None:
    with pytest.raises(DataError, match="no inputs"):
        open_calibration({}, ())


# ---------------------------------------------------------------- hostile files
class Trap:
    """What a pickle must never get to run."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("sprung",))


def test_pickles_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trap = np.array([Trap(), Trap()], dtype=object)
    np.save("o.npy", trap, allow_pickle=True)
    np.savez("o.npz", x=trap)
    Path("p.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("o.npy", "o.npz"):
        with pytest.raises(DataError, match=r"dtype object.*pickle"):
            open_calibration(name, X)
    with pytest.raises(DataError, match="pickle, which is never opened"):
        open_calibration("p.npy", X)
    for data in ({"x": trap}, [{"x": trap}]):
        with pytest.raises(DataError, match="Python objects"):
            open_calibration(data, X)
    assert not Path("sprung").exists()


def npy(header: str, data: bytes = b"", version: int = 1) -> bytes:
    """Return a .npy file with any header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def says(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


@pytest.mark.parametrize(
    "content",
    [
        npy(says("(1125899906842624, 3)")),
        npy(says("(4611686018427387904, 4611686018427387904)")),
        npy(says("(-1, 3)"), bytes(12)),
        npy(says("(2, 3)"), bytes(23)),
        npy(says("(1.5, 3)"), bytes(24)),
        npy(says("(2, 3)", "'|O'"), bytes(24)),
        npy(says("(2,)", "[('a', '<f4'), ('b', '<f4')]"), bytes(24)),
        npy(says("(2,)", "('<f4', (3,))"), bytes(24)),
        npy("__import__('os').mkdir('sprung')"),
        npy("(" * 9000),
        npy("{" + " " * 100000, version=2),
        npy(says("(2, 3)"), bytes(24), version=9),
        b"\x93NUMPY",
        b"\x93NUM",
        b"",
        b"PK\x03\x04" + bytes(200),
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x89PNG\r\n\x1a\n" + bytes(50),
        b"a,b\n1,2\n",
    ],
)
def test_damaged_and_forged_files_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.npy").write_bytes(content)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("x.npy", content)
    Path("c.npz").write_bytes(archive.getvalue())
    start = time.perf_counter()
    for name in ("c.npy", "c.npz"):
        with pytest.raises(DataError):
            open_calibration(name, X)
    assert time.perf_counter() - start < 2
    assert sorted(p.name for p in Path().iterdir()) == ["c.npy", "c.npz"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_truncated_and_corrupt_archives_are_refused(tmp_path: Path, compression: int) -> None:
    data = np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32)
    content = npy(says("(400, 3)"), data.tobytes())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as out:
        out.writestr("x.npy", content)
    whole = archive.getvalue()
    path = tmp_path / "c.npz"
    for cut in range(0, len(whole), len(whole) // 8):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            open_calibration(path, X)
    if compression == zipfile.ZIP_DEFLATED:
        broken = bytearray(whole)
        broken[500:540] = bytes(40)
        path.write_bytes(broken)
        with pytest.raises(DataError, match="damaged"):
            open_calibration(path, X)


def test_a_bomb_is_known_by_its_header(tmp_path: Path) -> None:
    size, piece = 1 << 30, bytes(1 << 20)
    with (
        zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out,
        out.open("x.npy", "w", force_zip64=True) as member,
    ):
        header = npy(says(f"({size // 12}, 3)"))
        member.write(header)
        for _ in range(256):  # a quarter of what the header says is enough to be refused, and quicker to write
            member.write(piece)
    start = time.perf_counter()
    with pytest.raises(DataError):
        open_calibration(tmp_path / "c.npz", X)
    assert time.perf_counter() - start < 1


def test_an_archive_that_unpacks_a_thousandfold_is_refused(tmp_path: Path) -> None:
    data = np.broadcast_to(np.zeros((), np.float32), ((300 << 20) // 12, 3))
    with (
        zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out,
        out.open("x.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array(member, data, allow_pickle=False)
    with pytest.raises(DataError, match="unpacks from"):
        open_calibration(tmp_path / "c.npz", X)


def test_a_compressed_mask_of_ones_is_no_bomb(tmp_path: Path) -> None:
    ids = np.zeros((2000, 512), np.int64)
    np.savez_compressed(tmp_path / "c.npz", ids=ids, mask=np.ones_like(ids))
    assert open_calibration(tmp_path / "c.npz", TOKENS).samples == 1024


def test_samples_of_absurd_size_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "c.npy").open("wb") as file:  # a sparse file
        file.write(npy(says(f"(1, 3, {1 << 20}, {1 << 10})")))
        file.truncate(file.tell() + 3 * (1 << 32))
    with pytest.raises(DataError, match="more than"):
        open_calibration(tmp_path / "c.npy", (InputSpec("x", F32, ("n", 3, "h", "w")),))


def test_memory_holds_a_batch_not_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "c.npy", rows(3000, 1000))
    np.savez_compressed(tmp_path / "c.npz", x=rows(3000, 1000))
    spec = (InputSpec("x", F32, ("n", 1000)),)
    tracemalloc.start()
    try:
        for name in ("c.npy", "c.npz"):
            for batch in open_calibration(tmp_path / name, spec, samples=3000, batch=24).batches():
                assert len(batch["x"]) == 24
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["missing", "pipe", "device", "python"])
def test_paths_that_are_no_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c.npz"
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no pipes here")
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
        if not path.exists():
            pytest.skip("no such device here")
    elif kind == "python":
        path = tmp_path / "c.py"
        path.write_text("raise SystemExit")
    with pytest.raises(UsageError):
        open_calibration(path, X)


def test_an_empty_folder_or_one_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match=r"holds no \.npz"):
        open_calibration(tmp_path, X)


def test_members_of_one_name_or_in_another_way_compressed_are_refused(tmp_path: Path) -> None:
    content = npy(says("(2, 3)"), bytes(24))
    with zipfile.ZipFile(tmp_path / "two.npz", "w") as out, pytest.warns(UserWarning, match="Duplicate"):
        out.writestr("x.npy", content)
        out.writestr("x.npy", content)
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_BZIP2) as out:
        out.writestr("x.npy", content)
    with pytest.raises(DataError, match="two arrays of one name"):
        open_calibration(tmp_path / "two.npz", X)
    with pytest.raises(DataError, match="compressed in a way"):
        open_calibration(tmp_path / "lzma.npz", X)


def test_a_file_that_shrinks_during_the_run_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c.npy"
    np.save(path, rows(50, 3))
    calibration = open_calibration(path, X, batch=10)
    os.truncate(path, 300)
    with pytest.raises(DataError, match="ends early"):
        batches(calibration)


def test_a_full_disk_is_an_error_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(RunError, match=r"No space left.*TMPDIR"):
        open_calibration(iter([{"x": rows(2, 3)}]), X)


def test_names_that_steer_a_terminal_are_escaped() -> None:
    with pytest.raises(DataError) as caught:
        open_calibration({"\x1b[31m\n::error::": rows(2, 3)}, X)
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


def test_importing_does_no_work_and_leaves_pillow_alone() -> None:
    import subprocess

    code = (
        "import sys, json, onnxprune.calibration, onnxprune.calibration.synthetic; "
        "print(json.dumps([m in sys.modules for m in ('PIL', 'onnxruntime')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [False, False]
