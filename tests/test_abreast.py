"""Batches that are worked on side by side: in order, not too many at a time, and the same for any number of workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from test_compensation import Step, network
from threadpoolctl import threadpool_info

import onnxprune
from onnxprune.abreast import abreast
from onnxprune.refit import gathering


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_at_first(k: int) -> int:
        time.sleep(0.02 if k == 0 else 0)
        return 10 * k

    assert list(abreast(slow_at_first, range(7), 3)) == [0, 10, 20, 30, 40, 50, 60]


def test_no_more_items_are_taken_than_workers_can_soon_use() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for k in range(20):
            taken.append(k)
            yield k

    results = abreast(lambda k: k, items(), 2)
    assert next(results) == 0
    assert len(taken) <= 5
    results.close()


def test_an_error_is_the_callers() -> None:
    def broken(k: int) -> int:
        raise ValueError(f"item {k}")

    with pytest.raises(ValueError, match="item 0"):
        list(abreast(broken, range(3), 2))


def test_workers_see_numbers_as_the_caller_does_and_products_have_one_thread() -> None:
    def blas(_: int) -> list[int]:
        np.float32(1) / np.float32(0)  # a warning is an error here
        return blas_threads()

    before = blas_threads()
    with np.errstate(all="ignore"):
        assert all(set(found) <= {1} for found in abreast(blas, range(4), 2))
    assert blas_threads() == before


def blas_threads() -> list[int]:
    return [found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"]


def convolutions() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Returns three convolutions with a Relu behind each, and inputs of several batches."""
    rng = np.random.default_rng(0)
    weights = {f"w{k}": rng.standard_normal((o, i, 3, 3)) * 0.3 for k, (i, o) in enumerate(pairwise([3, 12, 16, 8]))}
    steps: list[Step] = []
    for k, name in enumerate(weights):
        before, behind = "x" if k == 0 else f"r{k - 1}", f"r{k}" if k < 2 else "y"
        steps += [("Conv", [before, name], [f"c{k}"], {"pads": [1, 1, 1, 1]}), ("Relu", [f"c{k}"], [behind], {})]
    model = network(steps, ("n", 3, 10, 10), weights)
    return model, {"x": rng.standard_normal((300, 3, 10, 10)).astype(np.float32)}


def pruned(jobs: int) -> onnx.ModelProto:
    model, inputs = convolutions()
    return ir.to_proto(onnxprune.prune(model, ratio=0.5, calibration=inputs, jobs=jobs).model)


def test_refits_do_not_hang_on_the_number_of_workers() -> None:
    threads = threading.active_count()
    first, *others = (pruned(jobs).SerializeToString() for jobs in (1, 2, 5))
    assert all(other == first for other in others)
    assert len(first) < convolutions()[0].ByteSize()
    assert threading.active_count() == threads


def test_wide_layers_go_batch_by_batch_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = pruned(2)
    monkeypatch.setattr(gathering, "WIDE", 4)
    monkeypatch.setattr(gathering, "abreast", None)
    alone = pruned(2)
    for a, b in zip(workers.graph.initializer, alone.graph.initializer, strict=True):
        np.testing.assert_allclose(numpy_helper.to_array(b), numpy_helper.to_array(a), rtol=1e-3, atol=1e-4)
