"""Whether a pruned file is the cut of its plan: true ones are recognised, and every way of being wrong is seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.clock import Clock
from onnxprune.errors import DataError
from onnxprune.graph.model import load
from onnxprune.graph.running import CPU
from onnxprune.proof import exactness
from onnxprune.proof.exactness import check_cut
from onnxprune.reports.report import Exactness
from onnxprune.subject import coupled

MODELS = Path(__file__).parent.parent / "models"


def checked(original: Any, pruned: Any, plan: onnxprune.Plan) -> Exactness:
    source = load(original)
    return check_cut(source, coupled(source, plan.approximate, 0, (CPU,), Clock(None)), load(pruned), plan, (CPU,), 0)


def small() -> onnx.ModelProto:
    """Returns a network with a branch, a shared size and BatchNormalization, of dynamic batch and length."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.4).astype(np.float32)

    weights = {
        "w1": drawn(8, 3, 3), "b1": drawn(8), "s": np.abs(drawn(8)) + 0.5, "o": drawn(8), "m": drawn(8),
        "v": np.abs(drawn(8)) + 0.5, "w2": drawn(6, 8, 3), "w3": drawn(8, 4), "b3": drawn(4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "conv1", pads=[1, 1]),
        helper.make_node("BatchNormalization", ["a", "s", "o", "m", "v"], ["n"], "bn"),
        helper.make_node("Relu", ["n"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "w2"], ["c"], "conv2", pads=[1, 1]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "t"])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("c", TensorProto.FLOAT, ["n", 6, "t"]),
        ],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def cut(model: Any, **options: Any) -> tuple[onnx.ModelProto, onnxprune.Plan]:
    import onnx_ir as ir

    result = onnxprune.prune(model, ratio=0.5, **options)
    return ir.to_proto(result.model), result.plan


@pytest.mark.parametrize("compensate", ["none", "bias", "lstsq"])
def test_a_true_cut_is_exact_whatever_was_refitted(compensate: str) -> None:
    pruned, plan = cut(small(), compensate=compensate, criterion="l1")
    found = checked(small(), pruned, plan)
    assert found.exact is True
    assert found.error is not None
    assert found.error < 1e-5
    assert found.weights > 0
    assert (found.refitted > 0) == (compensate != "none")
    assert found.problems == ()


@pytest.mark.parametrize("name", ["digits_resnet", pytest.param("digits_vit", marks=pytest.mark.slow)])
def test_the_projects_own_networks(name: str) -> None:
    path = MODELS / f"{name}.onnx"
    pruned, plan = cut(path, calibration=MODELS / "digits.npz", samples=64)
    found = checked(path, pruned, plan)
    assert found.exact is True
    assert found.refitted > 0


def test_subgraphs_and_functions_are_looked_into() -> None:
    """A network whose head stands in both branches of an If."""
    rng = np.random.default_rng(0)
    weights = {"w1": (8, 3), "w2": (4, 8)}

    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("Gemm", ["h", "w2"], [f"y_{name}"], name, transB=1)
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(f"y_{name}", 1, ["n", 4])])

    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], "fc", transB=1),
        helper.make_node("If", ["flag"], ["y"], "if", then_branch=branch("one"), else_branch=branch("two")),
    ]
    values = [helper.make_tensor_value_info("x", 1, ["n", 3]), helper.make_tensor_value_info("flag", 9, [])]
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), k) for k, s in weights.items()]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", 1, ["n", 4])], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    pruned, plan = cut(model, compensate="none", criterion="l1")
    assert checked(model, pruned, plan).exact is True


# ---------------------------------------------------------------- what is wrong
def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def changed(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    held = tensor(model, name)
    held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(held))), name))


def roll(values: np.ndarray) -> np.ndarray:
    return np.roll(values, 1, axis=0)


@pytest.mark.parametrize("name", ["w1", "b1", "s", "m", "w3", "b3"])
def test_other_channels_than_the_plan_keeps(name: str) -> None:
    pruned, plan = cut(small(), compensate="none", criterion="l1")
    changed(pruned, name, roll)
    found = checked(small(), pruned, plan)
    assert found.exact is False
    assert found.refitted == 1
    assert "compensates nothing" in found.problems[0]


def test_a_weight_of_another_shape() -> None:
    pruned, plan = cut(small(), compensate="none", criterion="l1")
    kept = plan.groups[0].units - len(plan.groups[0].cut)
    for name in ("w1", "b1", "s", "o", "m", "v"):
        changed(pruned, name, lambda v: v[:-1])
    changed(pruned, "w2", lambda v: v[:, :-1])
    changed(pruned, "w3", lambda v: v[:-1])
    found = checked(small(), pruned, plan)
    assert found.exact is False
    assert f"[{kept - 1}, 3, 3], and the plan leaves FLOAT [{kept}, 3, 3]" in found.problems[0]


def test_a_node_that_computes_something_else() -> None:
    pruned, plan = cut(small(), criterion="l1")
    next(n for n in pruned.graph.node if n.name == "conv2").attribute[0].ints[:] = [2, 0]
    found = checked(small(), pruned, plan)
    assert found.exact is False
    assert found.error is not None
    assert found.error > 0.1
    assert "computes something else" in found.problems[-1]


@pytest.mark.parametrize("change", ["gone", "more", "other"])
def test_another_graph(change: str) -> None:
    pruned, plan = cut(small(), criterion="l1")
    nodes = pruned.graph.node
    relu = next(k for k, n in enumerate(nodes) if n.name == "relu")
    if change == "gone":
        nodes[relu + 1].input[0] = "n"
        nodes[relu + 2].input[0] = "n"
        del nodes[relu]
    elif change == "more":
        nodes.append(helper.make_node("Abs", ["y"], ["z"], "abs"))
    else:
        nodes[relu].op_type = "Sigmoid"
    found = checked(small(), pruned, plan)
    assert found.exact is False
    assert found.error is None
    assert "the pruned model has" in found.problems[0]


def test_the_plan_of_another_model() -> None:
    pruned, plan = cut(small(), criterion="l1")
    other = small()
    changed(other, "w1", roll)
    with pytest.raises(DataError, match="made for another model"):
        checked(other, pruned, plan)


def test_the_noise_of_a_provider_is_allowed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pruned, plan = cut(small(), criterion="l1")
    next(n for n in pruned.graph.node if n.name == "conv2").attribute[0].ints[:] = [2, 0]
    monkeypatch.setattr(exactness, "noise_floor", lambda *_: 1.0)
    found = checked(small(), pruned, plan)
    assert found.tolerance == 5.0
    assert found.exact is True
