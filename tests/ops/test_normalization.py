"""Normalisations."""

from __future__ import annotations

from rows import prove, table

from onnxprune.testing import Case, Consumer, Data, Weight

X = Data((0, 8, 5, 4))
SHIFTED = Data((0, 8, 5, 4), (1,), ("Sigmoid",))
C = Weight((8,))
STATISTICS = (C, C, C, Weight((8,), positive=True))
ROWS = [
    *(Case("BatchNormalization", (X, *STATISTICS), opset=version, units=(8,)) for version in (7, 9, 14, 15)),
    Case("BatchNormalization", (SHIFTED, *STATISTICS), {"epsilon": 1e-3}, units=(8,), why="scale and bias go too"),
    Case("BatchNormalization", (Data((0, 8)), *STATISTICS), units=(8,)),
    Case("BatchNormalization", (Data((0, 8, 5), (2,)), *STATISTICS), units=(5,), summed=(), why="one axis passes"),
    Case("BatchNormalization", (X, *STATISTICS), {"training_mode": 1}, 14, outputs=3, units=(8,)),
    Case("BatchNormalization", (X, *STATISTICS), {"training_mode": 1}, 15, outputs=3, units=(8,)),
    Case(
        "BatchNormalization",
        (SHIFTED, *STATISTICS),
        {"training_mode": 1},
        15,
        outputs=3,
        units=(8,),
        summed=(),
        why="the running statistics are those of slots that are not zero",
    ),
    Case(
        "BatchNormalization",
        (Data((0, 8, 5), (2,)), *STATISTICS),
        {"training_mode": 1},
        15,
        outputs=3,
        units=(),
        why="statistics over the batch and axis 2",
    ),
    Case("InstanceNormalization", (X, C, C), units=(8,)),
    Case("InstanceNormalization", (SHIFTED, C, C), opset=7, units=(8,)),
    Case("InstanceNormalization", (Data((0, 8, 5), (2,)), C, C), units=(), why="normalised over axis 2"),
    Case("GroupNormalization", (X, Weight((4,)), Weight((4,))), {"num_groups": 4}, 18, units=(4,)),
    Case("GroupNormalization", (X, C, C), {"num_groups": 4}, 21, units=(4,)),
    Case("GroupNormalization", (SHIFTED, C, C), {"num_groups": 2}, 21, units=(2,)),
    Case("GroupNormalization", (X, C, C), {"num_groups": 8}, 21, units=(8,)),
    Case("GroupNormalization", (X, C, C), {"num_groups": 8}, 18, units=(8,)),
    Case("GroupNormalization", (X, C, C), {"num_groups": 1}, 21, units=(), why="one norm group of all channels"),
    Case(
        "GroupNormalization", (Data((0, 8, 5), (2,)), C, C), {"num_groups": 4}, units=(), why="normalised over axis 2"
    ),
    Case(
        "LayerNormalization", (Data((0, 6, 8), (2,)), C, C), opset=17, units=(), why="the variance runs over the axis"
    ),
    Case("LayerNormalization", (Data((0, 6, 8), (1,)), C, C), opset=17, units=(6,), summed=()),
    Case("LayerNormalization", (Data((0, 6, 8), (1,)), C), {"axis": 2}, opset=17, outputs=3, units=(6,), summed=()),
    Case("LayerNormalization", (Data((0, 6, 8), (1,)), Weight((6, 8))), {"axis": 1}, units=(), why="both axes"),
    Case(
        "RMSNormalization", (Data((0, 6, 8), (2,)), C), opset=23, units=(8,), why="epsilon and scale restore the mean"
    ),
    Case("RMSNormalization", (Data((0, 6, 8), (2,)), C), {"epsilon": 0.1}, 23, units=(8,)),
    Case("RMSNormalization", (Data((0, 6, 8), (2,), ("Sigmoid",)), C), opset=23, units=(), why="slots are not zero"),
    Case("RMSNormalization", (Data((0, 6, 8), (1,)), C), opset=23, units=(6,)),
    Case("RMSNormalization", (Data((0, 2, 8), (1, 2)), Weight((2, 8))), {"axis": 1}, 23, units=(8,)),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)
