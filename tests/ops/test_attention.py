"""Fused attention and rotary embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
from rows import prove, table

from onnxprune.testing import Case, Consumer, Data, Feed, Weight

MS = "com.microsoft"
T = 3  # tokens


def heads(count: int, size: int) -> Data:
    """Returns queries, keys or values of three axes."""
    return Data((0, T, count * size), (2,))


def four(count: int, size: int) -> Data:
    """Returns queries, keys or values of four axes."""
    return Data((0, count, T, size), (1, 3))


ANGLES = (Weight((8, 2)), Weight((8, 2)))
WIDE = (Weight((8, 8)), Weight((8, 8)))
POSITIONS = Feed((0, T), 8)
START = np.zeros(1, np.int64)
THREE = {"q_num_heads": 4, "kv_num_heads": 2}
# how many tokens there are, less one, of each sample; and at most. The trace tries 1 as well.
LENGTHS = (Feed((0,), T, T - 1, "int32"), np.array(T, np.int32))


def grouped(*inputs: Any, units: tuple[int, ...], outputs: int = 1, why: str = "", **attributes: Any) -> Case:
    """Returns a GroupQueryAttention of q, k and v without a cache, with tables and what follows them."""
    given = (*inputs[:3], None, None, *LENGTHS, *inputs[3:])
    return Case("GroupQueryAttention", given, attributes, 17, MS, outputs=outputs, units=units, why=why)


ROWS = [
    Case(
        "Attention",
        (four(4, 6), four(4, 6), four(4, 5)),
        opset=23,
        units=(5, 6),
        missing=True,
        why="whole heads could go instead",
    ),
    Case(
        "Attention",
        (four(4, 6), four(4, 6), four(4, 5)),
        {"is_causal": 1, "scale": 0.3},
        24,
        units=(5, 6),
        missing=True,
        why="whole heads could go instead",
    ),
    Case(
        "Attention",
        (four(4, 6), four(2, 6), four(2, 5)),
        opset=23,
        units=(5, 6),
        why="two heads read one",
        missing=True,
    ),
    Case(
        "Attention",
        (four(4, 6), four(1, 6), four(1, 5)),
        opset=23,
        units=(5, 6),
        why="all heads read one",
        missing=True,
    ),
    Case(
        "Attention",
        (four(4, 6), four(2, 6), four(2, 5)),
        {"softcap": 2.0},
        23,
        outputs=3,
        units=(5, 6),
        missing=True,
        why="whole heads could go instead",
    ),
    Case(
        "Attention",
        (heads(4, 6), heads(2, 6), heads(2, 5)),
        THREE,
        23,
        units=(5, 6),
        missing=True,
        why="whole heads could go instead",
    ),
    Case(
        "Attention",
        (heads(4, 6), heads(2, 6), heads(2, 5), Weight((T, T))),
        THREE,
        23,
        units=(5, 6),
        missing=True,
        why="whole heads could go instead",
    ),
    Case(
        "Attention",
        (heads(4, 6), heads(2, 6), heads(2, 5), Weight((4, T, T))),
        THREE,
        23,
        units=(5, 6),
        missing=True,
        why="whole heads could go instead",
    ),
    Case(
        "Attention",
        (heads(2, 6), heads(2, 6), heads(2, 1)),
        {"q_num_heads": 2, "kv_num_heads": 2},
        23,
        units=(6,),
        missing=True,
        why="whole heads could go instead",
    ),
    Case("Attention", (heads(3, 1), heads(3, 1), heads(3, 1)), {"q_num_heads": 3, "kv_num_heads": 3}, 23, units=(3,)),
    Case(
        "Attention",
        (heads(4, 6), heads(2, 6), heads(2, 5), None, Data((0, 2, 2, 6), ()), Data((0, 2, 2, 5), ())),
        THREE,
        23,
        outputs=3,
        units=(),
        why="the cache is a graph input",
        missing=True,
    ),
    Case("RotaryEmbedding", (heads(4, 4), *ANGLES, POSITIONS), {"num_heads": 4}, 23, units=(2,)),
    Case("RotaryEmbedding", (heads(4, 4), *ANGLES, POSITIONS), {"num_heads": 4, "interleaved": 1}, 23, units=(2,)),
    Case(
        "RotaryEmbedding",
        (four(3, 4), *ANGLES, POSITIONS),
        opset=23,
        units=(2,),
        missing=True,
        why="whole heads could go instead",
    ),
    Case("RotaryEmbedding", (four(1, 4), *ANGLES, POSITIONS), opset=23, units=(2,)),
    Case(
        "RotaryEmbedding",
        (four(3, 6), *ANGLES, POSITIONS),
        {"rotary_embedding_dim": 4},
        23,
        units=(2, 2),
        missing=True,
        why="whole heads could go instead",
    ),
    Case(
        "RotaryEmbedding",
        (four(3, 4), Data((0, T, 2), ()), Data((0, T, 2), ())),
        opset=23,
        units=(3,),
        why="tables are inputs",
        missing=True,
    ),
    Case("RotaryEmbedding", (heads(4, 4), POSITIONS, *ANGLES), {"num_heads": 4}, 17, MS, units=(2,)),
    Case("RotaryEmbedding", (heads(4, 4), START, *ANGLES), {}, 17, MS, units=(2,)),
    Case("RotaryEmbedding", (heads(4, 16), START, *WIDE), {"interleaved": 1}, 17, MS, units=(8,)),
    Case(
        "RotaryEmbedding",
        (four(3, 4), START, *ANGLES),
        {},
        17,
        MS,
        units=(2,),
        missing=True,
        why="whole heads could go instead",
    ),
    Case(
        "RotaryEmbedding",
        (heads(3, 6), START, *ANGLES),
        {"num_heads": 3, "rotary_embedding_dim": 4},
        17,
        MS,
        units=(2, 2),
    ),
    Case("MultiHeadAttention", (heads(4, 6), heads(4, 6), heads(4, 5)), {"num_heads": 4}, 17, MS, units=(5, 6)),
    Case(
        "MultiHeadAttention",
        (heads(4, 6), heads(4, 6), heads(4, 6), Weight((72,))),
        {"num_heads": 4},
        17,
        MS,
        units=(6, 6),
    ),
    Case(
        "MultiHeadAttention",
        (heads(4, 6), heads(4, 6), heads(4, 5), Weight((68,))),
        {"num_heads": 4, "scale": 0.2},
        17,
        MS,
        units=(5, 6),
    ),
    Case(
        "MultiHeadAttention",
        (heads(4, 6), four(4, 6), four(4, 6)),
        {"num_heads": 4},
        17,
        MS,
        units=(6,),
        missing=True,
        why="whole heads could go instead",
    ),
    Case(
        "MultiHeadAttention",
        (heads(4, 6), heads(4, 6), heads(4, 5), None, None, Weight((1, 4, T, T))),
        {"num_heads": 4},
        17,
        MS,
        units=(5, 6),
    ),
    Case(
        "MultiHeadAttention", (heads(4, 6), heads(4, 6), heads(4, 6)), {"num_heads": 4}, 17, MS, outputs=3, units=(6, 6)
    ),
    grouped(
        heads(4, 8), heads(2, 8), heads(2, 8), num_heads=4, kv_num_heads=2, units=(2,), why="one block of 8 dimensions"
    ),
    grouped(
        heads(4, 24), heads(2, 24), heads(2, 24), num_heads=4, kv_num_heads=2, units=(3,), why="blocks of 8 dimensions"
    ),
    grouped(heads(4, 24), heads(1, 24), heads(1, 24), num_heads=4, kv_num_heads=1, units=(3,), scale=0.3),
    grouped(heads(6, 16), heads(3, 16), heads(3, 16), *WIDE, num_heads=6, kv_num_heads=3, do_rotary=1, units=(3,)),
    grouped(
        heads(2, 32),
        heads(1, 32),
        heads(1, 32),
        Weight((8, 16)),
        Weight((8, 16)),
        num_heads=2,
        kv_num_heads=1,
        do_rotary=1,
        units=(2,),
    ),
    grouped(
        heads(2, 32),
        heads(1, 32),
        heads(1, 32),
        Weight((8, 16)),
        Weight((8, 16)),
        num_heads=2,
        kv_num_heads=1,
        do_rotary=1,
        rotary_interleaved=1,
        units=(2,),
    ),
    grouped(
        heads(2, 64),
        heads(1, 64),
        heads(1, 64),
        Weight((8, 16)),
        Weight((8, 16)),
        num_heads=2,
        kv_num_heads=1,
        do_rotary=1,
        units=(2, 2),
        why="half of them turn",
    ),
    grouped(
        heads(4, 32),
        heads(2, 32),
        heads(2, 32),
        *WIDE,
        num_heads=4,
        kv_num_heads=2,
        do_rotary=1,
        units=(2,),
        why="half of them turn",
    ),
    grouped(heads(8, 8), None, None, num_heads=4, kv_num_heads=2, units=(2,), why="packed"),
    grouped(heads(8, 16), None, None, num_heads=4, kv_num_heads=2, units=(2,), why="packed"),
    grouped(
        heads(4, 24),
        heads(2, 24),
        heads(2, 24),
        None,
        None,
        None,
        Weight((1, 4, T, T)),
        num_heads=4,
        kv_num_heads=2,
        units=(3,),
    ),
    grouped(
        heads(4, 8),
        heads(2, 8),
        heads(2, 8),
        None,
        None,
        None,
        None,
        Weight((4,)),
        num_heads=4,
        kv_num_heads=2,
        units=(2,),
    ),
    Case(
        "Attention",
        (Data((0, T, 7), (2,)), Weight((7, 72)), Weight((72,))),
        {"num_heads": 4},
        17,
        MS,
        units=(6, 6, 7),
        summed=(7, 12),
    ),
    Case(
        "Attention",
        (Data((0, T, 7), (2,)), Weight((7, 72)), Weight((72,))),
        {"num_heads": 4, "unidirectional": 1, "scale": 0.2},
        17,
        MS,
        units=(6, 6, 7),
        summed=(7, 12),
    ),
    Case(
        "Attention",
        (Data((0, T, 7), (2,)), Weight((7, 68)), Weight((68,))),
        {"num_heads": 4, "qkv_hidden_sizes": [24, 24, 20]},
        17,
        MS,
        units=(5, 6, 7),
        summed=(7, 11),
    ),
    Case(
        "Attention",
        (Data((0, T, 7), (2,)), Weight((7, 72)), Weight((72,)), None, None, Weight((1, 4, T, T))),
        {"num_heads": 4},
        17,
        MS,
        units=(6, 6, 7),
        summed=(7, 12),
    ),
    Case(
        "Attention",
        (Data((0, T, 7), (2,)), Weight((7, 72)), Weight((72,))),
        {"num_heads": 4},
        17,
        MS,
        outputs=2,
        units=(6, 7),
    ),
]


@table(ROWS)
def test_a_cut_is_exact(case: Case, consumer: Consumer) -> None:
    prove(case, consumer)
