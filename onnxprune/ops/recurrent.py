"""Recurrent cells: hidden units go with their rows in all gates.

Spec: https://onnx.ai/onnx/operators/onnx__LSTM.html, https://onnx.ai/onnx/operators/onnx__GRU.html
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from onnxprune.engine.labels import Array
from onnxprune.engine.tensors import Tensor
from onnxprune.ops.linear import linear_cells
from onnxprune.ops.quantized import in_range, pair_up
from onnxprune.ops.registry import Need, Node, Quantized, Shape, Site, Sized, Unsupported, operator

cells = operator(
    "LSTM", "GRU", "RNN", doc="hidden units with their rows in every gate, the recurrent columns and the states"
)
cells.linear(linear_cells)
cells.state_slots = frozenset({5, 6})
dynamic_cell = operator(
    "DynamicQuantizeLSTM",
    domain="com.microsoft",
    quantized={1: Quantized(8, 9), 2: Quantized(10, 11)},
    doc="as LSTM; what enters and the states are quantized by their own range, so they must be zero where they are cut",
)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
PEEPHOLES = 3
SILENT = {"Tanh", "Relu", "LeakyRelu", "ScaledTanh", "ThresholdedRelu", "Softsign", "Elu"}  # f(0) = 0
STATE_ACTIVATIONS = {"LSTM": (1, 2), "GRU": (1,), "RNN": (0,)}


@cells.coupling
def couple_cells(op: Site) -> list[Tensor]:
    """Hidden unit h of a direction labels its rows of W, R and B in every gate, and R's columns."""
    gates, (directions, _, hidden) = GATES[op.op], op.shape(2)
    if hidden == 1:
        raise Unsupported("a single hidden unit")
    unit = _units(op, directions, hidden, gates)
    if directions > 1:
        both = op.labels.fresh(directions, 1)
        op.derive(both, unit)
        op.freeze(both, "a recurrent cell keeps both directions")
    rows = np.tile(unit, (1, gates))
    time, batch = (1, 0) if op.attr("layout", 0) else (0, 1)
    x = op.tie(op[0], time, batch, why="a recurrent cell runs over it")
    _meet(op, 1, rows[:, :, None], *x.arrays)
    _meet(op, 2, rows[:, :, None], unit[:, None, :])
    silent = _stays_zero(op)
    for slot in (5, 6):
        state = op.get(slot)
        if state is None:
            continue
        own = Tensor(state.shape, (unit[None] if op.attr("layout", 0) else unit[:, None],))
        if slot in op.pickable:  # zeros that cells of other widths read, too
            op.picked[slot] = own
            continue
        silent &= 2 in state.zero or not state.labelled(2)
        op.unify(state, own)
    return _outputs(op, unit, silent)


def _units(op: Site, directions: int, hidden: int, gates: int) -> Array:
    """Returns new labels of hidden units (directions, hidden), which biases and peepholes have too.

    Where weights are put together in the graph, rows and columns of both directions would cross: they go together.
    """
    unit = op.labels.fresh(directions, hidden)
    if not op.direct.issuperset({1, 2}):
        op.labels.union(unit, unit[:1])
    op.remember(unit)
    op.produce(unit)
    op.contracted += [unit, *op[0].arrays]
    for slot, times in ((3, 2 * gates), (7, PEEPHOLES)):
        if op.get(slot) is not None:
            _meet(op, slot, np.tile(unit, (1, times)))
    return unit


def _meet(op: Site, slot: int, *arrays: Array) -> None:
    """Ties parameter `slot` to labels, each array over the axes that it is longer than 1 on."""
    if slot in op.direct:
        op.claims[slot] = arrays
        return
    t = op[slot]
    for a in arrays:
        t = op.unify(t, Tensor(a.shape, (a,)))


def _stays_zero(op: Site) -> bool:
    """Returns whether a unit without weights stays at zero: its activations have f(0) = 0."""
    given = op.attr("activations")
    if given is None:
        return True
    per = len(given) // op.shape(2)[0]
    names = [a if isinstance(a, str) else a.decode() for a in given]
    of_states = STATE_ACTIVATIONS.get(op.op, STATE_ACTIVATIONS["LSTM"])
    return all(names[d * per + k] in SILENT for d in range(op.shape(2)[0]) for k in of_states)


def _outputs(op: Site, unit: Array, silent: bool) -> list[Tensor]:
    """Returns Y (T, D, B, H) and the last states (D, B, H), or with layout 1 (B, T, D, H) and (B, D, H)."""
    layout = op.attr("layout", 0)
    outs = []
    for k, v in enumerate(op.node.outputs):
        if not v.name:
            outs.append(Tensor(()))
            continue
        shape = op.out_shape(k)
        if k == 0:
            array = unit[None, None] if layout else unit[None, :, None, :]
        else:
            array = unit[None] if layout else unit[:, None, :]
        last = len(shape) - 1
        outs.append(op.tidy(Tensor(shape, (array,), frozenset({last}) if silent else frozenset())))
    return outs


@dynamic_cell.coupling
def couple_dynamic_cell(op: Site) -> list[Tensor]:
    """Rows of W and R are columns here; a scale and a zero point for each of them go with them."""
    hidden = op.shape(2)[1]
    if hidden == 1 or not _stays_zero(op):
        raise Unsupported("its states are quantized by a range that cut units would count for")
    unit = _units(op, 1, hidden, GATES["LSTM"])  # pairs of neighbours are those of both directions at once
    rows = np.tile(unit, (1, GATES["LSTM"]))
    x = op.tie(in_range(op, op[0]), 0, 1, why="a recurrent cell runs over it")
    features = [a.ravel() for a in x.arrays if a.shape[2] > 1]
    _meet(op, 1, rows[:, None, :], *(a[None, :, None] for a in features))
    _meet(op, 2, rows[:, None, :], unit[:, :, None])
    for slot, labels in (*((1, a) for a in features), (2, unit.ravel())):
        pair_up(op, slot, labels)
    for slot in (8, 9, 10, 11):
        numbers = op.get(slot)
        if numbers is not None and len(numbers.shape) > 1 and numbers.shape[1] > 1:
            _meet(op, slot, rows)
    for slot in (5, 6):
        if op.get(slot) is not None:
            state = in_range(op, op[slot])
            op.unify(state, Tensor(state.shape, (unit[:, None],)))
    return _outputs(op, unit, True)


@dynamic_cell.sizes
@cells.sizes
def size_cells(op: Sized) -> Iterable[Need]:
    """`hidden_size` is the number of living units."""
    hidden = min(op.new(2)[1:])  # the other axis holds it once for each gate
    if op.attr("hidden_size") is None:
        raise Unsupported("no hidden_size is given")
    if op.attr("hidden_size") != hidden:
        yield Need("hidden_size", hidden)


@dynamic_cell.macs
@cells.macs
def macs_cells(op: Node, x: Sequence[Shape | None], y: Sequence[Shape]) -> int:
    """Every step and sample takes one MAC per weight of W and R."""
    assert x[0] is not None and x[1] is not None and x[2] is not None
    return int(x[0][0] * x[0][1] * (np.prod(x[1]) + np.prod(x[2])))
