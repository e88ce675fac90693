"""What every criterion must do, also one that a third party adds to `CRITERIA`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from digitlike import FIRST, HIDDEN, SECOND, Net, pictures

from onnxprune import Result, prune
from onnxprune.criteria import CRITERIA, Criterion, Inputs, OnInputs, OnOutputs, OnWeights

MODELS = Path(__file__).parents[2] / "models"
OF_OTHERS: dict[str, Criterion] = {
    "theirs_on_weights": OnWeights(lambda rows, rng: np.square(rows, dtype=np.float64).max(axis=1)),
    "theirs_on_inputs": OnInputs(lambda seen: seen.square - seen.mean**2),
    "theirs_on_outputs": OnOutputs(lambda dense, masked: float(np.abs(dense - masked).max())),
}
NAMES = [*CRITERIA, *OF_OTHERS]
RULES = [name for name, c in {**CRITERIA, **OF_OTHERS}.items() if isinstance(c, OnWeights | OnInputs)]
BLIND = {"random"}  # don't look at the units
ZERO_IS_NOT_SPECIAL = {"random", "fpgm"}

everyone = pytest.mark.parametrize("name", NAMES)
rules = pytest.mark.parametrize("name", RULES)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, criterion in OF_OTHERS.items():
        monkeypatch.setitem(CRITERIA, name, criterion)


def scores(name: str, array: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns what a rule makes of units x features: weights, or activations of as many positions."""
    criterion = CRITERIA[name]
    if isinstance(criterion, OnWeights):
        return criterion.rule(array.astype(np.float32), np.random.default_rng(seed))
    assert isinstance(criterion, OnInputs)
    means = (f(array).mean(axis=1) for f in (lambda a: a, np.abs, np.square, lambda a: a == 0))
    weights = np.ones((len(array), 3))
    return criterion.rule(Inputs(np.arange(len(array)), *means, weights, np.atleast_2d(np.cov(array, bias=True))))


def activations(units: int = 9, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(units, 200)) * rng.uniform(0.2, 2, (units, 1)) + rng.normal(size=(units, 1)), 0)


# ---------------------------------------------------------------- rules on arrays
@rules
def test_scores_are_finite_and_one_for_each_unit(name: str) -> None:
    found = scores(name, activations())
    assert found.shape == (9,) and found.dtype == np.float64
    assert np.isfinite(found).all() and (found >= 0).all() and np.ptp(found) > 0


@rules
def test_scores_depend_on_nothing_but_arrays_and_seed(name: str) -> None:
    assert np.array_equal(scores(name, activations(), 3), scores(name, activations(), 3))


@pytest.mark.parametrize("name", [n for n in RULES if n not in BLIND])
def test_scores_go_along_with_their_units(name: str) -> None:
    order = np.random.default_rng(2).permutation(9)
    assert np.allclose(scores(name, activations()[order]), scores(name, activations())[order], rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in RULES if n not in ZERO_IS_NOT_SPECIAL])
def test_a_unit_of_zeros_scores_lowest(name: str) -> None:
    array = activations()
    array[4] = 0
    found = scores(name, array)
    assert found[4] == 0 and (np.delete(found, 4) > 0).all()


@rules
def test_the_order_does_not_depend_on_the_scale(name: str) -> None:
    found, larger = scores(name, activations()), scores(name, activations() * 1024)
    assert np.array_equal(np.argsort(found), np.argsort(larger))


@rules
@pytest.mark.parametrize(
    "array", [np.zeros((5, 7)), np.ones((5, 7)), np.ones((5, 1)), np.ones((1, 7)), np.zeros((1, 1)), np.eye(5) * 1e-30]
)
def test_nothing_degenerate_makes_a_score_that_is_no_number(name: str, array: np.ndarray) -> None:
    found = scores(name, array)
    assert found.shape == (len(array),) and np.isfinite(found).all()


# ---------------------------------------------------------------- through the whole program
def pruned(
    name: str, net: Net, data: Mapping[str, np.ndarray] | None = None, ratio: float = 0.5, **more: str
) -> Result:
    options = {"compensate": "none", **more}
    return prune(net.model(), ratio=ratio, criterion=name, calibration=data or pictures(), validate=False, **options)


def cut_of(result: Result) -> dict[str, set[int]]:
    return {group.name: set(group.cut) for group in result.plan.groups}


@everyone
def test_the_same_units_go_every_time(name: str) -> None:
    first, again = (cut_of(pruned(name, Net())) for _ in range(2))
    assert first == again
    assert {k: len(v) for k, v in first.items()} == {"w1": FIRST // 2, "w2": SECOND // 2, "w3": HIDDEN // 2}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in BLIND])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_units_go_in_any_order(name: str, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(FIRST)
    net = Net(seed)
    expected, found = cut_of(pruned(name, net)), cut_of(pruned(name, net.permuted(order)))
    assert {int(order[k]) for k in found["w1"]} == expected["w1"]
    assert found["w2"] == expected["w2"] and found["w3"] == expected["w3"]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "obs"])
def test_a_refit_of_the_rest_cuts_the_same_units(name: str) -> None:
    chosen, refitted = (cut_of(pruned(name, Net(), compensate=mode)) for mode in ("none", "lstsq"))
    assert chosen == refitted


@everyone
def test_the_same_units_go_at_any_scale(name: str) -> None:
    net = Net()
    assert cut_of(pruned(name, net)) == cut_of(pruned(name, net.rescaled(8)))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ZERO_IS_NOT_SPECIAL])
@pytest.mark.parametrize("unit", [0, FIRST - 1])
def test_a_unit_whose_weights_are_all_zero_goes_first(name: str, unit: int) -> None:
    assert cut_of(pruned(name, Net().silenced(unit), ratio=1.01 / FIRST))["w1"] == {unit}


@everyone
@pytest.mark.parametrize("compensate", ["none", "bias", "lstsq"])
@pytest.mark.parametrize("what", ["constant", "one sample", "zero layer", "one unit"])
def test_degenerate_models_and_data_are_pruned_all_the_same(name: str, compensate: str, what: str) -> None:
    net, data = Net(hidden=1 if what == "one unit" else HIDDEN), pictures(1 if what == "one sample" else 9)
    if what == "constant":
        data = {"x": np.ones_like(data["x"])}
    if what == "zero layer":
        net.having({"w2": np.zeros_like(net.weights["w2"]), "b2": np.zeros_like(net.weights["b2"])})
    result = pruned(name, net, data, compensate=compensate)
    assert {k: len(v) for k, v in cut_of(result).items()}["w1"] == FIRST // 2
    assert result.report.macs.after < result.report.macs.before


@everyone
def test_a_trained_network_is_halved_and_proved(name: str) -> None:
    result = prune(
        MODELS / "digits_cnn.onnx",
        ratio=0.5,
        criterion=name,
        compensate="lstsq",
        calibration=MODELS / "digits.npz",
        samples=64,
    )
    assert all(len(g.cut) == g.units // 2 for g in result.plan.groups)
    assert result.report.options["criterion"] == name
    assert result.report.validation is not None
    assert result.report.validation.fidelity[0].top1_agreement is not None
    assert result.report.validation.fidelity[0].top1_agreement > 0.5


def test_the_units_of_a_group_without_a_normalisation_are_ranked_by_l1_and_that_is_said() -> None:
    result = pruned("bn_scale", Net())
    by_l1, scale = cut_of(pruned("l1", Net())), Net().weights["scale"]
    assert cut_of(result) == {**by_l1, "w1": set(np.argsort(scale)[: FIRST // 2].tolist())}
    (note,) = (n for n in result.report.notes if "l1" in n)
    assert note.startswith("bn_scale: 2 groups") and note.endswith("w2, w3")


def test_units_that_no_linear_node_reads_are_ranked_by_l1_and_that_is_said() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> g (float[n, 3] x) => (float[n] y) {
            h = MatMul(x, w) r = Relu(h) y = ReduceSum<keepdims = 0>(r, axes)
        }""")
    rng = np.random.default_rng(0)
    w, axes = rng.normal(size=(3, 8)).astype(np.float32), np.array([1])
    data = {"x": rng.normal(size=(20, 3)).astype(np.float32)}
    model.graph.initializer.extend([onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(axes, "axes")])
    result = prune(model, ratio=0.5, criterion="rms", compensate="none", calibration=data)
    assert cut_of(result)["w"] == set(np.argsort(np.abs(w).sum(axis=0))[:4].tolist())
    assert any(n.startswith("rms: 1 groups were ranked by l1") for n in result.report.notes)
