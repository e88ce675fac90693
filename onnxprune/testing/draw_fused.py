"""Random cases for operators that fuse others: attention, quantized products, residual normalisations."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxprune.testing.cases import SCALE, Array, Case, Data, Feed, Input, Weight
from onnxprune.testing.draw import activation, generates, pick, size

MS = "com.microsoft"
TOKENS = 3
Numbers = tuple[Array, Array]


# ---------------------------------------------------------------- attention
def heads(count: int, width: int) -> Data:
    """Returns queries, keys or values with all heads in the last axis."""
    return Data((0, TOKENS, count * width), (2,))


def four(count: int, width: int) -> Data:
    """Returns queries, keys or values of (batch, heads, tokens, size)."""
    return Data((0, count, TOKENS, width), (1, 3))


@generates("Attention")
def attention(op: str, rng: np.random.Generator) -> Case:
    """Three axes or four, with as many heads for keys as for queries or fewer."""
    groups, serves, qk, v = pick(rng, 1, 2), pick(rng, 1, 2), size(rng, 2, 6), size(rng, 2, 6)
    attributes: dict[str, Any] = {"is_causal": pick(rng, 0, 1)}
    make = pick(rng, heads, four)
    if make is heads:
        attributes |= {"q_num_heads": groups * serves, "kv_num_heads": groups}
    inputs = [make(groups * serves, qk), make(groups, qk), make(groups, v)]
    if rng.random() < 0.4:
        inputs.append(Weight((TOKENS, TOKENS)))
    return Case(op, tuple(inputs), attributes, pick(rng, 23, 24))


@generates("RotaryEmbedding")
@generates("RotaryEmbedding", domain=MS)
def rotary(op: str, rng: np.random.Generator) -> Case:
    """Tables read at positions that are inputs."""
    half = size(rng, 2, 4)
    tables: list[Input] = [Weight((8, half)), Weight((8, half))]
    attributes = {"interleaved": pick(rng, 0, 1)}
    return Case(op, (four(2, 2 * half), *tables, Feed((0, TOKENS), 8)), attributes, 23)


@generates("MultiHeadAttention", domain=MS)
def multi_head(op: str, rng: np.random.Generator) -> Case:
    """With or without the bias of the projections."""
    n, qk, v = pick(rng, 2, 3), size(rng, 2, 6), size(rng, 2, 6)
    bias = [Weight((n * (2 * qk + v),))] if rng.random() < 0.5 else []
    attributes = {"num_heads": n, "scale": pick(rng, 0.0, 0.3)}
    return Case(op, (heads(n, qk), heads(n, qk), heads(n, v), *bias), attributes, 17, MS)


@generates("GroupQueryAttention", domain=MS)
def grouped_query(op: str, rng: np.random.Generator) -> Case:
    """Head sizes in blocks of 8."""
    groups, serves, width = pick(rng, 1, 2), pick(rng, 1, 2), pick(rng, 8, 16, 24)
    lengths = Feed((0,), TOKENS, TOKENS - 1, "int32"), np.array(TOKENS, np.int32)
    inputs = (heads(groups * serves, width), heads(groups, width), heads(groups, width), None, None, *lengths)
    return Case(op, inputs, {"num_heads": groups * serves, "kv_num_heads": groups}, 17, MS)


@generates("Attention", domain=MS)
def projected(op: str, rng: np.random.Generator) -> Case:
    """One weight for queries, keys and values."""
    n, i, width = pick(rng, 2, 3), size(rng), size(rng, 2, 6)
    x = Data((0, TOKENS, i), (2,), pick(rng, (), ("Sigmoid",)))
    attributes = {"num_heads": n, "unidirectional": pick(rng, 0, 1)}
    return Case(op, (x, Weight((i, 3 * n * width)), Weight((3 * n * width,))), attributes, 17, MS)


@generates("QAttention", domain=MS)
def q_projected(op: str, rng: np.random.Generator) -> Case:
    """As Attention, with integers."""
    n, i, width = pick(rng, 2, 3), size(rng), size(rng, 2, 6)
    (q, s, z), out = quantized(rng, (0, TOKENS, i), (2,)), 3 * n * width
    numbers = (s, np.array(0.01, np.float32), None, z, np.array(3, np.int8))
    return Case(op, (q, Weight((i, out), dtype="int8"), Weight((out,)), *numbers), {"num_heads": n}, 17, MS)


# ---------------------------------------------------------------- fused products and normalisations
@generates("FusedConv", domain=MS)
def fused_conv(op: str, rng: np.random.Generator) -> Case:
    """A convolution, perhaps a residual, and an activation."""
    group, c, o = pick(rng, (1, 4, 6), (2, 2, 3), (4, 1, 1))
    inputs: list[Input] = [Data((0, group * c, 5, 5)), Weight((group * o, c, 3, 3)), Weight((group * o,))]
    if rng.random() < 0.5:
        inputs.append(Data((0, group * o, 5, 5), (1,), pick(rng, (), ("Sigmoid",))))
    attributes = {
        "kernel_shape": [3, 3],
        "pads": [1] * 4,
        "group": group,
        "activation": pick(rng, "Relu", "Tanh", "Sigmoid"),
    }
    return Case(op, tuple(inputs), attributes, 17, MS)


@generates("FusedGemm", domain=MS)
def fused_gemm(op: str, rng: np.random.Generator) -> Case:
    """A product, a bias and an activation."""
    k, n, b = size(rng), size(rng), pick(rng, 0, 1)
    attributes = {"transB": b, "activation": pick(rng, "Relu", "Sigmoid")}
    return Case(op, (Data((0, k)), Weight((n, k) if b else (k, n)), Weight((n,))), attributes, 17, MS)


@generates("FusedMatMul", "TransposeMatMul", domain=MS)
def fused_matmul(op: str, rng: np.random.Generator) -> Case:
    """Factors that are turned or not."""
    m, k, n, a, b = size(rng), size(rng), size(rng), pick(rng, 0, 1), pick(rng, 0, 1)
    x = Data((0, k, m) if a else (0, m, k), (1 if a else 2,), pick(rng, (), ("Sigmoid",)))
    return Case(op, (x, Weight((n, k) if b else (k, n))), {"transA": a, "transB": b, "alpha": 0.5}, 17, MS)


@generates("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MS)
def skip_norm(op: str, rng: np.random.Generator) -> Case:
    """Input plus residual, with or without biases."""
    n = size(rng)
    axes, through = pick(rng, (2,), (2,), (1,)), pick(rng, (), (), ("Sigmoid",))
    inputs: list[Input] = [Data((0, TOKENS, n), axes), Data((0, TOKENS, n), axes, through), Weight((n,))]
    inputs += [Weight((n,))] if rng.random() < 0.5 else []
    return Case(op, tuple(inputs), {"epsilon": 0.1}, 17, MS)


@generates("EmbedLayerNormalization", domain=MS)
def embed(op: str, rng: np.random.Generator) -> Case:
    """Words and positions."""
    n = size(rng)
    table = Weight((6, n)), Weight((TOKENS, n))
    inputs = (Feed((0, TOKENS), 6, 0, "int32"), None, *table, None, Weight((n,)), Weight((n,)))
    return Case(op, inputs, {"epsilon": 0.1}, 17, MS, outputs=2)


# ---------------------------------------------------------------- quantized
def point(value: int, dtype: str = "uint8") -> Array:
    """Returns a zero point."""
    return np.array(value, dtype)


def scale(value: float = SCALE) -> Array:
    """Returns a scale."""
    return np.array(value, np.float32)


def quantized(
    rng: np.random.Generator, shape: tuple[int, ...], axes: tuple[int, ...] = (1,)
) -> tuple[Data, Array, Array]:
    """Returns a quantized activation, its scale and its zero point."""
    zero = pick(rng, 0, 100, 131)
    return Data(shape, axes, (f"Quantize:{zero}",)), scale(), point(zero)


def columns(rng: np.random.Generator, n: int) -> Numbers:
    """Returns scales and zero points of a weight: one for all, or one for each output."""
    if rng.random() < 0.5:
        return scale(0.02), point(3, "int8")
    return rng.uniform(0.01, 0.03, n).astype(np.float32), rng.integers(-9, 9, n).astype(np.int8)


@generates("QuantizeLinear")
@generates("QuantizeLinear", domain=MS)
def quantize(op: str, rng: np.random.Generator) -> Case:
    """Of an activation."""
    return Case(op, (activation(rng, through=pick(rng, ("Tanh",), ("Sigmoid",))), scale(), point(pick(rng, 0, 131))))


@generates("DequantizeLinear")
def dequantize(op: str, rng: np.random.Generator) -> Case:
    """Of an activation, or of a weight with one scale or a scale for each row or column."""
    if rng.random() < 0.4:
        x, s, z = quantized(rng, (0, size(rng), size(rng)))
        return Case(op, (x, s, pick(rng, z, point(7))))
    shape, axis = (size(rng), size(rng)), pick(rng, 0, 1)
    return Case(op, (Weight(shape, dtype="int8"), *columns(rng, shape[axis])), {"axis": axis}, pick(rng, 13, 21))


@generates("DequantizeLinear", domain=MS)
def dequantize_ms(op: str, rng: np.random.Generator) -> Case:
    """Of an activation."""
    return Case(op, quantized(rng, (0, size(rng), size(rng))), opset=17, domain=MS)


@generates("DynamicQuantizeLinear")
def dynamic_quantize(op: str, rng: np.random.Generator) -> Case:
    """An activation, by its own range."""
    return Case(op, (activation(rng),), outputs=3)


@generates("QLinearConv")
@generates("QLinearConv", domain=MS)
def qlinear_conv(op: str, rng: np.random.Generator) -> Case:
    """Plain, grouped or depthwise."""
    group, c, o = pick(rng, (1, 4, 6), (2, 2, 3), (4, 1, 1))
    inputs: list[Input] = [*quantized(rng, (0, group * c, 5, 5)), Weight((group * o, c, 3, 3), dtype="int8")]
    s, z = columns(rng, group * o)
    inputs += [s, np.zeros_like(z), scale(0.3), point(100)]
    inputs += [Weight((group * o,), dtype="int32")] if rng.random() < 0.5 else []
    return Case(op, tuple(inputs), {"group": group, "pads": [1, 1, 1, 1]}, 17)


@generates("ConvInteger")
def conv_integer(op: str, rng: np.random.Generator) -> Case:
    """A plain convolution."""
    c, o = size(rng), size(rng)
    x, _, z = quantized(rng, (0, c, 5, 5))
    return Case(op, (x, Weight((o, c, 3, 3), dtype="int8"), z, point(2, "int8")), {"pads": [1, 1, 1, 1]})


@generates("QLinearMatMul")
def qlinear_matmul(op: str, rng: np.random.Generator) -> Case:
    """A weight with one scale or a scale for each column."""
    k, n = size(rng), size(rng)
    weight = (Weight((k, n), dtype="int8"), *columns(rng, n))
    return Case(op, (*quantized(rng, (0, TOKENS, k), (2,)), *weight, scale(0.3), point(100)))


@generates("MatMulInteger")
def matmul_integer(op: str, rng: np.random.Generator) -> Case:
    """A weight with one zero point or one for each column."""
    k, n = size(rng), size(rng)
    x, _, z = quantized(rng, (0, TOKENS, k), (2,))
    return Case(op, (x, Weight((k, n), dtype="int8"), z, columns(rng, n)[1]))


@generates("MatMulIntegerToFloat", domain=MS)
def matmul_to_float(op: str, rng: np.random.Generator) -> Case:
    """With scales, zero points and a bias."""
    k, n = size(rng), size(rng)
    (x, s, z), (ws, wz) = quantized(rng, (0, TOKENS, k), (2,)), columns(rng, n)
    return Case(op, (x, Weight((k, n), dtype="int8"), s, ws, z, wz, Weight((n,))), {}, 17, MS)


@generates("DynamicQuantizeMatMul", domain=MS)
def dynamic_matmul(op: str, rng: np.random.Generator) -> Case:
    """A float activation, quantized inside."""
    k, n = size(rng), size(rng)
    x = Data((0, TOKENS, k), (2,), pick(rng, (), ("Sigmoid",)))
    return Case(op, (x, Weight((k, n), dtype="int8"), *columns(rng, n), Weight((n,))), {}, 17, MS)


@generates("DynamicQuantizeLSTM", domain=MS)
def dynamic_cell(op: str, rng: np.random.Generator) -> Case:
    """Either direction or both, one scale for each direction or for each column, with bias and states or without."""
    i, h = size(rng), size(rng, 2, 5)
    direction = pick(rng, "forward", "reverse", "bidirectional")
    d = 2 if direction == "bidirectional" else 1
    numbers: list[Array] = []
    for _ in range(2):
        shape = pick(rng, (d,), (d, 4 * h))
        zeros = rng.integers(-9, 9, shape) if shape == (d,) else np.zeros(shape)  # the runtime takes no others
        numbers += [rng.uniform(0.01, 0.03, shape).astype(np.float32), zeros.astype(np.int8)]
    x = Data((5, 0, i), pick(rng, (2,), ()), pick(rng, (), ("Sigmoid",)))
    state = Data((d, 0, h), (2,)) if rng.random() < 0.5 else None
    weights = Weight((d, i, 4 * h), dtype="int8"), Weight((d, h, 4 * h), dtype="int8"), Weight((d, 8 * h))
    inputs = (x, *weights, None, state, state, None, *numbers)
    return Case(op, inputs, {"hidden_size": h, "direction": direction}, 17, MS, outputs=pick(rng, 1, 3))


@generates("QGemm", domain=MS)
def qgemm(op: str, rng: np.random.Generator) -> Case:
    """With an integer addend, to floats or to integers."""
    k, n = size(rng), size(rng)
    out = (scale(0.3), point(100)) if rng.random() < 0.5 else ()
    addend = Weight((n,), dtype="int32")
    return Case(op, (*quantized(rng, (0, k)), Weight((k, n), dtype="int8"), *columns(rng, n), addend, *out), {}, 17, MS)


@generates("MatMulNBits", domain=MS)
def matmul_nbits(op: str, rng: np.random.Generator) -> Case:
    """Blocks of 16 in 4 or 8 bits."""
    blocks, n, bits = pick(rng, 2, 3), size(rng), pick(rng, 4, 8)
    weight = Weight((n, blocks, 2 * bits), dtype="uint8"), Weight((n, blocks), positive=True)
    attributes = {"K": 16 * blocks, "N": n, "bits": bits, "block_size": 16}
    return Case(op, (Data((0, TOKENS, 16 * blocks), (2,)), *weight), attributes, 17, MS)


@generates("GatherBlockQuantized", domain=MS)
def gather_blocks(op: str, rng: np.random.Generator) -> Case:
    """An embedding in blocks of 16."""
    blocks = pick(rng, 2, 3)
    table = Weight((6, 8 * blocks), dtype="uint8"), Feed((0, TOKENS), 6), Weight((6, blocks), positive=True)
    return Case(op, table, {"bits": 4, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}, 21, MS)


@generates("QLinearAdd", "QLinearMul", domain=MS)
def qlinear_binary(op: str, rng: np.random.Generator) -> Case:
    """Two activations."""
    shape = (0, size(rng), size(rng))
    return Case(op, (*quantized(rng, shape), *quantized(rng, shape), scale(0.1), point(99)), {}, 17, MS)


@generates("QLinearWhere", domain=MS)
def qlinear_where(op: str, rng: np.random.Generator) -> Case:
    """A computed condition."""
    shape = (0, size(rng), size(rng))
    condition = Data(shape, pick(rng, (1,), ()), ("Relu", "Cast:9"))
    return Case(op, (condition, *quantized(rng, shape), *quantized(rng, shape), scale(0.1), point(99)), {}, 17, MS)


@generates("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", domain=MS)
def qlinear_unary(op: str, rng: np.random.Generator) -> Case:
    """One activation."""
    attributes = {"axis": pick(rng, 1, -1), "opset": 13} if op == "QLinearSoftmax" else {}
    out = scale(1 / 256), point(0)
    return Case(op, (*quantized(rng, (0, size(rng), size(rng))), *out), attributes, 17, MS)


@generates("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MS)
def qlinear_pool(op: str, rng: np.random.Generator) -> Case:
    """Channels first."""
    attributes = {"kernel_shape": [2, 2]} if op == "QLinearAveragePool" else {}
    return Case(op, (*quantized(rng, (0, size(rng), 5, 6)), scale(0.1), point(99)), attributes, 17, MS)


@generates("NhwcMaxPool", domain=MS)
def nhwc_max_pool(op: str, rng: np.random.Generator) -> Case:
    """Channels last."""
    return Case(op, (quantized(rng, (0, 5, 6, size(rng)), (3,))[0],), {"kernel_shape": [2, 2]}, 17, MS)


@generates("QLinearConcat", domain=MS)
def qlinear_concat(op: str, rng: np.random.Generator) -> Case:
    """Two activations, one behind the other or side by side."""
    n, axis = size(rng), pick(rng, 1, 2)
    parts = [quantized(rng, (0, n, n)) for _ in range(2)]
    return Case(op, (scale(0.1), point(99), *parts[0], *parts[1]), {"axis": axis}, 17, MS)
