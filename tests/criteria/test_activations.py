"""Statistics of what linear layers read, against numpy on onnxruntime's own values."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from digitlike import FIRST, HIDDEN, SECOND, Net, pictures

from onnxprune.criteria import Inputs, OnInputs, activations
from onnxprune.criteria.activations import gather, rank_by_inputs
from onnxprune.engine.coupling import couple
from onnxprune.engine.units import Units, find_units
from onnxprune.graph.trace import trace

CPU = ("CPUExecutionProvider",)


def net(proto: onnx.ModelProto) -> Units:
    graph = ir.from_proto(proto)
    return find_units(couple(graph, trace(graph)))


def batches(count: int) -> list[dict[str, np.ndarray]]:
    return [{"x": part} for part in np.array_split(pictures()["x"], count)]


def values(proto: onnx.ModelProto, name: str) -> np.ndarray:
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(copy.SerializeToString(), providers=CPU)
    return session.run([name], pictures())[0].astype(np.float64)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("name", "value"), [("w2", "r1"), ("w3", "f"), ("w4", "r3")])
def test_sums_are_those_of_the_values_that_a_layer_reads(name: str, value: str, count: int) -> None:
    proto = Net().model()
    x = values(proto, value)
    rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    (sums,) = (s for layer, s in gather(net(proto), batches(count), CPU, True, 0) if layer.use.name == name)
    assert sums.n == len(rows)
    assert np.allclose(sums.total, rows.sum(axis=0), rtol=1e-4)
    assert np.allclose(sums.magnitude, np.abs(rows).sum(axis=0), rtol=1e-4)
    assert np.allclose(sums.square, np.square(rows).sum(axis=0), rtol=1e-4)
    assert np.allclose(sums.zeros, (rows == 0).sum(axis=0))
    cells = np.arange(rows.shape[1])
    covariance = sums.seen(cells, cells, np.ones((len(cells), 1))).covariance
    assert covariance is not None and np.allclose(covariance, np.cov(rows.T, bias=True), rtol=1e-4, atol=1e-6)


def test_a_rule_sees_each_group_with_its_cells_and_the_weights_on_them() -> None:
    shown: list[Inputs] = []

    def spy(seen: Inputs) -> np.ndarray:
        shown.append(seen)
        return seen.square

    made = Net()
    found = rank_by_inputs(net(made.model()), OnInputs(spy), batches(2), CPU, 0)
    first, second, hidden = shown
    assert [len(f) for f in found if f is not None] == [FIRST, SECOND, HIDDEN]
    assert first.unit.tolist() == list(range(FIRST))
    assert second.unit.tolist() == np.repeat(np.arange(SECOND), 4).tolist()  # a channel is 2 x 2 features
    assert first.covariance is None
    assert np.allclose(
        first.weights,
        np.moveaxis(made.weights["w2"], 1, 0).reshape(FIRST, -1)[
            :, np.argsort(np.tile(np.arange(4), SECOND), kind="stable")
        ],
    )
    assert np.allclose(second.weights, made.weights["w3"].T)
    assert np.allclose(hidden.weights, made.weights["w4"].T)
    per_channel = np.square(values(made.model(), "r2")).mean(axis=(0, 2, 3))
    assert np.allclose(found[1], per_channel / per_channel.mean(), rtol=1e-4)


def test_covariances_may_be_formed_from_some_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MOST_ROWS", 300)
    sums = [s for _, s in gather(net(Net().model()), batches(3), CPU, True, 0)]
    assert sums[0].rows == 300 and sums[0].n == 40 * 16
    again = [s for _, s in gather(net(Net().model()), batches(3), CPU, True, 0)]
    assert all(np.array_equal(a.gram, b.gram) for a, b in zip(sums, again, strict=True))


def test_too_many_cells_for_a_covariance_and_values_that_are_no_numbers_tell_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(activations, "MOST_CELLS", 10)
    found = rank_by_inputs(net(Net().model()), OnInputs(lambda s: s.square, covariance=True), batches(2), CPU, 0)
    assert [f is None for f in found] == [False, True, False]
    broken = Net()
    broken.weights["b2"][0] = np.inf
    found = rank_by_inputs(net(broken.model()), OnInputs(lambda s: s.square), batches(2), CPU, 0)
    assert [f is None for f in found] == [False, True, True]


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    rank_by_inputs(
        net(Net().model()), OnInputs(lambda s: s.square), batches(2), CPU, 0, lambda a, b: told.append((a, b))
    )
    assert told == [(0, 3), (1, 3), (2, 3)]
