"""Live values: what a network has on its way, in memory or in files, and gone when nobody needs it."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hostile import floats, model_of, tensor

import onnxprune
from onnxprune.engine import frontier
from onnxprune.engine.coupling import Coupling, couple
from onnxprune.engine.frontier import Frontier, Live, Spool, samples_at_once
from onnxprune.engine.layers import find_layers
from onnxprune.graph.model import load
from onnxprune.graph.runtime import provider_names
from onnxprune.graph.trace import trace

MODELS = Path(__file__).parent.parent / "models"


def coupled(name: str) -> Coupling:
    model = load(MODELS / name).model
    return couple(model, trace(model, seed=0, providers=provider_names(())))


@pytest.mark.parametrize("room", [0, 1 << 27])
def test_a_spool_gives_back_what_it_was_given(room: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(frontier, "room", lambda: room)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spool = Spool()
    values = {"a": np.arange(40000, dtype=np.float32).reshape(200, 200), "b": np.arange(5), "c": np.array(["x"])}
    live = Live(spool, values)
    for name, value in values.items():
        np.testing.assert_array_equal(live[name], value)
    assert len(list(tmp_path.rglob("*.bin"))) == (1 if room == 0 else 0)
    copy = Live(spool, live)
    assert copy.shares(live, "a")
    del live["a"], live
    gc.collect()
    np.testing.assert_array_equal(copy["a"], values["a"])  # someone still holds it
    del copy
    gc.collect()
    assert not list(tmp_path.rglob("*.bin"))
    assert spool._held == 0
    spool.close()
    assert not list(tmp_path.iterdir())


def test_batches_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier, "room", lambda: 1 << 20)
    spool = Spool()
    stored = spool.store({"x": np.full((64, 1024), k, np.float32)} for k in range(40))  # 10 MB
    assert spool._held <= 1 << 20
    assert [int(b["x"][0, 0]) for b in stored] == list(range(40))
    spool.close()


def test_values_are_those_of_the_whole_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontier, "room", lambda: 0)
    coupling = coupled("digits_cnn.onnx")
    x = np.load(MODELS / "digits.npz")["input"][:64].astype(np.float32)
    name = coupling.nodes[-1].outputs[0].name
    assert name is not None
    spool = Spool()
    end = len(coupling.nodes)
    walk = Frontier(coupling, [{"input": x[:32]}, {"input": x[32:]}], provider_names(()), spool, [(name, end)])
    for stop in range(1, end + 1):
        walk.advance(stop)
    session = ort.InferenceSession(MODELS / "digits_cnn.onnx", providers=["CPUExecutionProvider"])
    wanted = session.run(None, {session.get_inputs()[0].name: x})[0]
    assert [set(v) for v in walk.values] == [{name}, {name}]  # nothing else is live at the end
    np.testing.assert_allclose(np.concatenate([v[name] for v in walk.values]), wanted, rtol=1e-4, atol=1e-5)
    spool.close()


def test_large_values_are_fed_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    coupling = coupled("digits_cnn.onnx")
    many = samples_at_once(coupling)
    monkeypatch.setattr(frontier, "AT_ONCE", frontier.AT_ONCE // 4)
    assert 1 <= samples_at_once(coupling) <= many // 3
    monkeypatch.setattr(frontier, "AT_ONCE", 1)
    assert samples_at_once(coupling) == 1


def test_the_models_here_are_what_these_tests_think() -> None:
    assert onnx.load(MODELS / "digits_cnn.onnx").graph.input[0].name == "input"


def test_a_rank_that_depends_on_the_batch_is_one_line() -> None:
    """A Squeeze without axes takes the batch away from a single sample, which no trace of two samples tells."""
    nodes = [
        onnx.helper.make_node("Squeeze", ["x"], ["s"]),
        onnx.helper.make_node("MatMul", ["s", "w"], ["h"]),
        onnx.helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1]),
        onnx.helper.make_node("Flatten", ["t"], ["f"]),
        onnx.helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    weights = [tensor("w", 5, 8), tensor("v", 48, 3, seed=1)]
    model = model_of(nodes, weights, inputs=[floats("x", "N", 6, 5)], outputs=[floats("y", "N", 3)])
    one = {"x": np.ones((1, 6, 5), np.float32)}
    with pytest.raises(onnxprune.OnnxPruneError, match=r"does not run on .*rank"):
        onnxprune.prune(model, ratio=0.5, calibration=one)


def test_a_value_is_made_anew_with_other_weights() -> None:
    coupling = coupled("digits_mlp.onnx")
    batches = [{"input": np.random.default_rng(k).random((4, 1, 8, 8), np.float32)} for k in range(2)]
    layers, spool = find_layers(coupling), Spool()
    lasting = [(layers[0].input, layers[1].index + 1)]
    before, after = (Frontier(coupling, batches, provider_names(()), spool, lasting) for _ in range(2))
    before.advance(layers[1].index)
    old = before.values[1][layers[1].input]
    for frontier_ in (before, after):
        frontier_.weights[layers[0].use.name] = frontier_.content(layers[0].use.name) * 2
    before.again(range(layers[0].index, layers[1].index), layers[1].input)
    after.advance(layers[1].index)
    for one, other in zip(before.values, after.values, strict=True):
        np.testing.assert_allclose(one[layers[1].input], other[layers[1].input], rtol=1e-6)
    assert not np.allclose(old, before.values[1][layers[1].input])
    spool.close()
