"""The loss of single units, against weights set to zero by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from digitlike import FIRST, Net, pictures

from onnxprune.criteria import OnOutputs
from onnxprune.criteria.ablation import rank_by_outputs
from onnxprune.criteria.loss import loss
from onnxprune.engine.coupling import couple
from onnxprune.engine.units import find_units
from onnxprune.graph.trace import trace

CPU = ("CPUExecutionProvider",)


def outputs(net: Net) -> np.ndarray:
    return ort.InferenceSession(net.model().SerializeToString(), providers=CPU).run(None, pictures())[0]


def test_the_change_is_that_of_the_network_with_the_unit_at_zero() -> None:
    net, told = Net(), list[tuple[int, int]]()
    graph = ir.from_proto(net.model())
    units = find_units(couple(graph, trace(graph)))
    wanted = [g.name == "w1" for g in units.groups]
    found = rank_by_outputs(units, OnOutputs(loss), wanted, [pictures()], CPU, lambda a, b: told.append((a, b)))
    dense = outputs(net).astype(np.float64)
    expected = [np.square(outputs(net.silenced(k)) - dense).sum() / np.square(dense).sum() for k in range(FIRST)]
    (scores,) = (f for f in found if f is not None)
    assert np.allclose(scores, expected, rtol=1e-3)
    assert told == [(k, FIRST) for k in range(FIRST)]


def test_a_change_that_is_no_number_keeps_its_unit() -> None:
    graph = ir.from_proto(Net().model())
    units = find_units(couple(graph, trace(graph)))
    found = rank_by_outputs(units, OnOutputs(lambda a, b: float("nan")), [True] * 3, [pictures(2)], CPU)
    assert all(f is not None and np.isposinf(f).all() for f in found)
