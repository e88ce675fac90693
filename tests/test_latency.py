"""Cost tables: which shapes are timed, what is made of the times, and where they are kept. No test looks at a clock."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import test_flat
import test_turns
from hostile import floats, model_of, tensor
from onnx import helper

import onnxprune
from onnxprune import study
from onnxprune.engine.coupling import couple
from onnxprune.engine.cut import cut
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.sizes import rewrite_sizes
from onnxprune.engine.units import Units, find_units
from onnxprune.errors import TargetError
from onnxprune.graph.model import load
from onnxprune.graph.trace import trace
from onnxprune.latency import staircase as latency
from onnxprune.latency.ladders import coarse_first, sites
from onnxprune.latency.probes import Operand, Probe, fastest, measure
from onnxprune.latency.staircase import CostTable, Serving, batch_scale, cost_table, feed_at
from onnxprune.latency.timetable import Timetable, cache_folder, open_timetable

MODELS = Path(__file__).parent.parent / "models"
CPU = ("CPUExecutionProvider",)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives every test a folder of its own for measured times."""
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path_factory.mktemp("times")))


def units_of(model: str | Path | onnx.ModelProto) -> Units:
    source = load(model)
    return find_units(couple(source.model, trace(source.model)))


def network(*widths: int) -> onnx.ModelProto:
    """Returns a chain of convolutions of these widths over 8 x 8 pictures, with a head of 4."""
    nodes, weights, x, before = [], [], "x", 3
    for k, width in enumerate(widths):
        weights.append(tensor(f"w{k}", width, before, 3, 3, seed=k))
        nodes += [
            helper.make_node("Conv", [x, f"w{k}"], [f"c{k}"], f"conv{k}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{k}"], [f"r{k}"], f"relu{k}"),
        ]
        x, before = f"r{k}", width
    weights.append(tensor("head", before, 4))
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "head"], ["y"], "fc"),
    ]
    return model_of(nodes, weights, inputs=[floats("x", "N", 3, 8, 8)])


# -------------------------------------------------------------------------------------------------- what is timed
@pytest.mark.parametrize("name", ["cnn", "resnet", "mobilenet", "lstm", "vit", "mlp"])
def test_every_probe_has_the_shapes_and_attributes_that_a_cut_leaves(name: str) -> None:
    units = units_of(MODELS / f"digits_{name}.onnx")
    tried = 0
    for site in sites(units, lambda first, _: first):
        node = units.coupling.nodes[site.index]
        for axis in site.axes:
            if len(axis.slope) > 1:
                continue
            ((g, per_unit),) = axis.slope
            for length in axis.levels[::3]:
                gone, rest = divmod(axis.full - length, per_unit)
                group = units.groups[g]
                if rest or gone >= len(group):
                    continue
                cutting = Cutting(units, group.units[:gone])
                found = cut(cutting, rewrite_sizes(cutting))
                probe = axis.probe(length)
                same = next(n for n in found.graph if n.outputs[0].name == node.outputs[0].name)
                assert attributes(onnx.NodeProto.FromString(probe.node)) == attributes(ir.to_proto(same))
                for operand, value in zip(probe.inputs, same.inputs, strict=True):
                    tensor_ = None if value is None else ir.convenience.get_const_tensor(value)
                    if operand is not None and tensor_ is not None:
                        assert operand.shape == tuple(tensor_.shape.numpy())
                        tried += 1
                        assert operand.constant
    assert tried > 5


def attributes(node: object) -> dict[str, object]:
    assert isinstance(node, onnx.NodeProto)
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "lstm", "vit"])
def test_every_probe_runs_alone(name: str) -> None:
    units = units_of(MODELS / f"digits_{name}.onnx")
    found = {site.full.key: site.full for site in sites(units, lambda first, _: first)}
    found |= {a.probe(a.levels[0]).key: a.probe(a.levels[0]) for s in sites(units, lambda n, _: n) for a in s.axes}
    assert all(measure(probe, CPU, 1) > 0 for probe in found.values())


def test_equal_nodes_are_one_probe_and_names_do_not_count() -> None:
    units = units_of(network(16, 16, 16))
    keys = [site.full.key for site in sites(units, lambda first, _: first)]
    assert len(keys) == 4
    assert len(set(keys)) == 3  # conv1 and conv2 are alike


def test_a_probe_is_told_by_all_that_counts() -> None:
    node = helper.make_node("MatMul", [], []).SerializeToString()

    def key(*shape: int, dtype: int = 1, constant: bool = True) -> str:
        inputs = Operand(dtype, shape, constant), Operand(1, (8, 4), True)
        return Probe(node, (("", 17),), inputs, (1,)).key

    assert len({key(2, 8), key(3, 8), key(2, 8, dtype=10), key(2, 8, constant=False)}) == 4
    assert key(2, 8) == key(2, 8)


def test_levels_are_tried_from_coarse_to_fine() -> None:
    assert coarse_first(range(7)) == (3, 1, 5, 0, 2, 4, 6)
    assert sorted(coarse_first(range(100))) == list(range(100))
    assert coarse_first(()) == ()


def test_interruptions_do_not_count() -> None:
    assert fastest([5, 1, 1, 9, 1, 100, 1, 7]) == 1


# -------------------------------------------------------------------------------------------------- batch
def test_lengths_are_those_of_the_batch_that_is_served() -> None:
    units = units_of(network(8))
    (first, *_), (second, *_) = (feed["x"].shape for feed in units.coupling.trace.feeds)
    assert first != second
    scale = batch_scale(units.coupling, 7)
    assert scale(first, second) == 7
    assert scale(10 * first, 10 * second) == 70
    assert scale(16, 16) == 16
    assert feed_at(units.coupling, 7)["x"].shape == (7, 3, 8, 8)


def test_a_declared_batch_stays() -> None:
    model = network(8)
    model.graph.input[0].CopyFrom(floats("x", 5, 3, 8, 8))
    model.graph.output[0].CopyFrom(floats("y", 5, 4))
    units = units_of(model)
    assert feed_at(units.coupling, 1)["x"].shape == (5, 3, 8, 8)


# -------------------------------------------------------------------------------------------------- what is made of it
def stairs(shape: Sequence[int]) -> float:
    """Returns milliseconds of a weight of this shape on a processor with blocks of eight."""
    return 0.01 * math.prod(-(-n // 8) for n in shape[:2])


class Fake:
    """A processor with blocks of eight, which no clock has ever seen."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: float = 1.0) -> None:
        self.measured: list[Probe] = []
        self.error = error
        self.original = 0.0
        monkeypatch.setattr(latency, "measure", self._measure)
        monkeypatch.setattr(study, "SECONDS", 0.01)  # of the final look at a real clock
        monkeypatch.setattr(latency, "_kernels", self._whole)
        monkeypatch.setattr(latency, "_run", self._whole)
        monkeypatch.setattr(CostTable, "_share", lambda _, model: self.of(ir.to_proto(model)) / self.original)

    def _measure(self, probe: Probe, providers: Sequence[str], threads: int) -> float:
        self.measured.append(probe)
        (weight,) = [i.shape for i in probe.inputs if i is not None and i.constant]
        return stairs(weight) ** self.error  # of a table that is wrong in a way of its own

    def _whole(self, subject: onnx.ModelProto, *_: object) -> float:
        self.original = self.of(subject)
        return self.original

    @staticmethod
    def of(model: onnx.ModelProto) -> float:
        return sum(stairs(t.dims) for t in model.graph.initializer if len(t.dims) > 1)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


def made(model: onnx.ModelProto, table: Timetable | None = None) -> CostTable:
    source = load(model)
    units = find_units(couple(source.model, trace(source.model)))
    return cost_table(source, units, Serving(threads=1), table or Timetable("here"))


@pytest.mark.usefixtures("fake")
def test_the_original_takes_what_it_takes_and_less_the_more_is_cut() -> None:
    found = made(network(32, 32))
    free = (0,) * len(found.units.groups)
    assert found.estimate(free) == pytest.approx(found.full)
    ms = [found.estimate((n, n)) for n in (0, 8, 16, 24)]
    assert ms == sorted(ms, reverse=True)
    assert len(set(ms)) == 4


@pytest.mark.usefixtures("fake")
def test_a_product_of_stairs_is_foretold_exactly() -> None:
    found = made(network(32, 64))
    for counts in ((8, 16), (16, 0), (24, 56), (0, 32)):
        dead = np.concatenate([g.units[:n] for g, n in zip(found.units.groups, counts, strict=True)])
        cutting = Cutting(found.units, dead)
        left = Fake.of(ir.to_proto(cut(cutting, rewrite_sizes(cutting))))
        assert found.estimate(counts) == pytest.approx(left, rel=1e-4)


@pytest.mark.usefixtures("fake")
def test_a_node_in_a_loop_takes_as_long_as_all_its_turns() -> None:
    looped = test_flat.model(test_flat.HANDED_ON)
    units = find_units(test_turns.coupled(looped))
    found = cost_table(load(looped), units, Serving(threads=1), Timetable("here"))
    assert sorted(node.ms for node in found.nodes) == pytest.approx([0.01, 0.01, 0.01, 0.03, 0.03])


@pytest.mark.usefixtures("fake")
def test_edges_are_where_the_stairs_are() -> None:
    found = made(network(32, 20))
    assert found.edges == ((8, 16, 24, 32), (8, 16, 20))
    assert found.snap((5, 3)) == (0, 0)
    assert found.snap((8, 4)) == (8, 4)
    assert found.snap((31, 13)) == (24, 12)


def test_a_processor_without_stairs_has_an_edge_everywhere_it_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch)
    monkeypatch.setattr(fake, "_measure", None)
    monkeypatch.setattr(latency, "measure", lambda probe, *_: math.prod(probe.inputs[1].shape[:2]) * 1e-4)
    found = made(network(32))
    assert found.edges == ((1, 2, 4, 8, 16, 24, 32),)


def test_a_node_that_cannot_run_alone_goes_with_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    Fake(monkeypatch)
    monkeypatch.setattr(latency, "_tried", lambda *_: None)
    found = made(network(16, 16))
    assert found.nodes == ()
    assert found.rest == pytest.approx(found.full)
    assert found.estimate((8, 8)) == pytest.approx(0.5 * found.full, rel=0.15)  # of the activations


def test_out_of_time_the_coarse_levels_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    Fake(monkeypatch)
    source = load(network(64, 64))
    units = find_units(couple(source.model, trace(source.model)))
    table = Timetable("here")
    found = cost_table(source, units, Serving(threads=1), table, seconds=-1.0)
    assert len(found.nodes) == 3  # all of them at full size, whatever time that takes
    assert found.estimate((32, 32)) < found.full


def test_what_is_known_is_not_measured_again(fake: Fake) -> None:
    table = Timetable("here")
    one = made(network(16, 16, 16), table)
    before = len(fake.measured)
    other = made(network(16, 16, 16), table)
    assert before
    assert len(fake.measured) == before
    assert one.digest == other.digest


# -------------------------------------------------------------------------------------------------- a target
def pruned(model: onnx.ModelProto, share: float | str, folder: Path, name: str = "o.onnx") -> onnxprune.Result:
    return onnxprune.prune(
        model,
        target={"latency": share},
        threads=1,
        criterion="l1",
        compensate="none",
        allocation="uniform",
        validate=False,
        output=folder / name,
    )


@pytest.mark.parametrize("error", [1.0, 0.7, 1.4])
def test_a_target_is_met_by_the_written_file_also_where_the_table_is_wrong(
    error: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Fake(monkeypatch, error)
    model = network(64, 64, 128, 128)
    found = pruned(model, 0.6, tmp_path)
    left = Fake.of(onnx.load(tmp_path / "o.onnx")) / fake.original
    assert 0.45 < left <= 0.6 * 1.01
    kept = [row.units - row.cut for row in found.report.groups]
    assert all(n % 8 == 0 for n in kept)


@pytest.mark.usefixtures("fake")
def test_the_same_table_gives_the_same_bytes_and_stands_in_the_plan(tmp_path: Path) -> None:
    model = network(32, 32)
    one = pruned(model, 0.6, tmp_path, "a.onnx")
    other = pruned(model, 0.6, tmp_path, "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert one.plan.to_json() == other.plan.to_json()
    assert len(one.plan.options["cost_table"]) == 64


@pytest.mark.usefixtures("fake")
def test_milliseconds_are_a_target_too(tmp_path: Path) -> None:
    model = network(64, 64)
    full = Fake.of(model)
    pruned(model, f"{0.5 * full:.4f}ms", tmp_path)
    assert Fake.of(onnx.load(tmp_path / "o.onnx")) <= 0.5 * full * 1.01


@pytest.mark.usefixtures("fake")
def test_a_target_out_of_reach_is_told(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="latency"):
        pruned(network(16, 16), 0.001, tmp_path)
    assert not (tmp_path / "o.onnx").exists()


# -------------------------------------------------------------------------------------------------- the kept times
def test_times_are_there_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "deep" / "cache"))
    table = open_timetable(CPU, 1)
    assert table.get("a", lambda: 1.25) == 1.25
    assert table.get("b", lambda: None) is None
    table.save()
    again = open_timetable(CPU, 1)
    assert again.get("a", unasked) == 1.25
    assert again.get("b", unasked) is None
    assert again.digest == table.digest
    assert list(cache_folder().iterdir()) == [table.path]


def unasked() -> float:
    raise AssertionError("it is known")


def test_threads_and_providers_have_times_of_their_own() -> None:
    paths = {open_timetable(p, t).path for p in (CPU, ("CUDAExecutionProvider",)) for t in (0, 1, 2)}
    assert len(paths) == 6


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: text.replace("1.25", "NaN"),
        lambda text: text.replace("1.25", '"fast"'),
        lambda text: text.replace('"onnxprune_times": 1', '"onnxprune_times": 99'),
        lambda text: json.dumps({**json.loads(text), "where": "another machine"}),
        lambda text: json.dumps([text]),
    ],
)
def test_a_damaged_or_foreign_file_counts_as_empty(
    spoil: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    table = open_timetable(CPU, 1)
    table.get("a", lambda: 1.25)
    table.save()
    assert table.path is not None
    table.path.write_text(spoil(table.path.read_text()))
    again = open_timetable(CPU, 1)
    assert again.times == {}
    again.get("a", lambda: 2.0)
    again.save()
    assert open_timetable(CPU, 1).times == {"a": 2.0}


def test_without_a_place_to_write_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "file" / "below"))
    table = open_timetable(CPU, 1)
    assert table.get("a", lambda: 1.0) == 1.0
    table.save()
    assert (tmp_path / "file").read_text() == "in the way"


def test_the_digest_tells_every_time_that_was_used_and_no_other() -> None:
    def digest(**times: float) -> str:
        table = Timetable("here", None, dict(times))
        table.known("a")
        return table.digest

    assert digest(a=1.0) == digest(a=1.0, b=5.0)
    assert digest(a=1.0) != digest(a=1.1)
    assert digest() != digest(a=1.0)
