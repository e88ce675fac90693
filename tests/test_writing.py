"""Saving: whole or not at all, the same bytes each time, and nothing changed that was not changed."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hostile
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import OnnxPruneError, RunError, UsageError
from onnxprune.graph import writing
from onnxprune.graph.lazy import Striped
from onnxprune.graph.model import Source, check_output, load, save

DATA_NAME = re.compile(r"out\.[0-9a-f]{12}\.data")


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def run(path: Path) -> np.ndarray:
    """Returns what onnxruntime makes of a model's file."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["y"], {"x": np.ones((3, 8), np.float32)})[0]
    return result


def halved(source: Source) -> ir.Model:
    """Returns the sound model with its hidden units 8 to 15 cut."""
    model = source.model.clone()
    for name, axis in (("w1", 1), ("b1", 0), ("w2", 0)):
        value = model.graph.initializers[name]
        array = value.const_value.numpy().take(range(8), axis)
        value.const_value = ir.Tensor(array, name=name)
        value.shape = ir.Shape(array.shape)
    return model


def halved_output() -> np.ndarray:
    """Returns what the halved model gives."""
    w1, b1, w2, b2 = (numpy_helper.to_array(each) for each in hostile.sound().graph.initializer)
    hidden = np.maximum(np.ones((3, 8), np.float32) @ w1[:, :8] + b1[:8], 0)
    result: np.ndarray = hidden @ w2[:8] + b2
    return result


def wide() -> onnx.ModelProto:
    """Returns a perceptron with a tensor of more than a page, and small ones."""
    model = hostile.sound()
    for index, shape in enumerate(((8, 4096), (4096,), (4096, 4))):
        each = model.graph.initializer[index]
        each.CopyFrom(hostile.tensor(each.name, *shape, seed=index))
    return model


# -------------------------------------------------------------------------------------------------- what is written
@pytest.mark.parametrize("external", [False, True])
def test_saved_model_computes_the_same(external: bool, tmp_path: Path) -> None:
    path = hostile.write(wide(), tmp_path)
    out = tmp_path / "out.onnx"
    files = save(load(path).model, out, external=external)
    assert files[0] == out and len(files) == 1 + external
    np.testing.assert_array_equal(run(out), run(path))
    assert set(contents(tmp_path)) == {"model.onnx", *(file.name for file in files)}


def test_cut_model_computes_what_it_should(tmp_path: Path) -> None:
    source = load(hostile.sound())
    save(halved(source), tmp_path / "out.onnx", external=False)
    np.testing.assert_allclose(run(tmp_path / "out.onnx"), halved_output(), rtol=1e-4, atol=1e-5)
    assert source.model.graph.initializers["w1"].const_value.shape == (8, 16)


def test_external_data_moves_into_the_model_and_back(tmp_path: Path) -> None:
    source = load(hostile.external()(tmp_path))
    save(source.model, tmp_path / "in.onnx", external=False)
    assert onnx.load(tmp_path / "in.onnx") == hostile.sound()
    written = save(source.model, tmp_path / "out.onnx", external=True)
    assert written == (tmp_path / "out.onnx",)  # all its tensors are below the threshold
    assert onnx.load(tmp_path / "out.onnx") == hostile.sound()


def test_data_file_is_laid_out_for_mapping(tmp_path: Path) -> None:
    files = save(load(wide()).model, tmp_path / "out.onnx", external=True)
    assert DATA_NAME.fullmatch(files[1].name)
    proto = onnx.load(files[0], load_external_data=False)
    places = {each.name: {entry.key: entry.value for entry in each.external_data} for each in proto.graph.initializer}
    assert places["b2"] == {}
    assert {place["location"] for name, place in places.items() if name != "b2"} == {files[1].name}
    assert all(int(places[name]["offset"]) % 4096 == 0 for name in ("w1", "w2"))
    assert places["w1"]["length"] == str(8 * 4096 * 4)


def test_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for external in (False, True):
        folders = [tmp_path / f"{external}{k}" for k in range(2)]
        for folder in folders:
            folder.mkdir()
            save(load(wide()).model.clone(), folder / "out.onnx", external=external)
        assert contents(folders[0]) == contents(folders[1])


def test_other_weights_give_another_data_file(tmp_path: Path) -> None:
    model = wide()
    first = save(load(model).model, tmp_path / "out.onnx", external=True)[1]
    model.graph.initializer[0].CopyFrom(hostile.tensor("w1", 8, 4096, seed=7))
    second = save(load(model).model, tmp_path / "out.onnx", external=True)[1]
    assert first != second
    assert set(contents(tmp_path)) == {"out.onnx", second.name}  # the first served nobody any more


@pytest.mark.skipif(not hasattr(os, "umask"), reason="needs POSIX permissions")
def test_permissions_are_those_of_any_new_file_or_of_the_old_one(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    out = tmp_path / "out.onnx"
    save(load(hostile.sound()).model, out, external=False)
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    out.chmod(0o640)
    save(load(hostile.sound()).model, out, external=False)
    assert stat.S_IMODE(out.stat().st_mode) == 0o640


def test_long_and_odd_names_work(tmp_path: Path) -> None:
    for name in ("x" * 250, "модель 模型 " * 6, "-o", "a.b.c"):
        files = save(load(wide()).model, tmp_path / f"{name}.onnx", external=True)
        assert run(files[0]).shape == (3, 4)


def test_models_of_more_than_two_gigabytes_leave_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "MAX_PROTO_BYTES", writing._ROOM + 100_000)
    files = save(load(wide()).model, tmp_path / "out.onnx", external=False)
    assert len(files) == 2
    assert run(files[0]).shape == (3, 4)


# -------------------------------------------------------------------------------------------------- old data files
def test_model_can_be_replaced_by_one_made_from_it(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    old = save(load(wide()).model, out, external=True)[1]
    source = load(out)
    model = source.model.clone()
    value = model.graph.initializers["w1"]
    value.const_value = ir.Tensor(value.const_value.numpy() * 2, name="w1")
    new = save(model, out, external=True)[1]
    assert set(contents(tmp_path)) == {"out.onnx", new.name}
    assert not old.exists()
    assert run(out).shape == (3, 4)


def test_data_that_another_model_uses_stays(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    old = save(load(wide()).model, out, external=True)[1]
    (tmp_path / "copy.onnx").write_bytes(out.read_bytes())
    save(load(hostile.sound()).model, out, external=True)
    assert old.exists()
    assert run(tmp_path / "copy.onnx").shape == (3, 4)


def test_data_of_the_input_stays_wherever_it_is(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out.onnx", tmp_path / "sub" / "in.onnx"
    old = save(load(wide()).model, out, external=True)[1]
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(out.read_bytes())
    (elsewhere.parent / old.name).hardlink_to(old)
    source = load(elsewhere)
    save(halved(load(hostile.sound())), out, external=False)
    assert (elsewhere.parent / old.name).exists()
    save(source.model, out, external=True)
    assert run(elsewhere).shape == (3, 4)


# -------------------------------------------------------------------------------------------------- failures
class Trouble(Exception):
    """Whatever goes wrong in a check."""


def _fails_in_check(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch

    def check(written: Path) -> None:
        assert written.parent == path.parent and written != path
        assert run(written).shape == (3, 4)  # it can be run where it is, with its data
        raise Trouble

    save(load(wide()).model, path, external=True, check=check)


def _fails_at(name: str, error: BaseException) -> Callable[[Path, pytest.MonkeyPatch], None]:
    def attempt(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*args: object) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(writing, name, fail)
            save(load(wide()).model, path, external=True)

    return attempt


def _fails_while_streaming(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chunks(tensor: object) -> Iterator[bytes]:
        yield b"half a tensor"
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(writing, "_chunks", chunks)
        save(load(wide()).model, path, external=True)


def _fails_to_settle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails once, and only those hear of it who flush while chunks are still being made."""
    flush, chunks_of, told = os.fsync, writing._chunks, threading.Event()

    def fsync(handle: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            told.set()
            raise OSError(errno.EIO, "Input/output error")
        flush(handle)

    def chunks(tensor: object) -> Iterator[bytes]:
        assert told.wait(10)
        yield from chunks_of(tensor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        patched.setattr(writing, "_chunks", chunks)
        save(load(wide()).model, path, external=True)


def _fails_at_the_last_rename(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target == path:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fail)
        save(load(wide()).model, path, external=True)


@pytest.mark.parametrize("existing", [None, "inline", "external", "same"])
@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        (_fails_in_check, Trouble),
        (_fails_while_streaming, RunError),
        (_fails_to_settle, RunError),
        (_fails_at_the_last_rename, RunError),
        (_fails_at("_encode", MemoryError()), MemoryError),
        (_fails_at("_reread", KeyboardInterrupt()), KeyboardInterrupt),
        (_fails_at("_flush", OSError(errno.ENOSPC, "No space left on device")), RunError),
    ],
)
def test_failure_leaves_everything_as_it_was(
    attempt: Callable[[Path, pytest.MonkeyPatch], None],
    error: type[BaseException],
    existing: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "out.onnx"
    if existing is not None:
        other = hostile.sound() if existing == "inline" else wide()
        if existing == "external":
            other.graph.initializer[0].CopyFrom(hostile.tensor("w1", 8, 4096, seed=5))
        save(load(other).model, path, external=True)
    before = contents(tmp_path)
    with pytest.raises(error):
        attempt(path, monkeypatch)
    assert contents(tmp_path) == before


def test_check_sees_the_model_before_it_is_moved_in(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    seen: list[int] = []

    def check(path: Path) -> None:
        assert not out.exists()
        seen.append(load(path).size)

    files = save(load(wide()).model, out, external=True, check=check)
    assert seen == [sum(file.stat().st_size for file in files)]


def test_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="folder does not exist"):
        save(load(hostile.sound()).model, tmp_path / "none" / "out.onnx", external=False)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="folder does not exist"):
        save(load(hostile.sound()).model, tmp_path / "file" / "out.onnx", external=False)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="read-only"):
        save(load(hostile.sound()).model, tmp_path / "out.onnx", external=False)


def test_data_that_shrinks_meanwhile_is_noticed(tmp_path: Path) -> None:
    data = bytearray(hostile.externalized(model := wide()))
    (tmp_path / "model.data").write_bytes(data)
    source = load(hostile.write(model, tmp_path))
    (tmp_path / "model.data").write_bytes(data[:1000])
    before = contents(tmp_path)
    with pytest.raises(RunError, match="shorter"):
        save(source.model, tmp_path / "out.onnx", external=True)
    assert contents(tmp_path) == before


# -------------------------------------------------------------------------------------------------- where to write
@pytest.mark.parametrize(
    "case", [case for case in hostile.corpus() if case.row in (37, 38)], ids=lambda case: case.name
)
def test_harmful_output_is_refused(case: hostile.Case, tmp_path: Path) -> None:
    arguments = case.make(tmp_path)
    output = Path(arguments[arguments.index("-o") + 1])
    with pytest.raises(OnnxPruneError) as caught:
        check_output(output, load(arguments[0]), in_place=False)
    assert caught.value.exit_code in case.codes


def test_input_can_be_the_output_when_that_is_said(tmp_path: Path) -> None:
    path = hostile.write(hostile.sound(), tmp_path)
    check_output(path, load(path), in_place=True)
    check_output(tmp_path / "new.onnx", load(path), in_place=False)
    data = hostile.external()(tmp_path).parent / "model.data"
    (tmp_path / "hard.data").hardlink_to(data)
    with pytest.raises(UsageError, match="data file"):
        check_output(tmp_path / "hard.data", load(path), in_place=True)


# -------------------------------------------------------------------------------------------------- what is kept
def decorated() -> onnx.ModelProto:
    """Returns a model with everything in it that onnx-ir drops or moves."""
    model = hostile.sound()
    graph = model.graph
    model.producer_name, model.producer_version, model.model_version = "", "", 0
    model.doc_string, graph.doc_string = "a model\nof lines", ""
    for key in ("zebra", "apple"):
        model.metadata_props.add(key=key, value=f"{key} ü")
        graph.metadata_props.add(key=key, value=key)
        graph.node[1].metadata_props.add(key=key, value=key)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    graph.node[0].domain = ""
    graph.node[0].doc_string = "first"
    graph.node[1].name = ""
    graph.node[2].attribute.append(helper.make_attribute("alpha", 1.0, "scale"))
    graph.initializer[1].float_data.extend(numpy_helper.to_array(graph.initializer[1]).tolist())
    graph.initializer[1].ClearField("raw_data")
    graph.initializer[2].doc_string = "weights"
    graph.input[0].doc_string = "the input"
    graph.input[0].type.denotation = "TENSOR"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.value_info.extend([hostile.floats(name, "N", 16) for name in ("r", "gone", "h")])
    graph.value_info.extend([hostile.floats("y", "N", 4), hostile.floats("w2", 16, 4)])
    for name in ("r", "w1", "h"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="z")
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    dropout = helper.make_node("Dropout", ["r", "", ""], ["d", ""], "drop")
    graph.node.insert(2, dropout)
    graph.node[3].input[0] = "d"
    values = numpy_helper.from_array(np.array([1], np.float32), "extra")
    at = numpy_helper.from_array(np.array([2]), "at")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, [4]))
    constant = helper.make_node("Constant", [], ["sparse"], "sparse")
    constant.attribute.add(
        name="sparse_value",
        type=onnx.AttributeProto.SPARSE_TENSOR,
        sparse_tensor=helper.make_sparse_tensor(values, at, [4]),
    )
    graph.node.insert(0, constant)
    graph.node.append(helper.make_node("Identity", ["y"], [], "no output"))
    model.training_info.add().algorithm.name = "training"
    model.functions.extend(hostile.calling({"f": ["Relu"]}).functions)
    # A field that this version of ONNX does not know.
    unknown = onnx.ModelProto()
    unknown.ParseFromString(model.SerializeToString() + b"\xfa\x3f\x03new")
    return unknown


@pytest.mark.parametrize("clone", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        decorated,
        hostile.sound,
        hostile.unsorted,
        hostile.infinite_loop,
        hostile.listed_initializers,
        hostile.shared_on_two_axes,
        hostile.weight_as_output,
        hostile.custom_operator,
        hostile.nothing_to_prune,
    ],
)
def test_what_was_not_changed_is_the_same_byte_for_byte(
    build: Callable[[], onnx.ModelProto], clone: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build().SerializeToString(deterministic=True))
    model = load(path).model
    save(model.clone() if clone else model, tmp_path / "out.onnx", external=False)
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_only_what_was_changed_is_changed(tmp_path: Path) -> None:
    original = decorated()
    model = halved(load(original))
    for name in ("h", "r", "d"):
        value = next(v for node in model.graph for v in node.outputs if v.name == name)
        value.shape = ir.Shape(["N", 8])
        value.type = ir.TensorType(ir.DataType.FLOAT)
    model.metadata_props["note"] = "cut"
    save(model, tmp_path / "out.onnx", external=False)
    written = onnx.load(tmp_path / "out.onnx")

    expected = onnx.ModelProto()
    expected.CopyFrom(original)
    shapes = {"w1": [8, 8], "b1": [8], "w2": [8, 4]}
    for each in expected.graph.initializer:
        if each.name in shapes:
            axis = {"w1": 1, "b1": 0, "w2": 0}[each.name]
            cut = numpy_helper.from_array(numpy_helper.to_array(each).take(range(8), axis), each.name)
            each.CopyFrom(cut)
    for value in expected.graph.value_info:
        if value.name in ("h", "r"):
            value.type.tensor_type.shape.dim[1].dim_value = 8
        if value.name == "w2":
            value.type.tensor_type.shape.dim[0].dim_value = 8
    expected.metadata_props.add(key="note", value="cut")
    assert written == expected


def test_cut_input_initializer_is_declared_with_its_new_size(tmp_path: Path) -> None:
    proto = hostile.listed_initializers()
    proto.graph.value_info.append(hostile.floats("w1", 8, 16))
    save(halved(load(proto)), tmp_path / "out.onnx", external=False)
    written = onnx.load(tmp_path / "out.onnx").graph
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*written.input, *written.value_info)}
    assert sizes["w1"] == [8, 8]
    assert [v.name for v in written.input] == ["x", "w1", "b1", "w2", "b2"]
    np.testing.assert_allclose(run(tmp_path / "out.onnx"), halved_output(), rtol=1e-4, atol=1e-5)


def test_cut_sparse_initializer_becomes_dense(tmp_path: Path) -> None:
    proto = hostile.sound()
    dense = numpy_helper.to_array(proto.graph.initializer[0])
    values = numpy_helper.from_array(dense.reshape(-1), "w1")
    at = numpy_helper.from_array(np.arange(dense.size), "at")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, dense.shape))
    del proto.graph.initializer[0]
    save(halved(load(proto)), tmp_path / "out.onnx", external=False)
    written = onnx.load(tmp_path / "out.onnx").graph
    assert not written.sparse_initializer
    np.testing.assert_allclose(run(tmp_path / "out.onnx"), halved_output(), rtol=1e-4, atol=1e-5)


def test_new_initializer_and_node_take_their_places(tmp_path: Path) -> None:
    model = load(hostile.sound()).model.clone()
    act = model.graph.node(1)
    scale = ir.Value(
        name="scale", const_value=ir.tensor(np.array([0, -0.0], np.float32)[:1] + 2, name="scale"), shape=ir.Shape([1])
    )
    model.graph.register_initializer(scale)
    node = ir.Node("", "Mul", [act.outputs[0], scale], outputs=[ir.Value(name="scaled")], name="scaling")
    model.graph.insert_after(act, node)
    model.graph.node(3).replace_input_with(0, node.outputs[0])
    save(model, tmp_path / "out.onnx", external=False)
    written = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(written)
    assert [node.name for node in written.graph.node] == ["first", "act", "scaling", "second"]
    assert [each.name for each in written.graph.initializer] == ["w1", "b1", "w2", "b2", "scale"]
    assert not written.graph.value_info


def test_removed_parts_go(tmp_path: Path) -> None:
    model = load(decorated()).model.clone()
    last = next(node for node in model.graph if node.name == "no output")
    model.graph.remove(last, safe=True)
    del model.metadata_props["zebra"]
    save(model, tmp_path / "out.onnx", external=False)
    written = onnx.load(tmp_path / "out.onnx")
    assert "no output" not in [node.name for node in written.graph.node]
    assert [entry.key for entry in written.metadata_props] == ["apple"]


def test_types_beyond_numpy_survive(tmp_path: Path) -> None:
    kinds = {
        "i4": (TensorProto.INT4, [5], bytes([0x21, 0x43, 0x05])),
        "bf": (TensorProto.BFLOAT16, [2], bytes([0x80, 0x3F, 0, 0x40])),
        "f8": (TensorProto.FLOAT8E4M3FN, [2], b"\x38\x40"),
    }
    proto = hostile.sound()
    for name, (data_type, dims, raw) in kinds.items():
        proto.graph.initializer.append(TensorProto(name=name, data_type=data_type, dims=dims, raw_data=raw))
    strings = TensorProto(name="s", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"\xff"])
    proto.graph.initializer.append(strings)
    save(load(proto).model, tmp_path / "out.onnx", external=True)
    assert onnx.load(tmp_path / "out.onnx") == proto
    model = ir.from_proto(proto)  # without its original: onnx-ir's own form
    save(model, tmp_path / "plain.onnx", external=True)
    found = {each.name: each for each in onnx.load(tmp_path / "plain.onnx").graph.initializer}
    assert found["s"] == strings
    assert all(found[name].raw_data == raw for name, (_, _, raw) in kinds.items())


def test_lazy_tensors_are_asked_one_by_one(tmp_path: Path) -> None:
    model = load(wide()).model.clone()
    array = np.full((8, 4096), 0.5, np.float32)
    value = model.graph.initializers["w1"]
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(array), dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape), name="w1"
    )
    for external in (False, True):
        files = save(model, tmp_path / f"{external}.onnx", external=external)
        np.testing.assert_array_equal(load(files[0]).model.graph.initializers["w1"].const_value.numpy(), array)


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.INT4])
def test_striped_tensors_are_written_stripe_by_stripe(dtype: ir.DataType, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(-8, 8, (5, 4097)).astype(dtype.numpy())
    seen = []

    def stripes() -> Iterator[np.ndarray]:
        for row in rows:
            seen.append(len(row))
            yield row[None]

    tensor = Striped(stripes, dtype, ir.Shape(rows.shape), name="w")
    assert not seen
    np.testing.assert_array_equal(tensor.numpy(), rows)
    value = ir.Value(name="w", shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor)
    graph = ir.Graph([], [value], nodes=[], initializers=[value], opset_imports={"": 21}, name="g")
    for external in (False, True):
        seen.clear()
        (path, *_) = save(ir.Model(graph, ir_version=10), tmp_path / f"{external}.onnx", external=external)
        assert len(seen) == 5
        (written,) = ir.load(path).graph.initializers.values()
        np.testing.assert_array_equal(written.const_value.numpy(), rows)
