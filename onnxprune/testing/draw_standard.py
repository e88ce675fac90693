"""Random cases for the operators of ai.onnx, and for the activations of com.microsoft."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.testing.cases import Case, Data, Feed, Input, Weight
from onnxprune.testing.draw import activation, floats, generates, image, ints, partner, pick, size, some_axes

BOOL, INT32, UINT8 = "Cast:9", "Cast:6", "Cast:2"
MS = "com.microsoft"


# ---------------------------------------------------------------- elementwise
@generates(
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Gelu", "Tanh", "Erf", "Sin", "Atan", "Sinh", "Asinh", "Abs", "Neg"),
    *("Sign", "Floor", "Ceil", "Round", "Identity", "Softsign", "HardSwish", "Mish", "ThresholdedRelu", "Shrink"),
    *("Sigmoid", "HardSigmoid", "Exp", "Softplus", "Cos", "Cosh", "IsNaN", "IsInf", "Dropout"),
)
def unary(op: str, rng: np.random.Generator) -> Case:
    """Takes any numbers."""
    return Case(op, (activation(rng),), opset=pick(rng, 20, 21, 22))


@generates("Gelu", "QuickGelu", domain=MS)
def unary_ms(op: str, rng: np.random.Generator) -> Case:
    """Takes any numbers."""
    return Case(op, (activation(rng),), domain=MS)


@generates(
    "Asin", "Acos", "Atanh", "Tan", "Sqrt", "Log", "Reciprocal", "Acosh", "Swish", "BitCast", "Not", "BitwiseNot"
)
def unary_in_range(op: str, rng: np.random.Generator) -> Case:
    """Takes numbers of a range or type."""
    through: dict[str, tuple[str, ...]] = {"Sqrt": ("Abs",), "Log": ("Sigmoid",), "Reciprocal": ("Sigmoid",)}
    through |= {"Acosh": ("Abs", "Exp"), "Swish": (), "BitCast": (), "Not": ("Relu", BOOL)}
    through |= {"BitwiseNot": ("Round", INT32)}
    opset = {"Swish": 24, "BitCast": 26}.get(op, 21)
    return Case(
        op, (activation(rng, through=through.get(op, ("Softsign",))),), {"to": 6} if op == "BitCast" else {}, opset
    )


@generates("Cast", "CastLike")
def casts(op: str, rng: np.random.Generator) -> Case:
    """To integers, halves or doubles."""
    x = activation(rng)
    if op == "CastLike":
        return Case(op, (x, np.zeros(3, pick(rng, np.float64, np.float16, np.int32))))
    return Case(op, (x,), {"to": pick(rng, 6, 7, 11)}, pick(rng, 9, 13, 21))


@generates("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean")
def arithmetic(op: str, rng: np.random.Generator) -> Case:
    """Two or three operands in any order."""
    x = activation(rng)
    inputs = [x, partner(rng, x)]
    if op in ("Max", "Min", "Sum", "Mean") and rng.random() < 0.5:
        inputs.append(partner(rng, x))
    order = rng.permutation(len(inputs))
    return Case(op, tuple(inputs[k] for k in order), opset=pick(rng, 13, 21))


@generates("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
def comparison(op: str, rng: np.random.Generator) -> Case:
    """Numbers on both sides."""
    x = activation(rng)
    return Case(op, (x, partner(rng, x)), opset=pick(rng, 16, 21))


@generates("And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
def logic(op: str, rng: np.random.Generator) -> Case:
    """Booleans or integers on both sides."""
    through = ("Round", INT32) if op.startswith("Bitwise") else ("Relu", BOOL)
    x = activation(rng, through=through)
    return Case(op, (x, Data(x.shape, pick(rng, x.axes, some_axes(rng, len(x.shape))), through)))


@generates("BitShift")
def bit_shift(op: str, rng: np.random.Generator) -> Case:
    """Unsigned integers by one bit."""
    x = activation(rng, through=("Abs", "Round", UINT8))
    return Case(op, (x, np.array(1, np.uint8)), {"direction": pick(rng, "LEFT", "RIGHT")})


@generates("Bernoulli")
def bernoulli(op: str, rng: np.random.Generator) -> Case:
    """Probabilities 0 and 1, so that nothing is random."""
    return Case(op, (activation(rng, through=("Sign", "Relu")),))


@generates("PRelu")
def prelu(op: str, rng: np.random.Generator) -> Case:
    """A slope for all, for a channel, or for everything."""
    x = activation(rng)
    return Case(op, (x, Weight(tuple(n if rng.random() < 0.6 else 1 for n in x.shape[1:]))))


@generates("Div", "Mod")
def division(op: str, rng: np.random.Generator) -> Case:
    """By a number, a table or an activation that is not zero."""
    x = activation(rng)
    other = pick(rng, floats(0.7), Weight(x.shape[1:], positive=True), Data(x.shape, x.axes, ("Exp",)))
    return Case(op, (x, other), {"fmod": 1} if op == "Mod" else {})


@generates("Pow")
def power(op: str, rng: np.random.Generator) -> Case:
    """A square, a root, a reciprocal, or a table of exponents."""
    x = activation(rng, through=pick(rng, ("Abs",), ("Sigmoid",)))
    return Case(op, (x, pick(rng, floats(2), floats(0.5), floats(-0.5), floats(0), Weight((x.shape[-1],)))))


@generates("Where")
def where(op: str, rng: np.random.Generator) -> Case:
    """A computed or constant condition."""
    x = activation(rng)
    mask = rng.random(x.shape[-1]) < 0.5
    condition = pick(rng, mask, mask[:1], Data(x.shape, pick(rng, x.axes, ()), ("Relu", BOOL)))
    branches = [x, pick(rng, partner(rng, x), np.zeros(1, np.float32))]
    return Case(op, (condition, *(branches[k] for k in rng.permutation(2))))


@generates("Clip")
def clip(op: str, rng: np.random.Generator) -> Case:
    """Bounds as attributes or as inputs, around 0 or not."""
    low, high = pick(rng, (0.0, 6.0), (-0.5, 0.5), (0.25, 2.0), (-2.0, -0.1))
    if rng.random() < 0.3:
        return Case(op, (activation(rng),), {"min": low, "max": high}, 7)
    bounds = [np.array(v, np.float32) if rng.random() < 0.7 else None for v in (low, high)]
    while bounds and bounds[-1] is None:
        bounds.pop()
    return Case(op, (activation(rng), *bounds), opset=pick(rng, 11, 12, 21))


@generates("BiasGelu", "FastGelu", domain=MS)
def bias_gelu(op: str, rng: np.random.Generator) -> Case:
    """A bias over the last axis."""
    x = activation(rng)
    bias = [Weight((x.shape[-1],))] if op == "BiasGelu" or rng.random() < 0.5 else []
    return Case(op, (x, *bias), domain=MS)


# ---------------------------------------------------------------- convolutions and products
@generates("Conv")
def conv(op: str, rng: np.random.Generator) -> Case:
    """Plain, grouped or depthwise; padded, strided, dilated."""
    group, c, o = pick(rng, (1, 5, 6), (1, 4, 3), (2, 3, 2), (4, 1, 1), (3, 1, 2), (2, 2, 3), (4, 2, 1))
    x = image(rng, group * c)
    k = [size(rng, 1, 4) for _ in x.shape[2:]]
    attributes: dict[str, Any] = {"group": group} if group > 1 else {}
    if rng.random() < 0.5:
        attributes["pads"] = [int(n) for n in rng.integers(0, 2, 2 * len(k))]
        attributes["strides"] = [int(n) for n in rng.integers(1, 3, len(k))]
    elif rng.random() < 0.5:
        attributes["auto_pad"] = pick(rng, "SAME_UPPER", "SAME_LOWER", "VALID")
    bias = [Weight((group * o,))] if rng.random() < 0.6 else []
    return Case(op, (x, Weight((group * o, c, *k)), *bias), attributes, pick(rng, 9, 11, 21))


@generates("ConvTranspose")
def conv_transpose(op: str, rng: np.random.Generator) -> Case:
    """Plain, grouped or depthwise; strided, padded."""
    group, c, o = pick(rng, (1, 5, 6), (1, 4, 3), (2, 3, 2), (4, 1, 1), (3, 1, 2), (2, 2, 3))
    x = image(rng, group * c)
    k = [size(rng, 2, 4) for _ in x.shape[2:]]
    attributes: dict[str, Any] = {"group": group} if group > 1 else {}
    if rng.random() < 0.6:
        attributes["strides"] = [int(n) for n in rng.integers(1, 3, len(k))]
        attributes["pads"] = [int(n) for n in rng.integers(0, 2, 2 * len(k))]
    bias = [Weight((group * o,))] if rng.random() < 0.6 else []
    return Case(op, (x, Weight((group * c, o, *k)), *bias), attributes, pick(rng, 11, 21))


@generates("MatMul")
def matmul(op: str, rng: np.random.Generator) -> Case:
    """A weight on either side, or two activations, with batch axes."""
    kind, m, k, n = pick(rng, "right", "left", "both", "vector", "batched"), size(rng), size(rng), size(rng)
    through = pick(rng, (), (), ("Sigmoid",))
    if kind == "left":
        return Case(op, (Weight((n, k)), Data((0, k, m), pick(rng, (1,), (2,), (1, 2)), through)))
    if kind == "vector":
        return Case(op, (Data((0, m, k), pick(rng, (2,), (1,)), through), Weight((k,))))
    if kind == "batched":
        return Case(op, (Data((0, 3, m, k), pick(rng, (3,), (1,), (1, 3)), through), Weight((3, k, n))))
    if kind == "both":
        axes = pick(rng, ((1, 3), (1, 2)), ((3,), (2,)), ((1, 2), (1, 3)), ((1,), (1,)), ((2,), (3,)))
        return Case(op, (Data((0, 3, m, k), axes[0], through), Data((0, 3, k, n), axes[1])))
    rank = size(rng, 2, 5)
    x = Data((0, *(size(rng) for _ in range(rank - 2)), k), pick(rng, (rank - 1,), some_axes(rng, rank)), through)
    return Case(op, (x, Weight((k, n))), opset=pick(rng, 9, 13, 21))


@generates("Gemm")
def gemm(op: str, rng: np.random.Generator) -> Case:
    """Transposed or not, with or without an addend."""
    k, n, a, b = size(rng), size(rng), pick(rng, 0, 1), pick(rng, 0, 1)
    x = Data((k, 0) if a else (0, k), (0,) if a else (1,), pick(rng, (), ("Sigmoid",)))
    addend = pick(rng, [], [Weight((n,))], [Weight((1, n))], [floats(0.5)], [Data((0, n), pick(rng, (1,), ()))])
    attributes = {"transA": a, "transB": b, "alpha": 0.5, "beta": 2.0}
    return Case(op, (x, Weight((n, k) if b else (k, n)), *addend), attributes, pick(rng, 11, 13, 21))


@generates("Einsum")
def einsum(op: str, rng: np.random.Generator) -> Case:
    """Products, attention, transposes and sums."""
    i, j, h = size(rng), size(rng), size(rng)
    through = pick(rng, (), (), ("Sigmoid",))
    return pick(  # type: ignore[no-any-return]
        rng,
        Case(op, (Data((0, 4, i), (2,), through), Weight((i, j))), {"equation": "bij,jk->bik"}),
        Case(op, (Data((0, 4, i), (2,), through), Weight((j, i))), {"equation": "...i,oi->...o"}),
        Case(op, (Data((0, h, i), pick(rng, (1, 2), (2,))), Weight((h, i, j))), {"equation": "bhd,hdo->bo"}),
        Case(op, (Data((0, i)), Weight((i, h, j))), {"equation": "bi,ihd->bhd"}),
        Case(op, (Data((0, 4, h, i), (2, 3)), Data((0, 4, h, i), (2, 3))), {"equation": "bqhd,bkhd->bhqk"}),
        Case(op, (Data((0, i, j), pick(rng, (1,), (2,), (1, 2)), through),), {"equation": "bij->jbi"}),
        Case(op, (Data((0, i, j), pick(rng, (1,), (2,), (1, 2)), through),), {"equation": "bij->bj"}),
        Case(op, (Data((0, i)), Data((0, i), (1,), through)), {"equation": "bi,bi->b"}),
        Case(op, (Data((0, i)), Data((0, j))), {"equation": "bi,bj->bij"}),
    )


# ---------------------------------------------------------------- normalisations
@generates("BatchNormalization")
def batch_norm(op: str, rng: np.random.Generator) -> Case:
    """At inference, or in training mode."""
    x = pick(rng, image(rng), activation(rng, 2))
    c = Weight((x.shape[1],))
    inputs = (x, c, c, c, Weight((x.shape[1],), positive=True))
    if rng.random() < 0.3:
        return Case(op, inputs, {"training_mode": 1}, pick(rng, 14, 15, 21), outputs=3)
    return Case(op, inputs, {"epsilon": 1e-3}, pick(rng, 7, 9, 14, 15, 21))


@generates("InstanceNormalization")
def instance_norm(op: str, rng: np.random.Generator) -> Case:
    """Scale and bias of the channels."""
    x = image(rng)
    return Case(op, (x, Weight((x.shape[1],)), Weight((x.shape[1],))), opset=pick(rng, 7, 21))


@generates("GroupNormalization")
def group_norm(op: str, rng: np.random.Generator) -> Case:
    """Scale and bias of the groups in opset 18, of the channels from 21 on."""
    groups, each, opset = pick(rng, 1, 2, 3, 4), size(rng, 1, 4), pick(rng, 18, 21)
    p = Weight((groups if opset == 18 else groups * each,))
    return Case(op, (image(rng, groups * each), p, p), {"num_groups": groups}, opset)


@generates("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(op: str, rng: np.random.Generator) -> Case:
    """Over the last axis, or the last two."""
    x = activation(rng, size(rng, 3, 5))
    axis = pick(rng, -1, -1, len(x.shape) - 2)
    params = [Weight(x.shape[axis:])]
    if op == "LayerNormalization" and rng.random() < 0.5:
        params.append(Weight(x.shape[axis:]))
    return Case(op, (x, *params), {"axis": axis, "epsilon": 0.01}, 23 if op == "RMSNormalization" else 17)


# ---------------------------------------------------------------- pooling and resizing
@generates("MaxPool", "AveragePool", "LpPool")
def pool(op: str, rng: np.random.Generator) -> Case:
    """Padded, strided windows."""
    x = image(rng)
    n = len(x.shape) - 2
    attributes: dict[str, Any] = {"kernel_shape": [2] * n, "strides": [int(s) for s in rng.integers(1, 3, n)]}
    if rng.random() < 0.5:
        attributes["pads"] = [int(p) for p in rng.integers(0, 2, 2 * n)]
    return Case(op, (x,), attributes, pick(rng, 11, 18, 21), outputs=2 if op == "MaxPool" and rng.random() < 0.1 else 1)


@generates("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(op: str, rng: np.random.Generator) -> Case:
    """Over all spatial axes."""
    return Case(op, (image(rng),), opset=pick(rng, 9, 21))


@generates("Resize", "Upsample")
def resize(op: str, rng: np.random.Generator) -> Case:
    """By factors, or to sizes of named axes."""
    x = Data(
        (0, size(rng), size(rng, 3), size(rng, 3)), pick(rng, (1,), (1,), (2,), (1, 3)), pick(rng, (), ("Sigmoid",))
    )
    factors = floats(1, *(pick(rng, (1, 1), (1, 1), (1, 2))[1] if k == 1 else pick(rng, 1, 2) for k in range(1, 4)))
    if op == "Upsample":
        if rng.random() < 0.5:
            return Case(op, (x,), {"scales": factors.tolist()}, 7)
        return Case(op, (x, factors), opset=9)
    if rng.random() < 0.5:
        axes = [int(k) for k in rng.permutation([1, 2, 3])[: size(rng, 1, 4)]]
        sizes = ints(*(x.shape[k] if k == 1 else x.shape[k] + pick(rng, 0, 3) for k in axes))
        return Case(op, (x, None, None, sizes), {"axes": axes}, pick(rng, 18, 19))
    opset = pick(rng, 10, 11, 13, 18)
    inputs = (x, factors) if opset == 10 else (x, np.zeros(0, np.float32), factors)
    return Case(op, inputs, {"mode": "nearest" if factors[1] > 1 else pick(rng, "nearest", "linear")}, opset)


@generates("GridSample")
def grid_sample(op: str, rng: np.random.Generator) -> Case:
    """A grid of positions that is an input."""
    x = Data((0, size(rng), 5, 6), pick(rng, (1,), (2,), (1, 3)), pick(rng, (), ("Sigmoid",)))
    attributes = {"padding_mode": pick(rng, "zeros", "border"), "align_corners": pick(rng, 0, 1)}
    return Case(op, (x, Data((0, 3, 4, 2), (), ("Tanh",))), attributes, pick(rng, 16, 20))


@generates("RoiAlign", "MaxRoiPool")
def regions(op: str, rng: np.random.Generator) -> Case:
    """Three constant regions."""
    x = Data((0, size(rng), 6, 6), pick(rng, (1,), (2,)))
    boxes = floats(0, 0, 4, 4, 1, 0, 3, 5, 2, 2, 5, 5).reshape(3, 4)
    if op == "MaxRoiPool":
        return Case(op, (x, np.concatenate([np.zeros((3, 1), np.float32), boxes], 1)), {"pooled_shape": [2, 2]})
    return Case(op, (x, boxes, ints(0, 1, 0)), {"output_height": 2, "output_width": 2}, pick(rng, 10, 16))


# ---------------------------------------------------------------- reductions and what runs along an axis
@generates(
    *("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"),
    *("ReduceLogSum", "ReduceLogSumExp"),
)
def reduction(op: str, rng: np.random.Generator) -> Case:
    """Axes as an attribute or as an input, kept or dropped."""
    x = activation(rng, through=("Sigmoid",) if op == "ReduceLogSum" else ())
    rank = len(x.shape)
    axes = [int(k) - pick(rng, 0, rank) for k in rng.permutation(range(1, rank))[: size(rng, 1, rank)]]
    attributes: dict[str, Any] = {"keepdims": pick(rng, 0, 1)}
    opset = pick(rng, 11, 13, 18, 21)
    if rng.random() < 0.1:
        return Case(op, (x,), {"noop_with_empty_axes": 1}, 18)
    if opset >= 18 or (op == "ReduceSum" and opset >= 13):
        return Case(op, (x, ints(*axes)), attributes, opset)
    return Case(op, (x,), {**attributes, "axes": axes}, opset)


@generates("Softmax", "LogSoftmax", "Hardmax")
def softmax(op: str, rng: np.random.Generator) -> Case:
    """Over one axis, or before opset 13 over all from it on."""
    x = activation(rng)
    return Case(op, (x,), {"axis": int(rng.integers(1, len(x.shape)))}, pick(rng, 11, 13, 21))


@generates("CumSum")
def cumsum(op: str, rng: np.random.Generator) -> Case:
    """In either direction, with or without the place itself."""
    x = activation(rng)
    return Case(
        op,
        (x, np.array(int(rng.integers(1, len(x.shape))))),
        {"reverse": pick(rng, 0, 1), "exclusive": pick(rng, 0, 1)},
    )


@generates("LpNormalization")
def lp_normalization(op: str, rng: np.random.Generator) -> Case:
    """By the sum or by the root of the sum of squares."""
    x = activation(rng)
    return Case(op, (x,), {"axis": int(rng.integers(1, len(x.shape))), "p": pick(rng, 1, 2)})


@generates("LRN")
def lrn(op: str, rng: np.random.Generator) -> Case:
    """A window over the channels."""
    return Case(op, (Data((0, size(rng), 5, 4), pick(rng, (1,), (2,), (1, 2))),), {"size": 3})


@generates("MeanVarianceNormalization")
def mean_variance(op: str, rng: np.random.Generator) -> Case:
    """Over batch and space."""
    return Case(op, (Data((0, size(rng), 5, 4), pick(rng, (1,), (2,))),), opset=13)


@generates("TopK")
def topk(op: str, rng: np.random.Generator) -> Case:
    """Values and indices."""
    x = activation(rng)
    axis = int(rng.integers(1, len(x.shape)))
    return Case(op, (x, ints(2)), {"axis": axis, "largest": pick(rng, 0, 1)}, pick(rng, 11, 21), outputs=2)


@generates("ArgMax", "ArgMin")
def arg(op: str, rng: np.random.Generator) -> Case:
    """An index into an axis."""
    x = activation(rng)
    return Case(op, (x,), {"axis": int(rng.integers(1, len(x.shape))), "keepdims": pick(rng, 0, 1)}, pick(rng, 11, 13))


@generates("Trilu")
def trilu(op: str, rng: np.random.Generator) -> Case:
    """One half of the last two axes."""
    x = activation(rng, size(rng, 3, 5))
    return Case(op, (x, np.array(int(rng.integers(-1, 2)))), {"upper": pick(rng, 0, 1)})


# ---------------------------------------------------------------- movement
def factored(rng: np.random.Generator, n: int) -> list[int]:
    """Returns sizes whose product is n."""
    for d in rng.permutation([2, 3, 5]).tolist():
        if n % d == 0 and n > d and rng.random() < 0.7:
            return [d, n // d] if rng.random() < 0.5 else [n // d, d]
    return [n]


@generates("Reshape")
def reshape(op: str, rng: np.random.Generator) -> Case:
    """Axes merged, split, or both."""
    x = Data((0, *(pick(rng, 2, 3, 4, 6) for _ in range(size(rng, 1, 4)))), ())
    x = Data(x.shape, some_axes(rng, len(x.shape)), pick(rng, (), ("Sigmoid",)))
    cells = int(np.prod(x.shape[1:]))
    target = pick(rng, [cells], [m for n in x.shape[1:] for m in factored(rng, n)], factored(rng, cells))
    target = [0, *target] if rng.random() < 0.7 else [-1, *target]
    if target[0] == 0 and rng.random() < 0.3:
        target[int(rng.integers(1, len(target)))] = -1
    return Case(op, (x, ints(*target)), opset=pick(rng, 9, 13, 21))


@generates("Flatten")
def flatten(op: str, rng: np.random.Generator) -> Case:
    """At any axis."""
    x = activation(rng)
    return Case(op, (x,), {"axis": int(rng.integers(1, len(x.shape) + 1))}, pick(rng, 11, 21))


@generates("Transpose")
def transpose(op: str, rng: np.random.Generator) -> Case:
    """Any order, of an activation or of a weight."""
    if rng.random() < 0.3:
        return Case(op, (Weight((size(rng), size(rng))),))
    x = activation(rng)
    return Case(op, (x,), {"perm": [int(k) for k in rng.permutation(len(x.shape))]})


@generates("Squeeze")
def squeeze(op: str, rng: np.random.Generator) -> Case:
    """With axes or without."""
    labelled, opset = pick(rng, 1, 2, 3), pick(rng, 11, 13, 21)
    shape = [0, *(size(rng, 2, 4) if k == labelled else pick(rng, 1, 3) for k in (1, 2, 3))]
    ones = [k for k, n in enumerate(shape) if n == 1]
    x = Data(tuple(shape), (labelled,), pick(rng, (), ("Sigmoid",)))
    if not ones or rng.random() < 0.4:
        return Case(op, (x,), opset=opset)
    axes = [k - pick(rng, 0, 4) for k in ones]
    return Case(op, (x, ints(*axes)), opset=opset) if opset >= 13 else Case(op, (x,), {"axes": axes}, opset)


@generates("Unsqueeze")
def unsqueeze(op: str, rng: np.random.Generator) -> Case:
    """One or two new axes."""
    x, opset = activation(rng), pick(rng, 11, 13, 21)
    rank = len(x.shape) + 2
    axes = [int(k) - pick(rng, 0, rank) for k in rng.permutation(range(1, rank))[:2]]
    return Case(op, (x, ints(*axes)), opset=opset) if opset >= 13 else Case(op, (x,), {"axes": axes}, opset)


@generates("Concat")
def concat(op: str, rng: np.random.Generator) -> Case:
    """Two or three parts with labels on the same axes or on others."""
    x = activation(rng, size(rng, 3, 5))
    axis = int(rng.integers(1, len(x.shape)))
    parts: list[Input] = [x]
    for _ in range(size(rng, 1, 3)):
        shape = tuple(size(rng) if k == axis else n for k, n in enumerate(x.shape))
        axes = pick(rng, x.axes, x.axes, x.axes, some_axes(rng, len(shape)), ())
        parts.append(Data(shape, axes, pick(rng, (), (), ("Sigmoid",))))
    return Case(op, tuple(parts), {"axis": axis - pick(rng, 0, len(x.shape))}, pick(rng, 11, 21))


@generates("Split")
def split(op: str, rng: np.random.Generator) -> Case:
    """Equal and unequal parts; sizes as attribute, input, or left out."""
    x, opset = activation(rng, size(rng, 2, 5)), pick(rng, 11, 13, 18)
    axis = int(rng.integers(1, len(x.shape)))
    kind = pick(rng, "given", "even", "number") if opset == 18 else pick(rng, "given", "even")
    parts = 2
    n = 2 * size(rng, 1, 4) if kind == "even" else size(rng, 3, 8)
    x = Data(tuple(n if k == axis else m for k, m in enumerate(x.shape)), x.axes, x.through)
    if kind == "number" or (kind == "even" and opset == 18):
        return Case(op, (x,), {"axis": axis, "num_outputs": parts}, 18, outputs=parts)
    first = n // 2 if kind == "even" else int(rng.integers(1, n))
    if opset == 11:
        given = {} if kind == "even" else {"split": [first, n - first]}
        return Case(op, (x,), {"axis": axis, **given}, 11, outputs=parts)
    sizes = [] if kind == "even" else [ints(first, n - first)]
    return Case(op, (x, *sizes), {"axis": axis}, opset, outputs=parts)


@generates("Slice")
def slice_(op: str, rng: np.random.Generator) -> Case:
    """Any start, end and step; bounds from either end."""
    x, opset = activation(rng, size(rng, 2, 5)), pick(rng, 9, 10, 13, 21)
    axis = int(rng.integers(1, len(x.shape)))
    n = x.shape[axis]
    step = 1 if opset == 9 else pick(rng, 1, 1, 1, 2, -1, -2)
    first = int(rng.integers(0, n - 1))
    last = int(rng.integers(first + 1, n + 1))
    start, end = (first, last) if step > 0 else (last - 1, first - 1 if first else -n - 1)
    start -= pick(rng, 0, n) if start < n else 0
    end = pick(rng, end, 2**31 - 1) if step > 0 else end if end < 0 or rng.random() < 0.5 else end - n
    if opset == 9:
        return Case(op, (x,), {"starts": [start], "ends": [end], "axes": [axis]}, 9)
    return Case(op, (x, ints(start), ints(end), ints(axis), ints(step)), opset=opset)


@generates("Tile")
def tile(op: str, rng: np.random.Generator) -> Case:
    """Repeats of any axis but the batch."""
    x = activation(rng)
    return Case(op, (x, ints(1, *(pick(rng, 1, 2, 3) for _ in x.shape[1:]))), opset=pick(rng, 9, 13))


@generates("Pad")
def pad(op: str, rng: np.random.Generator) -> Case:
    """Constants, edges and reflections, also of fewer slots."""
    x = activation(rng, size(rng, 2, 5))
    rank, opset = len(x.shape), pick(rng, 10, 11, 13, 18, 21)
    x = Data(tuple(n and n + 2 for n in x.shape), x.axes, x.through)
    mode = pick(rng, "constant", "constant", "constant", "reflect", "edge")
    low = -1 if mode == "constant" and rng.random() < 0.3 else 0
    amounts = [[0, *(int(n) for n in rng.integers(low, 3, rank - 1))] for _ in range(2)]
    if opset == 10:
        return Case(op, (x,), {"pads": amounts[0] + amounts[1], "mode": mode}, 10)
    fill = [np.array(pick(rng, 0, 1.5), np.float32)] if rng.random() < 0.6 else []
    if opset >= 18 and rng.random() < 0.5:
        axes = [int(k) for k in rng.permutation(range(1, rank))[: size(rng, 1, rank)]]
        pads = ints(*(side[k] for side in amounts for k in axes))
        return Case(op, (x, pads, fill[0] if fill else None, ints(*axes)), {"mode": mode}, opset)
    return Case(op, (x, ints(*amounts[0], *amounts[1]), *fill), {"mode": mode}, opset)


@generates("DepthToSpace", "SpaceToDepth")
def depth_space(op: str, rng: np.random.Generator) -> Case:
    """Blocks of 2 x 2 in either order."""
    axes, through = pick(rng, (1,), (1,), (2,), (1, 2)), pick(rng, (), ("Sigmoid",))
    if op == "SpaceToDepth":
        return Case(op, (Data((0, size(rng), 4, 6), axes, through),), {"blocksize": 2})
    attributes = {"blocksize": 2, "mode": pick(rng, "DCR", "CRD")}
    return Case(op, (Data((0, 4 * size(rng, 1, 4), 3, 2), axes, through),), attributes, pick(rng, 11, 13))


# ---------------------------------------------------------------- indexing
@generates("Gather")
def gather(op: str, rng: np.random.Generator) -> Case:
    """Constant indices of any rank into an activation, or an embedding."""
    if rng.random() < 0.3:
        return Case(op, (Weight((7, size(rng))), Feed((0, 4), 7)))
    x = activation(rng)
    axis = int(rng.integers(1, len(x.shape)))
    n = x.shape[axis]
    where = rng.integers(-n, n, pick(rng, (), (2,), (4,), (2, 3)))
    return Case(op, (x, np.asarray(where, np.int64)), {"axis": axis}, pick(rng, 11, 13))


@generates("GatherND")
def gather_nd(op: str, rng: np.random.Generator) -> Case:
    """Computed positions, in every sample, or in a table."""
    if rng.random() < 0.4:
        return Case(op, (Weight((5, 4, size(rng))), Feed((0, pick(rng, 1, 2)), 4)))
    x = Data((0, 6, size(rng)), pick(rng, (1,), (2,), (1, 2)))
    return Case(op, (x, Feed((0, 3, 1), 6)), {"batch_dims": 1})


@generates("ScatterND")
def scatter_nd(op: str, rng: np.random.Generator) -> Case:
    """Constant positions, updates that are a weight, or a block of positions."""
    n = size(rng)
    kind = rng.random()
    if kind < 0.3:
        places = rng.permutation(n)[: rng.integers(1, n + 1)]
        block = np.stack(np.meshgrid([2, 0], places, indexing="ij"), -1)
        return Case(op, (Data((3, n, 0), (1,)), block, Data((2, len(places), 0), pick(rng, (1,), (0, 1)))), opset=18)
    if kind < 0.6:
        x = Data((0, n), (1,), pick(rng, (), ("Sigmoid",)))
        return Case(
            op, (x, ints(0, 1).reshape(2, 1), Weight((2, n))), {"reduction": pick(rng, "none", "add", "mul")}, 16
        )
    x = Data((0, 3, n), pick(rng, (1,), (2,), (1, 2)))
    return Case(op, (x, ints(0, 2, 1, 1).reshape(2, 2), Weight((2, n))), opset=18)


# ---------------------------------------------------------------- recurrent cells
@generates("RNN", "GRU", "LSTM")
def cell(op: str, rng: np.random.Generator) -> Case:
    """Every direction, with and without bias, lengths, states and peepholes."""
    g, i, h = {"RNN": 1, "GRU": 3, "LSTM": 4}[op], size(rng), size(rng, 2, 5)
    direction = pick(rng, "forward", "reverse", "bidirectional")
    d = 2 if direction == "bidirectional" else 1
    inputs: list[Input] = [Data((5, 0, i), pick(rng, (2,), (2,), ())), Weight((d, g * h, i)), Weight((d, g * h, h))]
    inputs.append(pick(rng, None, Weight((d, 2 * g * h))))
    inputs.append(pick(rng, None, None, Feed((0,), 6, 1, "int32")))
    inputs.append(pick(rng, None, None, Data((d, 0, h), pick(rng, (2,), ()), pick(rng, (), ("Sigmoid",)))))
    if op == "LSTM":
        inputs.append(pick(rng, None, None, Data((d, 0, h), pick(rng, (2,), ()), pick(rng, (), ("Sigmoid",)))))
        inputs.append(pick(rng, None, None, Weight((d, 3 * h))))
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, Any] = {"hidden_size": h, "direction": direction}
    if op == "GRU":
        attributes["linear_before_reset"] = pick(rng, 0, 1)
    if op == "RNN" and rng.random() < 0.4:
        attributes["activations"] = [pick(rng, "Relu", "Sigmoid")] * d
    return Case(op, tuple(inputs), attributes, pick(rng, 7, 14, 21), outputs=pick(rng, 1, 2))


# ---------------------------------------------------------------- sizes
@generates("Shape", "Size")
def shape(op: str, rng: np.random.Generator) -> Case:
    """Sizes read off an activation, which is cut to one index of its labelled axis first."""
    return Case(op, (Data((4, size(rng)), ()),), opset=pick(rng, 13, 21))


@generates("Range")
def range_(op: str, rng: np.random.Generator) -> Case:
    """Constant numbers."""
    return Case(op, (np.array(1.0, np.float32), np.array(size(rng, 3) + 1.0, np.float32), np.array(1.0, np.float32)))


@generates("ConstantOfShape")
def constant_of_shape(op: str, rng: np.random.Generator) -> Case:
    """A constant weight."""
    return Case(op, (ints(size(rng), size(rng)),))


@generates("Expand")
def expand(op: str, rng: np.random.Generator) -> Case:
    """New axes, and copies of axes of size 1."""
    x = activation(rng, size(rng, 2, 4))
    wide = Data((*x.shape, 1), x.axes, x.through)
    target = [1, *(n if rng.random() < 0.5 else 1 for n in x.shape[1:]), size(rng)]
    return Case(op, (wide, ints(*target)), opset=pick(rng, 9, 13))
