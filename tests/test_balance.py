"""Sets of channels that leave the groups of grouped convolutions equally long."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.engine.balance import balanced
from onnxprune.engine.labels import UnionFind
from onnxprune.testing import check_model


def sets(*arrays: np.ndarray, frozen: tuple[int, ...] = ()) -> tuple[list[tuple[int, ...]], list[int]]:
    """Returns the sets that labels 0, 1, ... are tied into, and the labels that no set has."""
    count = int(max(a.max() for a in arrays)) + 1
    classes, free = UnionFind(), np.ones(count, bool)
    labels = classes.grow(count)
    free[list(frozen)] = False
    left = balanced(classes, free, arrays)
    roots = classes.find(labels)
    found = [tuple(np.flatnonzero(roots == r).tolist()) for r in np.unique(roots[~left])]
    return found, np.flatnonzero(left).tolist()


def test_one_label_of_every_row() -> None:
    found, left = sets(np.arange(6).reshape(2, 3))
    assert found == [(0, 3), (1, 4), (2, 5)]
    assert left == []


def test_two_arrays_that_share_labels_are_balanced_together() -> None:
    one = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    other = np.array([[0, 1, 2, 4], [3, 5, 6, 7]])
    found, left = sets(one, other)
    assert left == []
    assert sorted(label for s in found for label in s) == list(range(8))
    for s in found:
        for array in (one, other):
            rows = np.isin(array, s).sum(1)
            assert (rows == rows[0]).all()
    assert len(found) == 4  # (0, 5), (1, 6), (2, 7) and the two that changed rows


def test_labels_that_stay_leave_others_without_a_partner() -> None:
    found, left = sets(np.arange(6).reshape(2, 3), frozen=(0, 1))
    assert found == [(2, 3)]
    assert left == [0, 1, 4, 5]


def test_rows_of_unequal_weight_need_several_of_one_kind() -> None:
    classes = UnionFind()
    labels = classes.grow(8)
    classes.union(labels[0], labels[1])  # two labels of the first row go together
    classes.union(labels[2], labels[3])
    left = balanced(classes, np.ones(8, bool), [labels.reshape(2, 4)])
    roots = classes.find(labels)
    assert not left.any()
    assert sorted(np.unique(roots, return_counts=True)[1].tolist()) == [4, 4]


def shuffle_net(groups: int, width: int) -> onnx.ModelProto:
    """Returns 1x1 convolutions in groups around a channel shuffle and a depthwise convolution."""
    rng = np.random.default_rng(0)
    shapes = {"a": (width, 6, 1, 1), "b": (width, 1, 3, 3), "c": (width, width // groups, 1, 1), "d": (5, width, 1, 1)}
    weights = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in shapes.items()]
    sizes = {"split": [-1, groups, width // groups, 4, 4], "merged": [-1, width, 4, 4]}
    constants = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in sizes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"]),
        helper.make_node("Reshape", ["p", "split"], ["q"]),
        helper.make_node("Transpose", ["q"], ["r"], perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["r", "merged"], ["s"]),
        helper.make_node("Conv", ["s", "b"], ["t"], group=width, pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["t", "c"], ["u"], group=groups),
        helper.make_node("Relu", ["u"], ["v"]),
        helper.make_node("Conv", ["v", "d"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 6, 4, 4])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 5, 4, 4])
    graph = helper.make_graph(nodes, "shuffle", [x], [y], [*weights, *constants])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize(("groups", "width", "units"), [(3, 24, (3, 8)), (2, 20, (5, 10))])
def test_a_shuffle_before_a_grouped_convolution_is_cut_in_balanced_sets(
    groups: int, width: int, units: tuple[int, ...]
) -> None:
    outcome = check_model(shuffle_net(groups, width), halves=4)
    assert outcome.wrong == ()
    assert outcome.units == units, outcome.frozen
    assert outcome.cuts


def test_rows_of_one_label_keep_it_and_the_search_ends() -> None:
    found, left = sets(np.arange(2048).reshape(2048, 1), np.arange(2048).reshape(32, 64).T.reshape(-1, 32))
    assert found == [] and left == list(range(2048))
