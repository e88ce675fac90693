"""Subgraphs and local functions: what stands in their bodies is cut, and they stay where they are."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

import onnxprune
from onnxprune import prune
from onnxprune.graph.flat import look_into
from onnxprune.graph.trace import trace
from onnxprune.testing import check_model


def model(text: str, *functions: str, opset: int = 18, seed: int = 0) -> onnx.ModelProto:
    """Returns a model whose constants `NAME: shape` behind `weights` are random; `text` is onnx's own language."""
    rng = np.random.default_rng([seed, crc32(text.encode())])
    head, _, weights = text.partition("weights")
    local = ', "local": 1' if functions else ""
    made = parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}{local}]>\n{head}' + "\n".join(functions))
    for line in weights.split():
        name, _, shape = line.partition(":")
        size = [int(n) for n in shape.split(",")]
        content = (rng.normal(size=size) / size[0] ** 0.5).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(content, name))
    onnx.checker.check_model(made)
    return made


def proved(made: onnx.ModelProto, *units: int) -> None:
    """Cuts what can be cut around bodies and compares with the masked original at two batch sizes."""
    outcome = check_model(made)
    assert outcome.wrong == ()
    assert outcome.units == tuple(sorted(units)), outcome.frozen
    assert outcome.cuts or not units


ON_DATA = "s = ReduceMax<keepdims=0>(x) zero = Constant<value_float=0.7>() flag = Greater(s, zero)"
BRANCHES = """
    net (float[N,4] x) => (float[N,3] y) {
        a = MatMul(x, w1)
        b = Relu(a)
        CONDITION
        c = If (flag) <
            then_branch = one () => (t3) { t1 = MatMul(b, w2) t2 = Tanh(t1) t3 = MatMul(t2, w3) },
            else_branch = two () => (e1) { e1 = MatMul(b, w4) }
        >
        d = Relu(c)
        y = MatMul(d, w5)
    }
    weights w1:4,6 w2:6,8 w3:8,5 w4:6,5 w5:5,3
"""


def test_both_branches_of_an_if_on_data() -> None:
    proved(model(BRANCHES.replace("CONDITION", ON_DATA)), 5, 6, 8)


def test_both_branches_of_an_if_on_the_batch_size() -> None:
    condition = "s = Shape<start=0, end=1>(x) two = Constant<value_ints=[2]>() f = Greater(s, two) flag = Squeeze(f)"
    proved(model(BRANCHES.replace("CONDITION", condition)), 5, 6, 8)


def test_an_if_in_an_if() -> None:
    text = """
        net (float[N,4] x) => (float[N,3] y) {
            s = ReduceMax<keepdims=0>(x)
            zero = Constant<value_float=0.7>()
            flag = Greater(s, zero)
            b = MatMul(x, w1)
            c = If (flag) <
                then_branch = one () => (t2) {
                    big = Constant<value_float=1.5>()
                    more = Greater(s, big)
                    t1 = If (more) <
                        then_branch = three () => (u2) { u1 = MatMul(b, w2) u2 = Relu(u1) },
                        else_branch = four () => (v1) { v1 = MatMul(b, w3) }
                    >
                    t2 = MatMul(t1, w4)
                },
                else_branch = two () => (e1) { e1 = Identity(b) }
            >
            y = MatMul(c, w5)
        }
        weights w1:4,6 w2:6,8 w3:6,8 w4:8,6 w5:6,3
    """
    proved(model(text), 6, 8)


def test_both_branches_may_have_a_node_of_one_name() -> None:
    made = model(BRANCHES.replace("CONDITION", ON_DATA))
    branches = [a.g for n in made.graph.node if n.op_type == "If" for a in n.attribute]
    for graph in (made.graph, *branches):
        next(n for n in graph.node if n.op_type == "MatMul").name = "product"
    proved(made, 5, 6, 8)


def test_weights_in_a_body_that_stays_closed_are_told_of() -> None:
    text = """
        net (float[N,4] x) => (float[N,M] y) {
            s = ReduceMax<keepdims=0>(x)
            zero = Constant<value_float=0.7>()
            flag = Greater(s, zero)
            y = If (flag) <
                then_branch = one () => (t3) { t1 = MatMul(x, w1) t2 = Relu(t1) t3 = MatMul(t2, w2) },
                else_branch = two () => (e1) { k = Constant<value_ints=[1]>() e1 = ReduceMax<keepdims=1>(x, k) }
            >
        }
        weights
    """
    made = model(text.replace("net (float[N,4] x)", "net (float[N,4] x, float[4,6] w1, float[6,3] w2)"))
    branch = next(a.g for n in made.graph.node for a in n.attribute if a.name == "then_branch")
    for value in list(made.graph.input)[1:]:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        branch.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), value.name))
        made.graph.input.remove(value)
    assert any("the weights inside stay" in note for note in onnxprune.inspect(made).notes)
    for target in ({"macs": 0.5}, {"params": 0.5}):
        with pytest.raises(onnxprune.TargetError, match="the weights inside stay"):
            onnxprune.prune(made, target=target, criterion="l1", compensate="none")


def test_branches_of_different_shapes_stay_closed() -> None:
    text = """
        net (float[N,4] x) => (float[N,3] y) {
            s = ReduceMax<keepdims=0>(x)
            zero = Constant<value_float=0.7>()
            flag = Greater(s, zero)
            b = MatMul(x, w1)
            c = If (flag) <
                then_branch = one () => (t1) { t1 = MatMul(b, w2) },
                else_branch = two () => (e1) { k = Constant<value_ints=[1]>() e1 = ReduceMax<keepdims=1>(b, k) }
            >
            d = Add(c, w6)
            e = MatMul(d, w3)
            f = Relu(e)
            y = MatMul(f, w4)
        }
        weights w1:4,6 w2:6,5 w6:5 w3:5,7 w4:7,3
    """
    proved(model(text), 7)


def test_sizes_in_a_branch_follow() -> None:
    text = """
        net (float[N,4] x) => (float[N,3] y) {
            s = ReduceMax<keepdims=0>(x)
            zero = Constant<value_float=0.7>()
            flag = Greater(s, zero)
            b = MatMul(x, w1)
            c = If (flag) <
                then_branch = one () => (t4) {
                    k = Constant<value_ints=[0, 6, 2]>()
                    t1 = Reshape(b, k)
                    t2 = Relu(t1)
                    m = Constant<value_ints=[0, 12]>()
                    t4 = Reshape(t2, m)
                },
                else_branch = two () => (e1) { e1 = Neg(b) }
            >
            y = MatMul(c, w5)
        }
        weights w1:4,12 w5:12,3
    """
    proved(model(text), 6)


LOOP = """
    net (float[N,4] x) => (float[N,3] y) {
        h0 = MatMul(x, w1)
        turns = Constant<value_int=3>()
        go = Constant<value=bool {1}>()
        last = Loop (turns, go, START) <
            body = turn (int64 i, bool on, float[N,D] h) => (bool again, float[N,D] back) {
                again = Identity(on)
                BODY
            }
        >
        y = MatMul(last, w4)
    }
    weights w1:4,6 w2:6,8 w3:8,6 w4:6,3
"""


def loop(body: str, start: str = "h0") -> onnx.ModelProto:
    return model(LOOP.replace("BODY", body).replace("START", start).replace("D]", "6]"))


def test_the_body_of_a_loop() -> None:
    proved(loop("a = MatMul(h, w2) b = Relu(a) c = MatMul(b, w3) back = Add(h, c)"), 6, 8)


def test_a_state_that_a_turn_fills() -> None:
    # the state starts as zeros at cut slots, and only the first turn sees it so
    total = "k = Constant<value_ints=[1]>() s = ReduceSum<keepdims=1>(h, k) "
    proved(loop(total + "a = MatMul(h, w2) b = Relu(a) c = MatMul(b, w3) d = Sigmoid(c) back = Add(d, s)"), 8)
    proved(loop(total + "a = MatMul(h, w2) b = Relu(a) c = MatMul(b, w3) d = Tanh(c) back = Mul(d, s)"), 6, 8)


def test_a_state_that_is_an_input() -> None:
    # the 6 are those of h0, which nothing reads any more
    text = LOOP.replace("float[N,4] x", "float[N,6] x").replace("w1:4,6", "w1:6,6")
    body = "a = MatMul(h, w2) b = Relu(a) c = MatMul(b, w3) back = Add(h, c)"
    proved(model(text.replace("BODY", body).replace("START", "x").replace("D]", "6]")), 6, 8)


def test_a_turn_that_reads_its_number() -> None:
    body = (
        "t = Gather<axis=1>(h, i) k = Constant<value_ints=[1]>() u = Unsqueeze(t, k) "
        "a = MatMul(h, w2) b = MatMul(a, w3) back = Add(b, u)"
    )
    proved(loop(body), 8)


def test_two_states_that_change_places() -> None:
    text = """
        net (float[N,4] x) => (float[N,3] y) {
            p0 = MatMul(x, w1)
            q0 = MatMul(x, w2)
            turns = Constant<value_int=3>()
            go = Constant<value=bool {1}>()
            p9, q9 = Loop (turns, go, p0, q0) <
                body = turn (int64 i, bool on, float[N,6] p, float[N,6] q) => (bool again, float[N,6] r, float[N,6] s) {
                    again = Identity(on)
                    r = Tanh(q)
                    s = Sub(p, q)
                }
            >
            z = Add(p9, q9)
            y = MatMul(z, w3)
        }
        weights w1:4,6 w2:4,6 w3:6,3
    """
    proved(model(text), 6)


STACKING = """
    net (float[N,4] x) => (float[T,N,3] y) {
        h0 = MatMul(x, w1)
        g = MatMul(h0, w2)
        turns = Constant<value_int=3>()
        go = Constant<value=bool {1}>()
        last, all = Loop (turns, go, h0) <
            body = turn (int64 i, bool on, float[N,6] h) => (bool again, float[N,6] back, float[N,6] out) {
                AGAIN
                back = Tanh(h)
                out = Identity(h)
            }
        >
        k = MatMul(g, w4)
        t = Add(all, k)
        y = MatMul(t, w3)
    }
    weights w1:4,6 w2:6,8 w3:6,3 w4:8,6
"""


@pytest.mark.parametrize("opset", [12, 13, 18])
def test_a_loop_that_stacks_its_turns(opset: int) -> None:
    proved(model(STACKING.replace("AGAIN", "again = Identity(on)"), opset=opset), 6, 8)


def test_a_loop_that_stacks_and_may_end_before_its_last_turn_stays_closed() -> None:
    ends = "two = Constant<value_int=1>() again = Less(i, two)"
    proved(model(STACKING.replace("AGAIN", ends)), 8)


HANDED_ON = """
    net (float[N,4] x) => (float[N,3] y) {
        h0 = MatMul(x, w0)
        turns = Constant<value_int=3>()
        go = Constant<value=bool {1}>()
        last, u9, v9, all = Loop (turns, go, h0, w1, w2) <
            body = turn (int64 i, bool on, float[N,6] h, float[6,8] u, float[8,6] v)
                => (bool again, float[N,6] back, float[6,8] u, float[8,6] v, float[N,8] out) {
                again = Identity(on)
                a = MatMul(h, u)
                out = Relu(a)
                c = MatMul(out, v)
                back = Add(h, c)
            }
        >
        second = Constant<value_int=1>()
        now = Gather(all, second)
        t = MatMul(now, w3)
        z = MatMul(last, w4)
        y = Add(t, z)
    }
    weights w0:4,6 w1:6,8 w2:8,6 w3:8,3 w4:6,3
"""


def test_weights_that_every_turn_hands_on() -> None:
    proved(model(HANDED_ON), 6, 8)


def test_what_is_handed_on_is_declared_as_it_is_left() -> None:
    result = prune(model(HANDED_ON), ratio=0.5, criterion="l1", compensate="none")
    (loop,) = (n for n in ir.to_proto(result.model).graph.node if n.op_type == "Loop")
    sizes = [[d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in loop.attribute[0].g.input[2:]]
    assert sizes == [["N", 3], [3, 4], [4, 3]]


def test_a_weight_that_is_handed_on_and_read_behind_the_loop() -> None:
    changed = HANDED_ON.replace("z = MatMul(last, w4)", "m = MatMul(last, u9) z = MatMul(m, w5)").replace(
        "w4:6,3", "w5:8,3"
    )
    proved(model(changed), 6, 8)  # in the body and behind it the same columns go


CELL = """body = turn (float[N,6] h, float[N,WIDTH] now) => (float[N,6] back, float[N,6] out) {
                a = MatMul(now, w1)
                b = MatMul(h, w2)
                c = Add(a, b)
                back = Tanh(c)
                out = Identity(back)
            }"""
SCAN = """
    net (float[5,N,4] x) => (float[5,N,3] y) {
        z = MatMul(x, w0)
        s = Shape<start=1, end=2>(x)
        six = Constant<value_ints=[6]>()
        size = Concat<axis=0>(s, six)
        zero = Constant<value_float=0.0>()
        h0 = Expand(zero, size)
        last, all = Scan <num_scan_inputs=1, CELL> (h0, z)
        y = MatMul(all, w3)
    }
    weights w0:4,7 w1:7,6 w2:6,6 w3:6,3
""".replace("CELL", CELL.replace("WIDTH", "7"))


def test_what_a_scan_reads_is_declared_as_it_is_left() -> None:
    proved(model(SCAN), 6, 7)
    result = prune(model(SCAN), ratio=0.5, criterion="l1", compensate="none")
    (scan,) = (n for n in ir.to_proto(result.model).graph.node if n.op_type == "Scan")
    body = next(a.g for a in scan.attribute if a.name == "body")
    assert [v.type.tensor_type.shape.dim[1].dim_value for v in body.input] == [3, 4]


STARTED = """
    net (float[5,2,4] x) => (float[2,3] y) {
        a9 = Scan <num_scan_inputs=1, body = turn (float[2,6] h, float[2,4] now) => (float[2,6] back) {
            a = MatMul(now, w1) b = MatMul(h, w2) c = Add(a, b) back = Tanh(c)
        }> (h0, x)
        b9 = Loop (turns, go, h0) <body = again (int64 i, bool on, float[2,6] g) => (bool more, float[2,6] next) {
            more = Identity(on) d = MatMul(g, w3) e = Add(d, f) next = Tanh(e)
        }>
        p = MatMul(a9, w4)
        q = MatMul(b9, w5)
        y = Add(p, q)
    }
    weights h0:2,6 w1:4,6 w2:6,6 w3:6,6 w4:6,3 w5:6,3 w6:4,6
"""


def test_states_that_start_from_one_constant() -> None:
    numbers = "turns = Constant<value_int=3>() go = Constant<value=bool {1}>() zero = Constant<value_int=0>() "
    text = STARTED.replace("a9 = Scan", numbers + "x0 = Gather(x, zero) f = MatMul(x0, w6) a9 = Scan")
    proved(model(text), 6)  # as wide as each other
    alone = text.replace("b9 = Loop (turns, go, h0)", "b9 = Loop (turns, go, g0)").replace("w1:", "g0:2,6 w1:")
    proved(model(alone), 6, 6)


def test_a_state_that_starts_from_constant_zeros() -> None:
    text = """
        net (float[5,2,4] x) => (float[2,3] y) {
            last, all = Scan <num_scan_inputs=1, CELL> (h0, x)
            s = ReduceMax<axes=[0], keepdims=0>(all)
            t = Add(s, last)
            y = MatMul(t, w3)
        }
        weights h0:2,6 w1:4,6 w2:6,6 w3:6,3
    """
    made = model(text.replace("CELL", CELL.replace("WIDTH", "4").replace("[N,", "[2,")), opset=17)
    (start,) = (t for t in made.graph.initializer if t.name == "h0")
    start.CopyFrom(onnx.numpy_helper.from_array(np.zeros((2, 6), np.float32), "h0"))
    proved(made, 6)


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        (SCAN, 2 * (5 * 4 * 7 + 5 * (7 * 6 + 6 * 6) + 5 * 6 * 3)),  # of two samples: they do not lie along axis 0
        (HANDED_ON, 4 * 6 + 3 * (6 * 8 + 8 * 6) + 8 * 3 + 6 * 3),
    ],
)
def test_multiplications_of_all_turns_count(text: str, macs: int) -> None:
    assert onnxprune.inspect(model(text)).macs == macs
    report = prune(model(text), target={"macs": 0.5}, criterion="l1", compensate="none", allocation="uniform").report
    assert report.macs.before == macs and 0.3 < report.macs.after / macs <= 0.5


def test_a_recurrent_cell_in_a_scan() -> None:
    text = SCAN.replace("z = MatMul(x, w0)", "").replace("(h0, z)", "(h0, x)").replace("N,7]", "N,4]")
    proved(model(text.replace("w0:4,7 w1:7,6", "w1:4,6")), 6)


BLOCK = """
    <domain: "local", opset_import: ["": 18, "local": 1]>
    Block (x, w1, b1, w2) => (y) { a = MatMul(x, w1) b = Add(a, b1) c = Relu(b) d = MatMul(c, w2) y = Add(x, d) }
"""


def test_constants_that_are_given_to_a_function() -> None:
    text = """
        net (float[N,4] x) => (float[N,3] y) {
            a = MatMul(x, w0)
            b = local.Block(a, w1, b1, w2)
            c = local.Block(b, w3, b3, w4)
            y = MatMul(c, w5)
        }
        weights w0:4,6 w1:6,8 b1:8 w2:8,6 w3:6,7 b3:7 w4:7,6 w5:6,3
    """
    made = model(text, BLOCK)
    proved(made, 6, 7, 8)
    pruned = prune(made, ratio=0.5, criterion="l1", compensate="none").model
    small = ir.to_proto(pruned)
    assert [n.op_type for n in small.graph.node] == [n.op_type for n in made.graph.node]
    assert list(small.functions) == list(ir.to_proto(ir.from_proto(made)).functions)


def test_a_constant_that_two_calls_share_is_copied() -> None:
    text = """
        net (float[N,4] x) => (float[N,3] y) {
            zeros = Constant<value_floats=[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]>()
            a = MatMul(x, w0)
            b = local.Block(a, w1, zeros, w2)
            c = local.Block(b, w3, zeros, w4)
            y = MatMul(c, w5)
        }
        weights w0:4,6 w1:6,8 w2:8,6 w3:6,8 w4:8,6 w5:6,3
    """
    proved(model(text, BLOCK), 6, 8, 8)


def test_a_function_that_calls_another_with_an_attribute() -> None:
    text = """
        net (float[N,4] x) => (float[N,3] y) {
            a = MatMul(x, w0)
            b = local.Outer<slope = 0.3>(a, w1)
            y = MatMul(b, w2)
        }
        weights w0:4,6 w1:6,8 w2:8,3
    """
    outer = """
        <domain: "local", opset_import: ["": 18, "local": 1]>
        Outer <slope> (x, w) => (y) { a = local.Inner<slope: float = @slope>(x) y = MatMul(a, w) }
    """
    inner = """
        <domain: "local", opset_import: ["": 18]>
        Inner <slope> (x) => (y) { y = LeakyRelu<alpha: float = @slope>(x) }
    """
    proved(model(text, outer, inner), 6, 8)


def test_sizes_in_a_function_freeze() -> None:
    text = """
        net (float[N,4] x) => (float[N,3] y) {
            a = MatMul(x, w0)
            b = local.Fold(a)
            c = MatMul(b, w1)
            d = Relu(c)
            y = MatMul(d, w2)
        }
        weights w0:4,12 w1:12,7 w2:7,3
    """
    fold = """
        <domain: "local", opset_import: ["": 18]>
        Fold (x) => (y) {
            k = Constant<value_ints=[0, 6, 2]>()
            a = Reshape(x, k)
            b = Relu(a)
            m = Constant<value_ints=[0, 12]>()
            y = Reshape(b, m)
        }
    """
    result = prune(model(text, fold), ratio=0.5, criterion="l1", compensate="none")
    assert [len(g.cut) for g in result.plan.groups if g.cut] == [3]


def test_weights_in_a_function_stay() -> None:
    text = """
        net (float[N,2] x) => (float[N,3] y) {
            b = local.Layer(x)
            c = MatMul(b, w1)
            d = Relu(c)
            y = MatMul(d, w2)
        }
        weights w1:2,7 w2:7,3
    """
    layer = """
        <domain: "local", opset_import: ["": 18]>
        Layer (x) => (y) { w = Constant<value = float[2,2] {1.0, 2.0, 3.0, 4.0}>() y = MatMul(x, w) }
    """
    proved(model(text, layer), 7)


def test_a_model_without_bodies_has_no_view() -> None:
    made = model("net (float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) } weights w:4,3")
    flat, _ = look_into(ir.from_proto(made), trace)
    assert flat is None


def test_laying_flat_leaves_the_model_alone() -> None:
    for made in (loop("back = Tanh(h)"), model(BRANCHES.replace("CONDITION", ON_DATA))):
        graph = ir.from_proto(made)
        before = ir.to_proto(graph).SerializeToString(deterministic=True)
        flat, _ = look_into(graph, trace)
        assert flat is not None
        assert ir.to_proto(graph).SerializeToString(deterministic=True) == before


def test_nodes_and_attributes_in_a_branch() -> None:
    text = """
        net (float[N,4,5,5] x) => (float[N,3] y) {
            s = ReduceMax<keepdims=0>(x)
            zero = Constant<value_float=0.7>()
            flag = Greater(s, zero)
            b = Conv(x, w1)
            c = If (flag) <
                then_branch = one () => (t3) {
                    t1 = Conv<group=6>(b, w2)
                    k = Constant<value_ints=[1]>()
                    t2 = ReduceMean<keepdims=1>(t1, k)
                    t3 = Mul(t1, t2)
                },
                else_branch = two () => (e1) { e1 = Neg(b) }
            >
            p = GlobalAveragePool(c)
            f = Flatten(p)
            y = MatMul(f, w3)
        }
        weights w1:6,4,1,1 w2:6,1,1,1 w3:6,3
    """
    made = model(text)
    proved(made, 6)
    small = ir.to_proto(prune(made, ratio=0.5, criterion="l1", compensate="none").model)
    branch = next(a.g for n in small.graph.node for a in n.attribute if a.name == "then_branch")
    assert [n.op_type for n in branch.node] == ["Conv", "Constant", "ReduceMean", "Mul", "Mul"]
    assert onnx.helper.get_node_attr_value(branch.node[0], "group") == 3
