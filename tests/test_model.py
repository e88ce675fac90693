"""Loading: from everything that holds a model, quickly, lazily and without touching what the caller holds."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import hostile
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, UsageError
from onnxprune.graph import model as models
from onnxprune.graph.model import Source, check_unchanged, load
from onnxprune.pipeline import prune

MAPS = Path("/proc/self/maps")


def weights(source: Source) -> dict[str, np.ndarray]:
    """Returns the initializers of a loaded model."""
    return {name: value.const_value.numpy() for name, value in source.model.graph.initializers.items()}


def expected() -> dict[str, np.ndarray]:
    """Returns the weights of the sound model."""
    return {each.name: numpy_helper.to_array(each) for each in hostile.sound().graph.initializer}


def test_file_gives_its_hash_and_size(tmp_path: Path) -> None:
    path = hostile.write(hostile.sound(), tmp_path)
    source = load(path)
    assert source.path == path
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.size == path.stat().st_size
    assert source.data_files == ()
    assert [node.name for node in source.model.graph] == ["first", "act", "second"]


@pytest.mark.parametrize("name", ["model.onnx", "модель 模型 ü.onnx", "-o.onnx", "x" * 250 + ".onnx"])
def test_any_name_and_kind_of_path_works(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a folder"
    path.mkdir()
    hostile.write(hostile.sound(), path, name)
    assert load(str(path / name)).size == load(path / name).size > 0


def test_relative_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile.external()(tmp_path)
    monkeypatch.chdir(tmp_path)
    source = load("model.onnx")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(weights(source)["w1"], expected()["w1"])


def test_external_data_keep_their_place(tmp_path: Path) -> None:
    path = hostile.external()(tmp_path)
    source = load(path)
    data = tmp_path / "model.data"
    assert source.data_files == (data.resolve(),)
    assert source.size == path.stat().st_size + data.stat().st_size
    tensor = source.model.graph.initializers["w1"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None
    for name, array in weights(source).items():
        np.testing.assert_array_equal(array, expected()[name])
        tensor = source.model.graph.initializers[name].const_value
        assert np.asarray(tensor).tobytes() == tensor.tobytes() == array.tobytes()


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped")
def test_external_data_are_mapped_while_somebody_looks_at_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = {"w1": (8, 12288), "b1": (12288,), "w2": (12288, 16)}
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        mlp (float[N, 8] x) => (float[N, 16] y) <float[8, 12288] w1, float[12288] b1, float[12288, 16] w2>
        { h = MatMul(x, w1)  a = Add(h, b1)  r = Relu(a)  y = MatMul(r, w2) }""")
    for name, shape in sizes.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, np.float32), name))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    data = str(tmp_path / "model.data")
    tensors = {name: v.const_value for name, v in load(tmp_path / "model.onnx").model.graph.initializers.items()}
    small = tensors["b1"].numpy()
    assert data not in MAPS.read_text()
    large = tensors["w1"].numpy()
    assert data in MAPS.read_text()
    assert not (small.flags.writeable or large.flags.writeable)
    del large
    assert data not in MAPS.read_text()
    result = prune(tmp_path / "model.onnx", ratio=0.5, criterion="l1", compensate="none", output=tmp_path / "out.onnx")
    assert result.report.params.after < result.report.params.before
    assert data not in MAPS.read_text()


def test_external_data_needs_no_length_or_offset(tmp_path: Path) -> None:
    model = hostile.sound()
    data = hostile.externalized(model)
    first, last = model.graph.initializer[0], model.graph.initializer[-1]
    del first.external_data[1:]
    del last.external_data[2:]
    last.external_data.add(key="checksum", value="0" * 40)
    last.external_data.add(key="somebody's own", value="key")
    (tmp_path / "model.data").write_bytes(data)
    found = weights(load(hostile.write(model, tmp_path)))
    np.testing.assert_array_equal(found["w1"], expected()["w1"])
    np.testing.assert_array_equal(found["b2"], expected()["b2"])


def test_external_data_of_constants_and_subgraphs_is_found(tmp_path: Path) -> None:
    value = hostile.tensor("c", 4)
    array = numpy_helper.to_array(value)
    (tmp_path / "c.data").write_bytes(value.raw_data)
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="c.data")
    nodes = [helper.make_node("Constant", [], ["c"], "k", value=value), helper.make_node("Relu", ["c"], ["y"])]
    source = load(hostile.write(hostile.model_of(nodes, outputs=[hostile.floats("y", 4)]), tmp_path))
    found = source.model.graph.node(0).attributes["value"].as_tensor()
    np.testing.assert_array_equal(found.numpy(), array)
    assert len(source.data_files) == 1


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symlinks")
def test_hugging_face_snapshot_loads_with_its_data(tmp_path: Path) -> None:
    source = load(hostile.snapshot(tmp_path))
    assert source.data_files == ((tmp_path / "blobs" / "2c3d").resolve(),)
    np.testing.assert_array_equal(weights(source)["w2"], expected()["w2"])


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symlinks")
def test_a_file_is_served_as_it_stands_unless_its_data_are_links_out_of_its_folder(tmp_path: Path) -> None:
    for folder in ("plain", "hub"):
        (tmp_path / folder).mkdir()
    plain, hub = hostile.external()(tmp_path / "plain"), hostile.snapshot(tmp_path / "hub")
    (tmp_path / "linked").symlink_to("plain")
    for path in (plain, tmp_path / "linked" / plain.name):
        assert load(path).served == path
    source = load(hub)
    assert source.served is source.model


def test_hard_linked_data_can_be_read(tmp_path: Path) -> None:
    np.testing.assert_array_equal(weights(load(hostile.hard_linked(tmp_path)))["w1"], expected()["w1"])


def test_change_of_a_file_is_noticed(tmp_path: Path) -> None:
    path = hostile.external()(tmp_path)
    source = load(path)
    check_unchanged(source)
    (tmp_path / "model.data").write_bytes(bytes(848))
    os.utime(tmp_path / "model.data", (0, 0))
    with pytest.raises(ModelError, match=r"model\.data' was changed"):
        check_unchanged(source)
    (tmp_path / "model.data").unlink()
    with pytest.raises(ModelError, match=r"model\.data' was changed"):
        check_unchanged(source)


def test_message_is_copied() -> None:
    message = hostile.sound()
    data = message.SerializeToString(deterministic=True)
    source = load(message)
    assert source.path is None
    assert source.sha256 == hashlib.sha256(data).hexdigest()
    assert source.size == len(data)
    message.graph.initializer[0].raw_data = bytes(512)
    np.testing.assert_array_equal(weights(source)["w1"], expected()["w1"])
    source.model.graph.initializers["w1"].const_value.name = "other"
    assert message.graph.initializer[0].name == "w1"


def test_model_in_memory_keeps_its_lazy_tensors(tmp_path: Path) -> None:
    path = hostile.external()(tmp_path)
    model = ir.load(path)
    source = load(model)
    assert source.model is not model
    assert source.data_files == ((tmp_path / "model.data").resolve(),)
    assert isinstance(source.model.graph.initializers["w1"].const_value, ir.ExternalTensor)
    (tmp_path / "model.data").write_bytes(b"")
    with pytest.raises(ModelError, match="truncated"):
        load(model)
    (tmp_path / "model.data").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        load(model)


def test_model_in_memory_is_checked() -> None:
    model = ir.from_proto(hostile.cyclic())
    with pytest.raises(ModelError, match="cycle"):
        load(model)


def test_graphsurgeon_graph_loads() -> None:
    graph = gs.import_onnx(hostile.sound())
    for name, array in weights(load(graph)).items():
        np.testing.assert_array_equal(array, expected()[name])


@pytest.mark.parametrize("thing", [None, 3, b"model.onnx", np.zeros(3), onnx.GraphProto()])
def test_what_is_no_model_is_a_usage_error(thing: object) -> None:
    with pytest.raises(UsageError, match="is no model"):
        load(thing)  # type: ignore[arg-type]


def test_nodes_come_in_topological_order() -> None:
    assert [node.name for node in load(hostile.unsorted()).model.graph] == ["first", "act", "second"]


def test_unsorted_subgraph_comes_in_order() -> None:
    model = hostile.infinite_loop()
    body = model.graph.node[3].attribute[0].g
    body.node[1].output[0] = "between"
    body.node.insert(0, helper.make_node("Identity", ["between"], ["same"], "late"))
    graph = load(model).model.graph.node(3).attributes["body"].as_graph()
    outputs = [node.outputs[0].name for node in graph]
    assert outputs.index("between") < outputs.index("same")


def test_sparse_initializer_reads_as_a_dense_one() -> None:
    model = hostile.sound()
    dense = np.zeros((8, 16), np.float32)
    dense[1, 2], dense[7, 15] = 3, 4
    for indices in (np.array([18, 127]), np.array([[1, 2], [7, 15]])):
        values = numpy_helper.from_array(np.array([3, 4], np.float32), "w1")
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices, "at"), [8, 16])
        del model.graph.initializer[0]
        model.graph.sparse_initializer.append(sparse)
        found = load(model).model.graph
        np.testing.assert_array_equal(found.initializers["w1"].const_value.numpy(), dense)
        assert found.node(0).inputs[1] is found.initializers["w1"]
        model = hostile.sound()


def test_map_types_load() -> None:
    """scikit-learn's classifiers give out a sequence of maps, which onnx-ir refuses to read."""
    model = hostile.sound()
    key = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.node.append(
        helper.make_node("ZipMap", ["y"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2, 3])
    )
    model.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(key)))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    assert load(model).model.graph.outputs[1].type is None


def test_attribute_without_a_type_gets_the_one_of_its_value() -> None:
    model = hostile.sound()
    model.graph.node[0].attribute.append(onnx.AttributeProto(name="alpha", f=0.5))
    assert load(model).model.graph.node(0).attributes["alpha"].as_float() == 0.5
    model.graph.node[0].attribute.append(onnx.AttributeProto(name="beta"))
    with pytest.raises(ModelError, match="attribute 'beta'"):
        load(model)


@pytest.mark.slow
def test_large_models_load_quickly(tmp_path: Path) -> None:
    layers = [hostile.tensor(f"w{k}", 1024, 1024) for k in range(25)]
    nodes = [helper.make_node("MatMul", [f"h{k}", f"w{k}"], [f"h{k + 1}"]) for k in range(25)]
    ends = {"inputs": [hostile.floats("h0", "N", 1024)], "outputs": [hostile.floats("h25", "N", 1024)]}
    path = hostile.write(hostile.model_of(nodes, layers, **ends), tmp_path)
    started = time.perf_counter()
    load(path)
    assert time.perf_counter() - started < 1

    model = hostile.model_of(nodes, layers, **ends)
    hostile.externalized(model)
    with (tmp_path / "model.data").open("wb") as file:
        file.truncate(25 << 22)
    path = hostile.write(model, tmp_path)
    started = time.perf_counter()
    load(path)
    assert time.perf_counter() - started < 0.2


def test_public_names_are_there() -> None:
    assert all(hasattr(models, name) for name in models.__all__)
