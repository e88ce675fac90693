"""Law 1 on random networks: every cut is exact, and nothing that brute force finds is missed without a reason."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from random_graphs import ALL, STRAIGHT, Net, Slot, evaluate, freedoms, random_net, to_onnx

from onnxprune.engine.coupling import couple
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.units import find_units
from onnxprune.graph.trace import trace
from onnxprune.testing import check_model
from onnxprune.testing.cases import run

FEW, MANY = range(40), range(40, 400)


def seeds(values: range, *, slow: bool = False) -> pytest.MarkDecorator:
    """Returns the parameter `seed`; a failure's id says which."""
    marks = [pytest.mark.slow] if slow else []
    return pytest.mark.parametrize("seed", [pytest.param(s, marks=marks) for s in values])


def units(model: onnx.ModelProto) -> list[frozenset[Slot]]:
    """Returns the slots of weights that each unit takes."""
    graph = ir.from_proto(model)
    coupling = couple(graph, trace(graph))
    found = find_units(coupling)
    sets = []
    for k in range(found.count):
        cutting = Cutting(found, np.array([k]))
        sets.append(
            frozenset(
                (use.name, axis, i)
                for use in coupling.uses
                if use.name.startswith("w")
                for axis, count in enumerate(use.shape)
                for i in set(range(count)).difference(*(keep.tolist() for keep in cutting.kept_of(use, axis)[1]))
            )
        )
    return [s for s in sets if s]


def missed(net: Net) -> dict[frozenset[Slot], set[Slot]]:
    """Returns the freedoms that no choice of units makes."""
    mine, found = units(to_onnx(net)), freedoms(net)
    covered = {f: frozenset[Slot]().union(*(u for u in mine if u <= f)) for f in found}
    return {f: dead for f, dead in found.items() if covered[f] != f}


@seeds(FEW)
def test_every_cut_is_exact(seed: int) -> None:
    outcome = check_model(to_onnx(random_net(seed)), seed)
    print(f"seed {seed}: groups of {outcome.units}, {outcome.cuts} cuts")
    assert outcome.wrong == ()


@seeds(MANY, slow=True)
def test_every_cut_of_many_is_exact(seed: int) -> None:
    test_every_cut_is_exact(seed)


@seeds(FEW)
def test_nothing_is_missing_where_axes_are_never_merged(seed: int) -> None:
    assert missed(random_net(seed, STRAIGHT)) == {}


@seeds(MANY, slow=True)
def test_nothing_is_missing_in_many(seed: int) -> None:
    test_nothing_is_missing_where_axes_are_never_merged(seed)


@seeds(FEW)
def test_what_is_missing_goes_through_a_reshape(seed: int) -> None:
    """Where two axes are merged, rows or columns can go, not both."""
    net = random_net(seed)
    reshaped = {name for s in net.steps if s.op == "reshape" for name in (*s.inputs, s.output)}
    missing = missed(net)
    print(f"seed {seed}: {len(missing)} missing")
    for weights, dead in missing.items():
        assert reshaped & {name for name, _, _ in dead}, sorted(weights)


@seeds(FEW)
def test_the_networks_are_what_onnxruntime_computes(seed: int) -> None:
    net = random_net(seed)
    x = np.random.default_rng(seed).normal(size=(3, 4, 3)).astype(np.float32)
    ((y,),) = run(to_onnx(net), {"x": x})
    expected = evaluate(net, net.weights, x)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_the_networks_use_every_kind_of_step() -> None:
    used = Counter(s.op for seed in FEW for s in random_net(seed).steps)
    assert set(used) >= {
        "matmul",
        "left",
        "bias",
        "add",
        "mul",
        "concat",
        "slice",
        "gather",
        "reshape",
        "transpose",
        "sum",
    }
    assert {"relu", "sigmoid"} <= set(used)
    assert set(STRAIGHT) < set(ALL)
    shared = [
        len({s.inputs[1] for s in net.steps if s.op == "matmul"}) < sum(s.op == "matmul" for s in net.steps)
        for net in map(random_net, FEW)
    ]
    assert any(shared)
