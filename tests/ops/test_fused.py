"""Operators that onnxruntime fuses."""

from __future__ import annotations

from typing import Any

from rows import prove, table

from onnxprune.testing import Case, Consumer, Data, Feed, Weight

MS = "com.microsoft"
PICTURE, WIDE = Data((0, 6, 5, 5)), Data((0, 8, 5, 5))
SQUARE = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
TOKENS = Data((0, 4, 8), (2,))
SHIFTED = Data((0, 4, 8), (2,), ("Sigmoid",))
C = Weight((8,))


def fused_conv(
    *inputs: Any,
    units: tuple[int, ...],
    summed: tuple[int, ...] | None = None,
    missing: bool = False,
    why: str = "",
    **attributes: Any,
) -> Case:
    given = {**SQUARE, **attributes}
    return Case("FusedConv", inputs, given, 17, MS, units=units, summed=summed, missing=missing, why=why)


ROWS = [
    fused_conv(PICTURE, Weight((8, 6, 3, 3)), C, activation="Relu", units=(6, 8)),
    fused_conv(PICTURE, Weight((8, 6, 3, 3)), activation="Tanh", units=(6, 8)),
    fused_conv(PICTURE, Weight((8, 6, 3, 3)), C, activation="Sigmoid", units=(6, 8), summed=(6,)),
    fused_conv(
        PICTURE,
        Weight((8, 6, 3, 3)),
        C,
        activation="HardSigmoid",
        activation_params=[0.2, 0.5],
        units=(6, 8),
        summed=(6,),
    ),
    fused_conv(PICTURE, Weight((8, 6, 3, 3)), C, activation="LeakyRelu", activation_params=[0.1], units=(6, 8)),
    fused_conv(PICTURE, Weight((8, 6, 3, 3)), C, activation="Clip", activation_params=[0.0, 6.0], units=(6, 8)),
    fused_conv(
        PICTURE, Weight((8, 6, 3, 3)), C, activation="Clip", activation_params=[0.5, 6.0], units=(6, 8), summed=(6,)
    ),
    fused_conv(PICTURE, Weight((8, 6, 3, 3)), C, WIDE, activation="Relu", units=(6, 8)),
    fused_conv(PICTURE, Weight((8, 6, 3, 3)), C, WIDE, units=(6, 8)),
    fused_conv(
        PICTURE,
        Weight((8, 6, 3, 3)),
        C,
        Data((0, 8, 5, 5), (1,), ("Sigmoid",)),
        activation="Relu",
        units=(6, 8),
        summed=(6,),
    ),
    fused_conv(WIDE, Weight((8, 1, 3, 3)), C, group=8, activation="Relu", units=(8,)),
    fused_conv(
        WIDE,
        Weight((6, 4, 3, 3)),
        Weight((6,)),
        Data((0, 6, 5, 5)),
        group=2,
        activation="Relu",
        units=(3, 4),
        missing=True,
        why="other channels in each group",
    ),
    Case("FusedGemm", (Data((0, 6)), Weight((6, 8)), C), {"activation": "Relu"}, 17, MS, units=(6, 8)),
    Case(
        "FusedGemm",
        (Data((0, 6)), Weight((8, 6)), C),
        {"activation": "LeakyRelu", "activation_alpha": 0.1, "transB": 1},
        17,
        MS,
        units=(6, 8),
    ),
    Case(
        "FusedGemm",
        (Data((0, 6)), Weight((8, 6)), C),
        {"activation": "Sigmoid", "transB": 1},
        17,
        MS,
        units=(6, 8),
        summed=(6,),
    ),
    Case("FusedMatMul", (Data((0, 4, 6), (2,)), Weight((6, 8))), {"alpha": 0.5}, 17, MS, units=(6, 8)),
    Case("FusedMatMul", (Data((0, 4, 6), (2,)), Weight((8, 6))), {"transB": 1}, 17, MS, units=(6, 8)),
    Case("FusedMatMul", (Data((0, 6, 4), (1,)), Weight((6, 8))), {"transA": 1}, 17, MS, units=(6, 8)),
    Case(
        "FusedMatMul",
        (Data((0, 3, 4, 6), (3,)), Data((0, 3, 5, 6), (3,))),
        {"transB": 1, "alpha": 0.25},
        17,
        MS,
        units=(6,),
    ),
    Case(
        "FusedMatMul",
        (Data((0, 3, 4, 6), (1, 3)), Data((0, 3, 5, 6), (1, 3))),
        {"transB": 1},
        17,
        MS,
        units=(3,),
        summed=(6,),
        why="whole heads where weights read them",
        missing=True,
    ),
    Case("FusedMatMul", (Data((4, 0, 6), (2,)), Data((0, 6, 5), (1,))), {"transBatchA": 1}, 17, MS, units=(6,)),
    Case("FusedMatMul", (Data((0, 4, 6), (2,)), Data((6, 0, 5), (0,))), {"transBatchB": 1}, 17, MS, units=(6,)),
    Case("TransposeMatMul", (Data((0, 4, 6), (2,)), Weight((8, 6))), {"transB": 1}, 17, MS, units=(6, 8)),
    Case("BiasGelu", (TOKENS, C), {}, 17, MS, units=(8,)),
    Case("FastGelu", (TOKENS, C), {}, 17, MS, units=(8,)),
    Case("FastGelu", (TOKENS,), {}, 17, MS, units=(8,)),
    Case("QuickGelu", (TOKENS,), {"alpha": 1.7}, 17, MS, units=(8,)),
    Case("Gelu", (TOKENS,), {}, 17, MS, units=(8,)),
    Case(
        "SkipLayerNormalization",
        (TOKENS, TOKENS, C, C),
        {"epsilon": 1e-6},
        17,
        MS,
        units=(),
        why="the variance runs over it",
    ),
    Case(
        "SkipLayerNormalization",
        (Data((0, 4, 8), (1,)), Data((0, 4, 8), (1,)), C, C, C),
        {},
        17,
        MS,
        units=(4,),
        summed=(),
    ),
    Case("SkipSimplifiedLayerNormalization", (TOKENS, TOKENS, C), {"epsilon": 1e-3}, 17, MS, units=(8,)),
    Case("SkipSimplifiedLayerNormalization", (TOKENS, TOKENS, C, C), {"epsilon": 0.1}, 17, MS, units=(8,)),
    Case(
        "SkipSimplifiedLayerNormalization",
        (TOKENS, SHIFTED, C),
        {"epsilon": 0.1},
        17,
        MS,
        units=(),
        why="slots are not zero",
    ),
    Case("SimplifiedLayerNormalization", (TOKENS, C), {"epsilon": 0.1, "axis": -1, "stash_type": 1}, 17, units=(8,)),
    Case("SimplifiedLayerNormalization", (TOKENS, C), {"axis": -1, "stash_type": 1}, 17, units=(8,)),
    Case(
        "SimplifiedLayerNormalization",
        (SHIFTED, C),
        {"axis": -1, "stash_type": 1},
        17,
        units=(),
        why="slots are not zero",
    ),
    Case(
        "EmbedLayerNormalization",
        (Feed((0, 4), 10, dtype="int32"), None, Weight((10, 8)), Weight((4, 8)), None, C, C),
        {"epsilon": 1e-6},
        17,
        MS,
        outputs=2,
        units=(),
        why="the variance runs over the channels",
    ),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)
