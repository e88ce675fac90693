"""Sessions that are run for their outputs, on the CPU and bound to a device's memory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from classifiers import scores_as_inputs
from onnx import TensorProto, helper

from onnxprune.errors import ProviderError, RunError
from onnxprune.graph import running, runtime
from onnxprune.graph.running import CPU, Runner, off_cpu, placement, ready, run_all
from onnxprune.proof.comparison import validate
from onnxprune.proof.validation import noise_floor
from onnxprune.reports.report import Placement

GPUS = [p for p in ort.get_available_providers() if p in running._DEVICES]
X = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)


def test_outputs_by_name() -> None:
    assert np.array_equal(Runner(scores_as_inputs(5), (CPU,))({"x": X})["y"], X)


def test_a_feed_that_does_not_fit() -> None:
    runner = Runner(scores_as_inputs(5), (CPU,))
    with pytest.raises(RunError, match=r"does not run on x \[6, 4\]"):
        runner({"x": X[:, :4]})


def _heavy() -> ir.Model:
    """Gives a matrix product; its weight is what counts as large here."""
    weight = onnx.numpy_helper.from_array(np.eye(5, 300, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 300])],
        [weight],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_a_large_model_is_run_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _heavy()
    with ready(model, external=False) as small:
        assert isinstance(small, onnx.ModelProto)
    monkeypatch.setattr(running, "LARGE", 6000)
    monkeypatch.delattr(os, "fsync")  # nobody waits for the disk
    with ready(model, external=False) as large:
        assert isinstance(large, Path)
        assert sorted(p.suffix for p in large.parent.iterdir()) == [".data", ".onnx"]
        found = Runner(large, (CPU,))({"x": X})["y"]
    assert not large.parent.exists()
    assert np.array_equal(found, Runner(small, (CPU,))({"x": X})["y"])


def test_without_room_for_a_file_a_large_model_is_run_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise RunError("No space left on device")

    monkeypatch.setattr(running, "LARGE", 6000)
    monkeypatch.setattr(running, "save", full)
    with ready(_heavy(), external=False) as subject:
        assert np.array_equal(Runner(subject, (CPU,))({"x": X})["y"][:, :5], X)
    with pytest.raises(RunError, match="No space"), ready(_heavy(), external=True):
        pass
    monkeypatch.setattr(running, "MOST_IN_MEMORY", 5999)
    with pytest.raises(RunError, match="No space"), ready(_heavy(), external=False):
        pass


def test_which_nodes_ran_where() -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Softmax", ["a"], ["b"]),
            helper.make_node("CumSum", ["b", "axis"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [onnx.numpy_helper.from_array(np.array(1), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (found,) = placement(model, {"x": X}, (CPU,))
    assert found == Placement(CPU, 3, {"CumSum": 1, "Relu": 1, "Softmax": 1})


def test_the_profile_tells_of_several_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [("a_kernel_time", "CUDAExecutionProvider", "Conv"), ("b_kernel_time", CPU, "Shape")]
    events: list[dict[str, Any]] = [{"cat": "Session", "name": "model_run"}]
    for name, provider, op in [*kernels, kernels[0]]:  # a node in a loop runs twice and counts once
        events.append({"cat": "Node", "name": name, "args": {"provider": provider, "op_name": op}})
    events.append({"cat": "Node", "name": "a_fence_before", "args": {"op_name": "Conv"}})

    class Session:
        def __init__(self, profile: Path) -> None:
            self.path = Path(f"{profile}.json")

        def run(self, *_: Any) -> None:
            self.path.write_text(json.dumps(events))

        def end_profiling(self) -> str:
            return str(self.path)

    monkeypatch.setattr(running, "open_for_timing", lambda *_, profile: Session(profile))
    found = placement(scores_as_inputs(5), {"x": X}, ("CUDAExecutionProvider", CPU))
    assert found == (Placement("CUDAExecutionProvider", 1, {"Conv": 1}), Placement(CPU, 1, {"Shape": 1}))


def test_inputs_and_outputs_are_bound_to_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU taken for a device, all of binding runs but the copy to another memory."""
    monkeypatch.setitem(running._DEVICES, CPU, "cpu")
    bound: list[str] = []
    real = ort.InferenceSession.run_with_iobinding

    def spy(self: ort.InferenceSession, *arguments: Any) -> None:
        bound.append("run")
        real(self, *arguments)

    monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", spy)
    assert np.array_equal(Runner(scores_as_inputs(5), (CPU,))({"x": X.T.copy().T})["y"], X)
    assert bound == ["run"]


@pytest.mark.skipif("CoreMLExecutionProvider" in ort.get_available_providers(), reason="it is there")
def test_a_provider_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ProviderError, match=r"no 'CoreMLExecutionProvider' here, it has .*CPUExecutionProvider"):
        validate(scores_as_inputs(5), scores_as_inputs(5), provider=("coreml",))


def test_the_cpu_has_no_noise() -> None:
    assert noise_floor(scores_as_inputs(5), [{"x": X}], [{"y": X}], (CPU,)) is None
    assert not off_cpu((CPU,))


def test_the_noise_of_another_provider_is_what_the_original_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that computes everything larger by a thousandth."""
    monkeypatch.setattr(runtime, "_require", lambda names: None)
    there = ("OtherExecutionProvider", CPU)
    found = noise_floor(scores_as_inputs(5), [{"x": X}], [{"y": X * np.float32(1.001)}], there)
    assert found == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not GPUS, reason="no GPU provider is here")
@pytest.mark.parametrize("gpu", GPUS)
def test_a_gpu_gives_what_the_cpu_gives(gpu: str) -> None:
    feeds = [{"x": X}, {"x": X[:2]}]
    on_cpu, on_gpu = (run_all(scores_as_inputs(5), feeds, p) for p in ((CPU,), (gpu, CPU)))
    for a, b in zip(on_cpu, on_gpu, strict=True):
        assert np.allclose(a["y"], b["y"], rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not GPUS, reason="no GPU provider is here")
@pytest.mark.parametrize("gpu", GPUS)
def test_a_gpu_is_told_of_in_the_report(gpu: str) -> None:
    found = validate(scores_as_inputs(5), scores_as_inputs(5), provider=(gpu, "cpu")).validation
    assert found.placement[0].provider == gpu
    assert found.noise is not None
    assert found.noise < 0.05
