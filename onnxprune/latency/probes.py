"""One node at a time: how long its kernel takes at given shapes, on a provider and a number of threads.

The node stands alone in a session with all optimisations. Its time is read off onnxruntime's profile, where the layout
changes at the borders of the session stand apart: within a network the neighbours share a layout and they are not
there. Interruptions only ever add to a time, so the mean of the fastest quarter of many short runs is taken; of a
single thread its own time is known, too, and counts where it is less.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.errors import RunError
from onnxprune.graph.runtime import open_for_timing
from onnxprune.latency.timing import Run, runner

__all__ = ["Operand", "Probe", "fastest", "kernel_time", "measure"]

AT_THE_BORDER = frozenset({"ReorderInput", "ReorderOutput", "MemcpyFromHost", "MemcpyToHost"})
LONG_ENOUGH = 0.03  # seconds of one measurement
LEAST_RUNS, MOST_RUNS = 12, 300


@dataclass(frozen=True)
class Operand:
    """One input of a node.

    Attributes:
        dtype: ONNX's number of its type.
        shape: its shape.
        constant: whether the node finds it as a constant.
        data: its contents where they matter (numbers of few elements), as bytes.
    """

    dtype: int
    shape: tuple[int, ...]
    constant: bool
    data: bytes | None = None


@dataclass(frozen=True)
class Probe:
    """A node at given shapes.

    Attributes:
        node: the serialized node with its attributes, without names.
        opsets: pairs of domain and version.
        inputs: one for each input, None where it is absent.
        outputs: the type of each output, None where it is absent.
    """

    node: bytes
    opsets: tuple[tuple[str, int], ...]
    inputs: tuple[Operand | None, ...]
    outputs: tuple[int | None, ...]

    @property
    def key(self) -> str:
        """What tells the probe from others, the same on every machine."""
        proto = onnx.NodeProto.FromString(self.node)
        shapes = ",".join("-" if i is None else "x".join(map(str, i.shape)) for i in self.inputs)
        digest = hashlib.sha256(repr((self.node, self.opsets, self.inputs, self.outputs)).encode()).hexdigest()
        return f"{proto.op_type} {shapes} {digest[:16]}"

    def model(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """Returns a model of the node alone, and what to feed it."""
        rng = np.random.default_rng(0)
        node = onnx.NodeProto.FromString(self.node)
        feed: dict[str, np.ndarray] = {}
        graph = onnx.GraphProto(name="probe")
        for k, operand in enumerate(self.inputs):
            name = "" if operand is None else f"in{k}"
            node.input.append(name)
            if operand is None:
                continue
            array = _content(operand, rng)
            if operand.constant:
                graph.initializer.append(numpy_helper.from_array(array, name))
            else:
                graph.input.append(helper.make_tensor_value_info(name, operand.dtype, list(operand.shape)))
                feed[name] = array
        for k, dtype in enumerate(self.outputs):
            node.output.append("" if dtype is None else f"out{k}")
            if dtype is not None:
                graph.output.append(helper.make_tensor_value_info(f"out{k}", dtype, None))
        graph.node.append(node)
        imports = [helper.make_opsetid(domain, version) for domain, version in self.opsets]
        return helper.make_model(graph, opset_imports=imports, ir_version=8), feed


def _content(operand: Operand, rng: np.random.Generator) -> np.ndarray:
    """Returns an array for an operand: never denormal, never zero."""
    dtype: np.dtype[Any] = np.dtype(helper.tensor_dtype_to_np_dtype(operand.dtype))
    if operand.data is not None:
        return np.asarray(np.frombuffer(operand.data, dtype)).reshape(operand.shape)
    if dtype.kind in "iub":
        return np.asarray(rng.integers(1, 100, operand.shape)).astype(dtype)
    return np.asarray(rng.uniform(0.5, 1, operand.shape) * rng.choice((-0.1, 0.1), operand.shape)).astype(dtype)


def measure(probe: Probe, providers: Sequence[str], threads: int) -> float:
    """Returns the milliseconds of one node's kernel.

    Args:
        probe: the node.
        providers: onnxruntime's names of execution providers, in order.
        threads: how many work on it; 0 is the provider's own choice.

    Raises:
        ModelError, ProviderError, RunError: the node does not run alone.
    """
    try:
        model, feed = probe.model()
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"a node cannot be run alone ({error})") from error
    return kernel_time(model, feed, providers, threads, without=AT_THE_BORDER)


def kernel_time(
    model: onnx.ModelProto | Path,
    feed: Mapping[str, np.ndarray],
    providers: Sequence[str],
    threads: int,
    *,
    without: frozenset[str] = frozenset(),
    seconds: float = LONG_ENOUGH,
) -> float:
    """Returns the milliseconds of all kernels of a model, or of a whole run where kernels run by themselves.

    Args:
        model: a message, or the path of a model.
        feed: arrays by input name.
        providers: onnxruntime's names of execution providers, in order.
        threads: how many work on one operator; 0 is the provider's own choice.
        without: operators to leave out.
        seconds: how long to measure at least.

    Raises:
        ModelError, ProviderError, RunError: the model does not run.
    """
    if tuple(providers) != ("CPUExecutionProvider",):  # others return before the work is done
        run = runner(open_for_timing(model, providers, threads), feed)
        return 1e3 * fastest(_timed(run, time.perf_counter, seconds))
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        session = open_for_timing(model, providers, threads, profile=Path(folder) / "kernels")
        try:
            whole = _timed(runner(session, feed), time.thread_time, seconds)
        finally:
            written = Path(session.end_profiling())
        kernels = list(_kernels(json.loads(written.read_text(encoding="utf-8"))))
    kept = sum(fastest(ms) for op, ms in kernels if op not in without)
    if (
        threads == 1 and kernels
    ):  # the time of this thread alone, which nothing interrupts; the larger part for the rest
        left_out = sum(fastest(ms) for op, ms in kernels if op in without)
        return min(kept, max(1e3 * fastest(whole) - left_out, kept / 4))
    return kept if kernels else 1e3 * fastest(whole)


def _kernels(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[float]]]:
    """Yields the operator and the milliseconds of each kernel of a profile, the first run left out."""
    found: dict[str, tuple[str, list[float]]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            op = str(event["args"].get("op_name"))
            found.setdefault(name, (op, []))[1].append(event["dur"] * 1e-3)
    for op, times in found.values():
        yield op, times[1:]


def _timed(run: Run, clock: Callable[[], float], seconds: float) -> list[float]:
    """Returns the seconds of runs by a clock, the first one left out."""
    run()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while len(found) < LEAST_RUNS or (len(found) < MOST_RUNS and time.perf_counter() < end):
        start = clock()
        run()
        found.append(clock() - start)
    return found


def fastest(times: Sequence[float]) -> float:
    """Returns the mean of the fastest quarter: what interrupted a run only ever added to it."""
    found = np.sort(np.asarray(times, np.float64))
    return float(found[: max(len(found) // 4, 1)].mean())
