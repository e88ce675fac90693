"""What is fed to a model: sizes from its declarations, integers from the tables that they index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph import inputs

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(
    nodes: Sequence[onnx.NodeProto],
    declared: dict[str, tuple[int, Sequence[int | str | None] | None]],
    constants: dict[str, Any] | None = None,
) -> ir.Model:
    """Return a model whose output is the last node's."""
    graph = helper.make_graph(
        nodes or [helper.make_node("Identity", [next(iter(declared))], ["out"])],
        "g",
        [helper.make_tensor_value_info(n, t, shape) for n, (t, shape) in declared.items()],
        [onnx.ValueInfoProto(name=nodes[-1].output[0] if nodes else "out")],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


def specs(
    declared: dict[str, tuple[int, Sequence[int | str | None] | None]], *nodes: onnx.NodeProto, **constants: Any
) -> tuple[inputs.InputSpec, ...]:
    return inputs.specs(model(nodes, declared, constants))


# ---------------------------------------------------------------- declarations
def test_specs_hold_name_type_and_open_dimensions() -> None:
    (spec,) = specs({"x": (TensorProto.FLOAT16, ["batch", 3, None])})
    assert spec == inputs.InputSpec("x", np.dtype(np.float16), ("batch", 3, None))


def test_an_initializer_listed_as_input_is_not_fed() -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    found = specs({"x": (FLOAT, ["n", 4]), "w": (FLOAT, [4])}, node, w=np.ones(4, np.float32))
    assert [s.name for s in found] == ["x"]


def test_a_sequence_input_is_refused_by_name() -> None:
    proto = ir.to_proto(model([], {"x": (FLOAT, [1])}))
    proto.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("boxes", FLOAT, None))
    with pytest.raises(ModelError, match=r"'boxes'.*Sequence"):
        inputs.specs(ir.from_proto(proto))


def test_an_input_without_a_shape_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="'x' declares no shape"):
        specs({"x": (FLOAT, None)})


# ---------------------------------------------------------------- sizes
def test_fixed_sizes_stay_and_there_is_one_set_of_them() -> None:
    found = specs({"x": (FLOAT, [1, 3, 5, 5])})
    assert inputs.count(found) == 1
    assert inputs.sizes(found) == {"x": (1, 3, 5, 5)}


def test_one_name_has_one_size_everywhere() -> None:
    found = specs({"ids": (INT64, ["n", "s"]), "mask": (FLOAT, ["n", 1, "s", "s"])})
    for k in range(inputs.count(found)):
        n, s = inputs.sizes(found, k)["ids"]
        assert inputs.sizes(found, k)["mask"] == (n, 1, s, s)


def test_names_that_stand_first_are_one_batch() -> None:
    found = specs({"ids": (INT64, ["s97", 16]), "mask": (INT64, ["s52", 16])})
    assert inputs.sizes(found) == {"ids": (2, 16), "mask": (2, 16)}


def test_wording_beats_place_in_time_first_models() -> None:
    found = specs({"x": (FLOAT, ["time", "batch", 8])})
    assert inputs.at(found, batch=3, length=11) == {"x": (11, 3, 8)}


def test_states_of_layers_have_the_batch_behind_the_layers() -> None:
    state = (FLOAT, [2, None, 128])
    assert inputs.at(specs({"x": (FLOAT, [None, None]), "state": state}), batch=3, length=11) == {
        "x": (3, 11),
        "state": (2, 3, 128),
    }
    assert inputs.at(specs({"speech": (FLOAT, [1, None, 80])}), batch=3, length=11) == {"speech": (1, 11, 80)}


def test_the_first_sets_have_a_batch_of_two() -> None:
    found = specs({"x": (FLOAT, [None, 4])})
    assert inputs.sizes(found, 0) == {"x": (2, 4)}
    assert {inputs.sizes(found, k)["x"][0] for k in range(inputs.count(found))} >= {1, 2, 8}


def test_open_axes_of_pictures_are_large_and_those_of_sequences_small() -> None:
    assert inputs.sizes(specs({"x": (FLOAT, ["n", 3, "h", "w"])})) == {"x": (2, 3, 64, 64)}
    assert inputs.sizes(specs({"x": (FLOAT, [None, None, None, 3])})) == {"x": (2, 64, 64, 3)}
    assert inputs.sizes(specs({"x": (FLOAT, ["n", "s", 3])})) == {"x": (2, 16, 3)}


def test_a_mask_beside_tokens_is_no_picture() -> None:
    found = specs({"ids": (INT64, [None, None]), "mask": (FLOAT, [None, 1, None, None])})
    assert inputs.sizes(found) == {"ids": (2, 16), "mask": (2, 1, 16, 16)}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("past + 1", 8),
        ("past + s", 14),
        ("2*s - 1", 13),
        ("(s - 1)//2 + 1", 4),
        ("floor(s/2)", 3),
        ("Max(4, s)", 7),
        ("s - 20", 1),
        ("seq-len", 7),
        ("__import__('os').getcwd()", 7),
        ("s + " * 100 + "s", 7),
        ("DynamicDimension.0", 7),
    ],
)
def test_names_that_are_formulas_are_computed_and_never_run(name: str, size: int) -> None:
    found = specs({"ids": (INT64, ["batch", "s"]), "kv": (FLOAT, ["batch", "past", 4]), "x": (FLOAT, ["batch", name])})
    assert inputs.at(found, batch=2, length=7)["x"] == (2, size)


def test_a_total_length_is_past_plus_new() -> None:
    found = specs(
        {
            "input_ids": (INT64, ["batch_size", "sequence_length"]),
            "attention_mask": (INT64, ["batch_size", "total_sequence_length"]),
            "past.0.key": (FLOAT, ["batch_size", 4, "past_sequence_length", 8]),
        }
    )
    assert inputs.at(found, 2, 9) == {"input_ids": (2, 9), "attention_mask": (2, 18), "past.0.key": (2, 4, 9, 8)}


# ---------------------------------------------------------------- data
def test_same_seed_same_data_and_other_seed_other_data() -> None:
    found = specs({"x": (FLOAT, ["n", 4]), "b": (TensorProto.BOOL, ["n", 4])})
    shapes = inputs.at(found, 8, 1)
    a, b, c = (inputs.sample(found, seed, shapes) for seed in (1, 1, 2))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(a["x"], c["x"])
    assert {k: v.dtype for k, v in a.items()} == {"x": np.dtype(np.float32), "b": np.dtype(bool)}


@pytest.mark.parametrize("elem", [FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_floats_are_normal_in_every_precision(elem: int) -> None:
    found = specs({"x": (elem, [2000])})
    drawn = inputs.sample(found, 0, {"x": (2000,)})["x"]
    assert drawn.dtype == helper.tensor_dtype_to_np_dtype(elem)
    assert abs(drawn.astype(np.float64).mean()) < 0.1
    assert 0.9 < drawn.astype(np.float64).std() < 1.1


def ids_through(*nodes: onnx.NodeProto, **constants: Any) -> int | None:
    """Return the bound of integers that reach a table of 50 entries as `i`."""
    gather = helper.make_node("Gather", ["table", "i"], ["y"])
    return specs({"x": (INT64, ["n", "s"])}, *nodes, gather, table=np.zeros((50, 4), np.float32), **constants)[0].bound


def test_ids_are_bounded_by_the_table_they_index() -> None:
    assert ids_through(helper.make_node("Identity", ["x"], ["i"])) == 50


def test_ids_are_followed_through_casts_and_views() -> None:
    chain = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.INT32),
        helper.make_node("Unsqueeze", ["a", "axes"], ["b"]),
        helper.make_node("Transpose", ["b"], ["i"]),
    ]
    assert ids_through(*chain, axes=np.array([0])) == 50


def test_offsets_and_factors_before_a_table_lower_the_bound() -> None:
    assert ids_through(helper.make_node("Add", ["two", "x"], ["i"]), two=np.array(2)) == 48
    assert ids_through(helper.make_node("Add", ["x", "starts"], ["i"]), starts=np.array([0, 30])) == 20
    assert ids_through(helper.make_node("Mul", ["x", "three"], ["i"]), three=np.array(3)) == 16


def test_the_smallest_of_several_tables_counts() -> None:
    nodes = [helper.make_node("Gather", ["small", "x"], ["z"]), helper.make_node("Identity", ["x"], ["i"])]
    assert ids_through(*nodes, small=np.zeros((7, 4), np.float32)) == 7


def test_a_quantized_table_bounds_too() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["table"]),
        helper.make_node("Gather", ["table", "x"], ["y"], axis=1),
    ]
    (spec,) = specs({"x": (INT64, ["s"])}, *nodes, q=np.zeros((4, 9), np.int8), scale=np.float32(1))
    assert spec.bound == 9


def test_floats_that_are_cast_to_ids_are_whole_numbers() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["i"], to=INT64), helper.make_node("Gather", ["table", "i"], ["y"])]
    found = specs({"x": (FLOAT, [200])}, *nodes, table=np.zeros((5, 4), np.float32))
    drawn = inputs.sample(found, 0, {"x": (200,)})["x"]
    assert drawn.dtype == np.float32
    assert set(drawn) == {0, 1, 2, 3, 4}


def test_ids_fill_the_whole_range_below_the_bound() -> None:
    found = specs({"x": (INT64, [500])}, helper.make_node("Gather", ["t", "x"], ["y"]), t=np.zeros((6, 2), np.float32))
    assert set(inputs.sample(found, 3, {"x": (500,)})["x"]) == set(range(6))


def test_masks_are_zeros_and_ones_and_no_row_is_empty() -> None:
    found = specs({"mask": (INT64, ["n", "s"])})
    drawn = inputs.sample(found, 0, {"mask": (50, 8)})["mask"]
    assert set(np.unique(drawn)) == {0, 1}
    assert drawn.any(-1).all()


def test_fills_replace_masks_first_and_then_ids() -> None:
    gather = helper.make_node("Gather", ["t", "ids"], ["y"])
    declared: dict[str, Any] = {"mask": (INT64, [4, 8]), "ids": (INT64, [4, 8])}
    found = specs(declared, gather, t=np.zeros((30, 2), np.float32))
    shapes = inputs.sizes(found)
    full, ones, zeros = (inputs.sample(found, 0, shapes, fill) for fill in ("full", "ones", "zeros"))
    assert (full["mask"] == 1).all()
    assert len(np.unique(full["ids"])) > 5
    assert all((v == 1).all() for v in ones.values())
    assert all((v == 0).all() for v in zeros.values())


def test_sequence_lengths_are_between_one_and_the_length() -> None:
    hidden = 4
    node = helper.make_node("GRU", ["x", "w", "r", "", "lengths"], ["y"], hidden_size=hidden)
    found = specs(
        {"x": (FLOAT, ["time", "batch", 3]), "lengths": (TensorProto.INT32, ["batch"])},
        node,
        w=np.zeros((1, 3 * hidden, 3), np.float32),
        r=np.zeros((1, 3 * hidden, hidden), np.float32),
    )
    drawn = inputs.sample(found, 0, inputs.at(found, batch=200, length=6))["lengths"]
    assert set(drawn) == {1, 2, 3, 4, 5, 6}


def test_an_input_larger_than_any_real_one_is_refused_before_it_is_made() -> None:
    found = specs({"x": (FLOAT, [1 << 31])})
    with pytest.raises(ModelError, match=r"'x'.*2147483648"):
        inputs.sample(found, 0, inputs.sizes(found))
