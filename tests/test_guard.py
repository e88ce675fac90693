"""Hostile models are refused with one teaching line, odd ones load, and nothing else ever comes out."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import hostile
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, OnnxPruneError
from onnxprune.graph import guard
from onnxprune.graph.files import foreign_format, truncation
from onnxprune.graph.model import load

CORPUS = hostile.corpus()
BAD = [case for case in CORPUS if case.error]
GOOD = [case for case in CORPUS if not case.error]


def _name(case: hostile.Case) -> str:
    return f"{case.row}-{case.name}"


@pytest.mark.parametrize("case", BAD, ids=_name)
def test_hostile_model_is_refused_in_one_line(case: hostile.Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)[0]
    before = sorted(tmp_path.rglob("*"))
    assert case.error is not None
    started = time.perf_counter()
    with pytest.raises(case.error) as caught:
        load(path)
    message = str(caught.value)
    assert time.perf_counter() - started < 5
    assert case.says in message
    assert message.isprintable() and len(message) < 2100
    assert caught.value.exit_code in case.codes
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("case", GOOD, ids=_name)
def test_odd_model_loads(case: hostile.Case, tmp_path: Path) -> None:
    source = load(case.make(tmp_path)[0])
    for value in source.model.graph.initializers.values():
        assert value.const_value is not None
        assert value.const_value.numpy().shape == value.const_value.shape.numpy()


@pytest.mark.parametrize("case", [case for case in BAD if case.row in (12, 13, 14, 15, 16, 23)], ids=_name)
def test_refusal_allocates_nothing_to_speak_of(case: hostile.Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)[0]
    tracemalloc.start()
    with pytest.raises(ModelError):
        load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


@pytest.mark.parametrize("seed", range(100))
def test_damaged_bytes_give_a_model_or_an_error_of_ours(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    data = bytearray(hostile.shared_on_two_axes().SerializeToString())
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    try:
        load(path)
    except OnnxPruneError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    ("data_type", "count", "field", "entries"),
    [
        (TensorProto.FLOAT, 6, "float_data", 6),
        (TensorProto.DOUBLE, 6, "double_data", 6),
        (TensorProto.COMPLEX64, 6, "float_data", 12),
        (TensorProto.COMPLEX128, 6, "double_data", 12),
        (TensorProto.INT64, 6, "int64_data", 6),
        (TensorProto.UINT64, 6, "uint64_data", 6),
        (TensorProto.UINT32, 6, "uint64_data", 6),
        (TensorProto.FLOAT16, 6, "int32_data", 6),
        (TensorProto.BFLOAT16, 6, "int32_data", 6),
        (TensorProto.INT8, 6, "int32_data", 6),
        (TensorProto.BOOL, 6, "int32_data", 6),
        (TensorProto.INT4, 5, "int32_data", 3),
        (TensorProto.UINT4, 5, "int32_data", 3),
        (TensorProto.STRING, 6, "string_data", 6),
    ],
)
def test_typed_fields_have_the_entries_of_the_specification(
    data_type: int, count: int, field: str, entries: int
) -> None:
    content = [b""] * (entries + 1) if field == "string_data" else [0] * (entries + 1)
    tensor = TensorProto(name="t", data_type=data_type, dims=[count], **{field: content[:-1]})
    guard.check_tensor(tensor, "t", None)
    assert numpy_helper.to_array(tensor).shape == (count,)
    getattr(tensor, field).append(content[-1])
    with pytest.raises(ModelError, match=f"needs {entries} values"):
        guard.check_tensor(tensor, "t", None)


@pytest.mark.parametrize(
    ("data_type", "nbytes"), [(TensorProto.INT4, 3), (TensorProto.FLOAT16, 10), (TensorProto.COMPLEX64, 40)]
)
def test_raw_data_has_the_bytes_of_its_type(data_type: int, nbytes: int) -> None:
    guard.check_tensor(TensorProto(data_type=data_type, dims=[5], raw_data=bytes(nbytes)), "t", None)
    with pytest.raises(ModelError, match=f"needs {nbytes} bytes"):
        guard.check_tensor(TensorProto(data_type=data_type, dims=[5], raw_data=bytes(nbytes + 1)), "t", None)


def test_scalars_and_empty_tensors_pass() -> None:
    guard.check_tensor(numpy_helper.from_array(np.float32(1.0)), "t", None)
    guard.check_tensor(numpy_helper.from_array(np.zeros((0, 3), np.float32)), "t", None)
    guard.check_tensor(TensorProto(data_type=TensorProto.FLOAT, dims=[0]), "t", None)


def test_segments_are_refused() -> None:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32))
    tensor.segment.begin = 0
    with pytest.raises(ModelError, match="segments"):
        guard.check_tensor(tensor, "t", None)


def _sparse(indices: np.ndarray, dims: tuple[int, ...]) -> onnx.ModelProto:
    values = numpy_helper.from_array(np.ones(len(indices), np.float32), "w1")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices.astype(np.int64), "at"), dims)
    model = hostile.sound()
    del model.graph.initializer[0]
    model.graph.sparse_initializer.append(sparse)
    return model


@pytest.mark.parametrize(
    ("indices", "dims", "says"),
    [
        (np.array([0, 128]), (8, 16), "outside"),
        (np.array([-1, 3]), (8, 16), "outside"),
        (np.array([[0, 0], [8, 0]]), (8, 16), "outside"),
        (np.array([[0], [1]]), (8, 16), "do not fit"),
        (np.array([0, 1]), (1 << 20, 1 << 20), "dense"),
        (np.array([0, 1]), (-8, 16), "negative"),
    ],
)
def test_bad_sparse_initializers_are_refused(indices: np.ndarray, dims: tuple[int, ...], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load(_sparse(indices, dims))


def test_names_are_shown_without_what_steers_a_terminal() -> None:
    model = hostile.sound()
    model.graph.node[1].name = "\x1b[31m\n::error::\u202e" + "x" * 10_000_000
    model.graph.node[1].input[0] = "nowhere\r\n"
    with pytest.raises(ModelError, match=r"x1b\[31m.n::error::.u202e") as caught:
        load(model)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    data = hostile.sound().SerializeToString().replace(b"first", b"fir\xff\xfe")
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(ModelError, match="UTF-8"):
        load(tmp_path / "model.onnx")


def test_value_of_unknown_type_is_named() -> None:
    model = hostile.sound()
    model.graph.input[0].type.tensor_type.elem_type = 77
    with pytest.raises(ModelError, match=r"value 'x'.*77"):
        load(model)


def test_functions_that_share_a_name_are_refused() -> None:
    model = hostile.calling({"f": ["Relu"]})
    model.functions.append(model.functions[0])
    with pytest.raises(ModelError, match="more than once"):
        load(model)


def test_long_chain_of_functions_passes_quickly() -> None:
    chain = {f"f{k}": [f"f{k + 1}"] for k in range(2000)}
    started = time.perf_counter()
    load(hostile.calling({**chain, "f2000": ["Relu"]}))
    assert time.perf_counter() - started < 5


def test_external_data_without_a_folder_is_refused() -> None:
    model = hostile.sound()
    hostile.externalized(model)
    with pytest.raises(ModelError, match="pass the path"):
        load(model)


def test_truncation_is_told_from_damage() -> None:
    data = hostile.sound().SerializeToString()
    assert truncation(data) is None
    assert foreign_format(data) is None
    assert truncation(data[: len(data) // 2])
    assert truncation(b"\xff" * 100) is None


def test_no_part_of_a_model_loads() -> None:
    data = hostile.sound().SerializeToString()
    for cut in range(len(data)):
        with pytest.raises(ModelError):
            guard.check_model(guard.parse(data[:cut], "the model"), None)
