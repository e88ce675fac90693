"""How the rectangles of one component are read: which of their axes is free."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.testing import check_model

HEADS, DIMS, WIDTH = 3, 4, 5


def linear_attention(order: tuple[str, ...]) -> onnx.ModelProto:
    """Returns attention without a Softmax, keys times values first, its three parts projected at once in this order."""
    sizes = {"parts": 3, "heads": HEADS, "dims": DIMS}
    perm = [2 + order.index("parts"), 0, 2 + order.index("heads"), 1, 2 + order.index("dims")]
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 9, opset_import: ["" : 18]>
        attention (float[N, L, {WIDTH}] x) => (float[N, L, 2] y)
        <float[{WIDTH}, {3 * HEADS * DIMS}] w, float[{HEADS * DIMS}, 2] o, int64[3] each = {{1, 1, 1}},
         int64[5] split = {{0, 0, {", ".join(str(sizes[axis]) for axis in order)}}}, int64[3] merge = {{0, 0, -1}},
         int64[1] first = {{0}}>
        {{ wide = MatMul (x, w)
           apart = Reshape (wide, split)
           turned = Transpose <perm = {perm}> (apart)
           q1, k1, v1 = Split <axis = 0> (turned, each)
           q = Squeeze (q1, first)
           k2 = Squeeze (k1, first)
           v = Squeeze (v1, first)
           k = Transpose <perm = [0, 1, 3, 2]> (k2)
           kv = MatMul (k, v)
           qkv = MatMul (q, kv)
           back = Transpose <perm = [0, 2, 1, 3]> (qkv)
           flat = Reshape (back, merge)
           y = MatMul (flat, o)
        }}
        """
    )
    rng = np.random.default_rng(0)
    for name, shape in {"w": (WIDTH, 3 * HEADS * DIMS), "o": (HEADS * DIMS, 2)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return model


@pytest.mark.parametrize("order", [("parts", "heads", "dims"), ("heads", "parts", "dims"), ("parts", "dims", "heads")])
def test_heads_go_where_dims_of_keys_and_values_stand_in_one_axis(order: tuple[str, ...]) -> None:
    outcome = check_model(linear_attention(order))
    assert outcome.wrong == ()
    assert outcome.units == (HEADS,), outcome.frozen
    assert outcome.cuts
