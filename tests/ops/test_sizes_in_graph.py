"""Operators that compute sizes, and those that make tensors of computed sizes, alone and inside small graphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rows import prove, table

from onnxprune.testing import Case, Consumer, Data, check_model

X = Data((0, 6, 1))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


ROWS = [
    Case("Expand", (X, ints(1, 6, 5)), opset=9, units=(6,), why="the entry of the channels follows"),
    Case("Expand", (X, ints(1, 1, 5)), opset=13, units=(6,)),
    Case("Expand", (X, ints(5)), units=(6,)),
    Case("Expand", (Data((0, 1, 4), (2,)), ints(1, 3, 1)), units=(4,)),
    Case("Expand", (Data((0, 6), (1,), ("Sigmoid",)), ints(1, 6)), units=(6,), summed=()),
    Case("ConstantOfShape", (ints(5, 4),), units=(4, 5), summed=(5,), why="a weight of zeros"),
    Case("Shape", (Data((4, 6), ()),), units=(2,), summed=(), why="two numbers that become a weight"),
    Case("Size", (Data((4, 6), ()),), units=(), why="a number"),
    Case(
        "Range",
        (*(np.array(v, np.float32) for v in (1, 5, 1)),),
        units=(4,),
        summed=(),
        why="numbers that become a weight",
    ),
    Case(
        "Range",
        (*(np.array(v, np.float32) for v in (1, 5, 1)),),
        opset=17,
        domain="com.microsoft",
        units=(4,),
        summed=(),
        why="numbers that become a weight",
    ),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)


def graph(body: str, shape: str = "N, 3", opset: int = 17, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """Returns a model whose nodes are `body`, from x to y, with random weights of these shapes."""
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g (float[{shape}] x) => (float[N, M] y) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, size in weights.items():
        values = rng.normal(size=size)
        tensor = numpy_helper.from_array((values + np.sign(values) * 0.3).astype(np.float32), name)
        model.graph.initializer.append(tensor)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", None]))
    return model


CONSTANTS = """
    zero = Constant <value = int64[1] {0}> ()
    one = Constant <value = int64[1] {1}> ()
    two = Constant <value = int64[1] {2}> ()
"""
HIDDEN = CONSTANTS + " h = MatMul (x, w)"
GRAPHS = {
    "a target computed from sizes": (
        graph(
            HIDDEN
            + """
            s = Shape (h)
            n = Gather (s, zero)
            c = Gather (s, one)
            d = Div (c, two)
            t = Concat <axis = 0> (n, two, d)
            r = Reshape (h, t)
            q = ReduceSumSquare <axes = [1], keepdims = 0> (r)
            y = MatMul (q, v)
            """,
            w=(3, 12),
            v=(6, 2),
        ),
        (6,),
    ),
    "an attention scale read off the size of a head": (
        graph(
            HIDDEN
            + """
            s = Shape (h)
            c = Gather (s, one)
            f = Cast <to = 1> (c)
            r = Sqrt (f)
            d = Div (h, r)
            y = MatMul (d, v)
            """,
            w=(3, 8),
            v=(8, 2),
        ),
        (8,),
    ),
    "an attention scale read off queries that are learned, for as many samples as there are": (
        graph(
            CONSTANTS
            + """
            s = Shape (x)
            n = Gather (s, zero)
            sizes = Concat <axis = 0> (n, one, one)
            queries = Expand (learned, sizes)
            q = MatMul (queries, w)
            t = Shape (q)
            c = Gather (t, two)
            f = Cast <to = 1> (c)
            r = Sqrt (f)
            d = Div (q, r)
            k = MatMul (x, v)
            turned = Transpose <perm = [0, 2, 1]> (k)
            scores = MatMul (d, turned)
            y = Flatten (scores)
            """,
            shape="N, 3, 5",
            learned=(1, 4, 6),
            w=(6, 8),
            v=(5, 8),
        ),
        (8,),
    ),
    "zeros of constant size that are added": (
        graph(
            HIDDEN
            + """
            t = Constant <value = int64[2] {1, 8}> ()
            z = ConstantOfShape (t)
            a = Add (h, z)
            q = ReduceSum <keepdims = 1> (a, one)
            y = Identity (q)
            """,
            w=(3, 8),
        ),
        (8,),
    ),
    "ones of the size of an activation": (
        graph(
            HIDDEN
            + """
            s = Shape (h)
            z = ConstantOfShape <value = float[1] {1.0}> (s)
            a = Add (h, z)
            y = MatMul (a, v)
            """,
            w=(3, 8),
            v=(8, 2),
        ),
        (8,),
    ),
    "a scalar expanded to the size of an activation": (
        graph(
            HIDDEN
            + """
            s = Shape (h)
            o = Constant <value = float {0.0}> ()
            z = Expand (o, s)
            a = Max (h, z)
            y = MatMul (a, v)
            """,
            w=(3, 8),
            v=(8, 2),
        ),
        (8,),
    ),
    "sizes of a Split that two activations share": (
        graph(
            HIDDEN
            + """
            t = Constant <value = int64[2] {4, 4}> ()
            g = MatMul (x, u)
            h1, h2 = Split <axis = 1> (h, t)
            g1, g2 = Split <axis = 1> (g, t)
            a = Mul (h1, h2)
            b = Add (g1, g2)
            c = Concat <axis = 1> (a, b)
            y = MatMul (c, v)
            """,
            w=(3, 8),
            u=(3, 8),
            v=(8, 2),
        ),
        (4, 4),
    ),
    "a weight that is used turned round too": (
        graph(
            HIDDEN
            + """
            r = Relu (h)
            t = Transpose <perm = [1, 0]> (w)
            y = MatMul (r, t)
            """,
            w=(3, 8),
        ),
        (8,),
    ),
    "a bias of zeros that two layers share": (
        graph(
            HIDDEN
            + """
            o = Constant <value = float[8] {0, 0, 0, 0, 0, 0, 0, 0}> ()
            a = Add (h, o)
            r = Relu (a)
            g = MatMul (r, u)
            b = Add (g, o)
            q = Relu (b)
            y = MatMul (q, v)
            """,
            w=(3, 8),
            u=(8, 8),
            v=(8, 2),
        ),
        (8, 8),
    ),
    "a weight that two grouped convolutions share": (
        graph(
            """
            h = Conv (x, w)
            a = Conv <group = 2> (h, u)
            r = Relu (a)
            b = Conv <group = 2> (r, u)
            m = GlobalAveragePool (b)
            f = Flatten (m)
            y = MatMul (f, v)
            """,
            "N, 3, 4",
            w=(6, 3, 1),
            u=(6, 3, 1),
            v=(6, 2),
        ),
        (2,),
    ),
    "channels that are shuffled between grouped convolutions": (
        graph(
            """
            t = Constant <value = int64[4] {0, 2, 4, 4}> ()
            s = Constant <value = int64[3] {0, 8, 4}> ()
            h = Conv (x, w)
            a = Conv <group = 2> (h, u)
            b = Reshape (a, t)
            c = Transpose <perm = [0, 2, 1, 3]> (b)
            d = Reshape (c, s)
            e = Conv <group = 2> (d, o)
            m = GlobalAveragePool (e)
            f = Flatten (m)
            y = MatMul (f, v)
            """,
            "N, 3, 4",
            w=(8, 3, 1),
            u=(8, 4, 1),
            o=(8, 4, 1),
            v=(8, 2),
        ),
        None,
    ),
}


@pytest.mark.parametrize(("model", "units"), GRAPHS.values(), ids=GRAPHS)
def test_a_cut_of_a_graph_is_exact(model: onnx.ModelProto, units: tuple[int, ...] | None) -> None:
    outcome = check_model(model)
    assert outcome.wrong == ()
    assert outcome.stuck == ()
    assert outcome.cuts
    if units is not None:
        assert outcome.units == units


def test_a_number_that_varies_with_the_batch_and_the_cut_is_not_followed() -> None:
    body = HIDDEN + " s = Size (h) f = Cast <to = 1> (s) d = Div (h, f) y = MatMul (d, v)"
    outcome = check_model(graph(body, w=(3, 8), v=(8, 2)))
    assert outcome.wrong == ()
    assert outcome.cuts == 0
    assert "varies at run time" in outcome.stuck[0]
