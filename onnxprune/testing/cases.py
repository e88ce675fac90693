"""A row of a rule's table, and the small model that is built around it.

The model of a `Case` is: graph inputs -> a matrix product for every `Data` input, which labels the axes that the row
names -> the operator -> a consumer -> outputs. The consumer `matmul` reads every cell through a weight of its own, so
that any cut is exact for it. The consumer `sum` adds all cells up, so that a cut is exact only if its slots are zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

__all__ = ["Case", "Consumer", "Data", "Feed", "Input", "Weight", "build", "feeds", "run"]

Consumer = Literal["matmul", "sum"]
LATENT = 3  # how many numbers of a graph input make one cell of a labelled axis
SCALE = 0.05  # of quantized activations
BATCH = 0  # stands in a shape for the dynamic batch size
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Data:
    """An activation whose cells along `axes` (jointly) are made by a weight; 0 in `shape` is the dynamic batch.

    Attributes:
        shape: its sizes.
        axes: the labelled ones; none makes it a graph input.
        through: unary operators behind it (`Cast:7` casts to type 7, `Quantize:9` to uint8 with scale `SCALE` and
            zero point 9), to have positive numbers, integers, or slots that are not zero when cut.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...] = (1,)
    through: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weight:
    """A random constant, all of whose axes can be labelled."""

    shape: tuple[int, ...]
    positive: bool = False
    dtype: str = "float32"


@dataclass(frozen=True)
class Feed:
    """A graph input of integers or booleans from `low` to below `high`; 0 in `shape` is the dynamic batch."""

    shape: tuple[int, ...]
    high: int = 2
    low: int = 0
    dtype: str = "int64"


Input = Data | Weight | Feed | Array | None


@dataclass(frozen=True, eq=False)
class Case:
    """One operator with inputs and attributes, and what may be cut around it.

    Attributes:
        op: the operator's type.
        inputs: its inputs; an array is a constant of exactly these numbers.
        attributes: its attributes.
        opset: version of its domain (of ai.onnx where the domain is another one too).
        domain: "" for ai.onnx.
        outputs: how many outputs it has.
        units: sizes of the pruning groups around it, sorted, by the specification of the operator; None where unknown.
        summed: the same under the consumer `sum`, None where it is as `units`.
        stuck: whether some cuts cannot be made, because sizes in the graph can't follow them.
        missing: whether brute force finds slots that could go too; `why` says why they stay.
        why: why an axis is not free, or which form of the operator this is.
    """

    op: str
    inputs: tuple[Input, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 21
    domain: str = ""
    outputs: int = 1
    units: tuple[int, ...] | None = None
    summed: tuple[int, ...] | None = None
    stuck: bool = False
    missing: bool = False
    why: str = ""

    def __str__(self) -> str:
        def one(x: Input) -> str:
            if x is None:
                return "-"
            if isinstance(x, np.ndarray):
                return f"const{x.tolist()}" if x.size <= 8 else f"const{list(x.shape)}"
            shape = ",".join("N" if n == BATCH else str(n) for n in x.shape)
            if isinstance(x, Data):
                marks = "".join(f"|{name}" for name in x.through)
                return f"x[{shape}]@{','.join(map(str, x.axes))}{marks}"
            return f"{'w' if isinstance(x, Weight) else 'feed'}[{shape}]"

        attributes = ", ".join(f"{k}={v}" for k, v in self.attributes.items())
        name = f"{self.domain}::{self.op}" if self.domain else self.op
        return f"{name}-{self.opset}({', '.join(map(one, self.inputs))}{'; ' if attributes else ''}{attributes})"


class _Builder:
    """Collects the nodes of one model."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.rng = case, np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count = 0

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def node(
        self, op: str, inputs: Sequence[str], *, outputs: Sequence[str] = (), domain: str = "", **attrs: Any
    ) -> str:
        names = list(outputs) or [self.name(op.lower())]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, name=f"{op}_{len(self.nodes)}", domain=domain, **attrs)
        )
        return names[0]

    def constant(self, content: Array, stem: str = "c") -> str:
        name = self.name(stem)
        self.initializers.append(numpy_helper.from_array(np.array(content, order="C"), name))
        return name

    def weight(self, shape: Sequence[int], *, positive: bool = False, dtype: str = "float32") -> str:
        if np.dtype(dtype).kind in "iu":
            return self.constant(self.rng.integers(1, 65, shape).astype(dtype), "w")  # two products fit into 16 bits
        values = self.rng.normal(size=shape)
        signs = np.where((values < 0) & (not positive), -1.0, 1.0)
        return self.constant((signs * (0.3 + np.abs(values))).astype(dtype), "w")  # none is near 0: a cut is seen

    def graph_input(self, shape: Sequence[int], dtype: str = "float32") -> str:
        name = self.name("x")
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, ["N" if n == BATCH else n for n in shape]))
        return name

    def add(self, given: Input) -> str:
        """Returns the name of an input, made as its kind says."""
        if given is None:
            return ""
        if isinstance(given, np.ndarray):
            return self.constant(given)
        if isinstance(given, Weight):
            return self.weight(given.shape, positive=given.positive, dtype=given.dtype)
        if isinstance(given, Feed):
            return self.graph_input(given.shape, given.dtype)
        return self.data(given)

    def data(self, given: Data) -> str:
        """Returns an activation: matrix product over a latent axis, reshaped and transposed into its place."""
        rest = [k for k in range(len(given.shape)) if k not in given.axes]
        if not given.axes:
            value = self.graph_input(given.shape)
        else:
            cells = [given.shape[k] for k in given.axes]
            source = self.graph_input([*(given.shape[k] for k in rest), LATENT])
            value = self.node("MatMul", [source, self.weight([LATENT, int(np.prod(cells))])])
            if len(cells) > 1:
                value = self.node("Reshape", [value, self.constant(np.array([0] * len(rest) + cells, np.int64))])
            order = [*rest, *given.axes]
            perm = [order.index(k) for k in range(len(order))]
            if perm != sorted(perm):
                value = self.node("Transpose", [value], perm=perm)
        for step in given.through:
            op, _, to = step.partition(":")
            if op == "Quantize":
                numbers = [self.constant(np.array(SCALE, np.float32)), self.constant(np.array(int(to), np.uint8))]
                value = self.node("QuantizeLinear", [value, *numbers])
            else:
                attributes: dict[str, Any] = {"to": int(to)} if to else {}
                value = self.node(op, [value], **attributes)
        return value

    def operator(self) -> list[str]:
        """Adds the operator and returns its outputs' names."""
        case = self.case
        names = [self.add(x) for x in case.inputs]
        outs = [f"y_{k}" for k in range(case.outputs)]
        self.node(case.op, names, outputs=outs, domain=case.domain, **case.attributes)
        return outs

    def model(self, outputs: Sequence[onnx.ValueInfoProto]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "case", self.inputs, list(outputs), self.initializers)
        imports = [helper.make_opsetid("", self.case.opset)]
        if self.case.domain:
            imports.append(helper.make_opsetid(self.case.domain, 1))
        version = helper.find_min_ir_version_for([imports[0]], ignore_unknown=True)
        return helper.make_model(
            graph, opset_imports=imports, ir_version=max(version, 4), producer_name="onnxprune.testing"
        )


def build(case: Case, consumer: Consumer = "matmul", seed: int = 0) -> onnx.ModelProto:
    """Returns the model around a case.

    Args:
        case: the operator with its inputs.
        consumer: how its outputs are read.
        seed: of all weights.

    Raises:
        ValueError: an output has two dynamic axes, which no consumer here can read.
    """
    b = _Builder(case, seed)
    names = b.operator()
    probe = b.model([helper.make_empty_tensor_value_info(n) for n in names])
    sizes = run(probe, *(feeds(probe, n, seed) for n in (2, 3)))
    outputs = []
    for name, one, other in zip(names, *sizes, strict=True):
        moving = [k for k, (m, n) in enumerate(zip(one.shape, other.shape, strict=True)) if m != n]
        if len(moving) > 1:
            raise ValueError(f"{case}: output {name} has {len(moving)} dynamic axes")
        value = name
        if one.dtype != np.float32:
            value = b.node("Cast", [value], to=onnx.TensorProto.FLOAT)
        outputs.append(_consume(b, value, one.shape, moving[0] if moving else None, consumer))
    return b.model(outputs)


def bare(case: Case, contents: Sequence[Array | None]) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Returns a model of the operator alone, and what to feed it; the constants of the case stay constants."""
    b = _Builder(case, 0)
    names, feed = [], {}
    for given, content in zip(case.inputs, contents, strict=True):
        if content is None:
            names.append("")
        elif isinstance(given, np.ndarray):
            names.append(b.constant(content))
        else:
            names.append(b.graph_input(content.shape, str(content.dtype)))
            feed[names[-1]] = content
    outs = [f"y_{k}" for k in range(case.outputs)]
    b.node(case.op, names, outputs=outs, domain=case.domain, **case.attributes)
    return b.model([helper.make_empty_tensor_value_info(n) for n in outs]), feed


def _consume(
    b: _Builder, value: str, shape: Sequence[int], batch: int | None, consumer: Consumer
) -> onnx.ValueInfoProto:
    """Adds the nodes that read one output of the operator; a static output becomes a weight of a layer."""
    out = b.name("out")
    if batch is None:
        if not shape:
            value, shape = b.node("Reshape", [value, b.constant(np.array([1], np.int64))]), (1,)
        flat = b.node("Flatten", [value], axis=1 if len(shape) > 1 else 0)
        rows = shape[0] if len(shape) > 1 else 1
        hidden = b.node("MatMul", [b.graph_input([BATCH, LATENT]), b.weight([LATENT, rows])])
        value, shape, batch = b.node("MatMul", [hidden, flat]), (2, int(np.prod(shape)) // rows), 0
    if batch:
        value = b.node("Transpose", [value], perm=[batch, *(k for k in range(len(shape)) if k != batch)])
    cells = int(np.prod(shape)) // shape[batch]
    if consumer == "matmul":
        if len(shape) != 2:
            value = b.node("Flatten", [value], axis=1)
        b.node("MatMul", [value, b.weight([cells, 2])], outputs=[out])
        return helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, ["N", 2])
    axes = list(range(1, len(shape)))
    if not axes:
        b.node("Identity", [value], outputs=[out])
    elif b.case.opset >= 13:
        b.node("ReduceSum", [value, b.constant(np.array(axes, np.int64))], outputs=[out], keepdims=0)
    else:
        b.node("ReduceSum", [value], outputs=[out], keepdims=0, axes=axes)
    return helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, ["N"])


def feeds(model: onnx.ModelProto, batch: int, seed: int, case: Case | None = None) -> dict[str, Array]:
    """Returns random inputs for a model of `build` at one batch size; integers lie in the range that `case` says."""
    rng = np.random.default_rng([seed, batch])
    ranges = [x for x in case.inputs if isinstance(x, Feed)] if case else []
    found: dict[str, Array] = {}
    for v in model.graph.input:
        shape = [batch if d.dim_param else d.dim_value for d in v.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
        if dtype.kind == "f":
            found[v.name] = rng.normal(size=shape).astype(dtype)
        else:
            low, high = (ranges[0].low, ranges[0].high) if ranges else (1, 2)
            ranges = ranges[1:]
            found[v.name] = rng.integers(low, high, shape).astype(dtype)
    return found


def run(model: onnx.ModelProto, *inputs: Mapping[str, Array]) -> list[list[Array]]:
    """Returns the outputs that onnxruntime computes for each of the inputs, with basic optimisations, on one thread."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [[np.asarray(y) for y in session.run(None, dict(i))] for i in inputs]
