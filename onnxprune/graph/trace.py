"""The sizes of everything in a graph, read off two tiny runs in onnxruntime at different dynamic sizes.

What differs between the runs is dynamic; what does not depend on the data of the inputs (shape arithmetic, tables) is
kept with its contents. The graph that is run is the model's own with a `Shape` node behind every value: activations are
never fetched. Large weights enter as inputs, so that they are neither serialized nor copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.errors import ModelError, ProviderError, RunError, quote
from onnxprune.graph import guard
from onnxprune.graph import inputs as model_inputs
from onnxprune.graph.constants import Constants, constants
from onnxprune.graph.dependence import Dependence, captured, dependence, subgraphs
from onnxprune.graph.runtime import Clock, first_line, open_session

__all__ = ["CONTENTS_LIMIT", "Trace", "trace"]

CONTENTS_LIMIT = 65536
"""Values with more elements than this have a shape in the trace, but no contents."""

_FED_FROM = 4096  # float weights with more elements are fed, not serialized
_INSIDE = 1 << 29  # bytes of weights that may be serialized; protobuf ends at 2 GiB
_ZEROS_FROM = 1 << 30  # bytes of fed weights from which zeros, the same ones for all, stand for them

Feed = dict[str, np.ndarray]
Pair = tuple[np.ndarray, np.ndarray]
Fed = Literal["floats", "all", "none"]


@dataclass(frozen=True)
class Trace:
    """What two runs told. Keys are the names of top-level values; sequences, optionals and maps are left out.

    Attributes:
        shapes: concrete shapes in run A and in run B.
        values: contents in both runs of static values up to `CONTENTS_LIMIT` elements, constants among them.
        static: values that do not depend on the data of the inputs (they may depend on their shapes).
        dtypes: numpy's type of every value.
        feeds: what the inputs were in run A and in run B.
    """

    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    values: dict[str, Pair]
    static: frozenset[str]
    dtypes: dict[str, np.dtype[Any]]
    feeds: tuple[Feed, Feed]


def trace(
    source_or_model: Any,
    seed: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    *,
    timeout: float | None = None,
) -> Trace:
    """Return the shapes of all values in two runs at different dynamic sizes, and the contents of the static ones.

    Args:
        source_or_model: an `onnx_ir.Model`, or anything with one as its `model`.
        seed: of the data that is fed.
        providers: onnxruntime's execution providers, in order.
        timeout: seconds after which the runs are stopped (a Loop may never end); None waits.

    Raises:
        ModelError: onnxruntime refuses the graph, or no sizes were found that it runs at.
        ProviderError: onnxruntime does not know an operator, or a provider is missing.
        RunError: the time is over.
    """
    model: ir.Model = getattr(source_or_model, "model", source_or_model)
    specs = model_inputs.specs(model)
    facts = dependence(model)
    known = constants(model.graph)
    with Clock(timeout) as clock:
        probe = _best_probe(model, known, facts, providers)
        runner = _Runner(probe, specs, seed, clock, _written_lengths(known))
        first = runner.first()
        second = runner.second(first, varies=bool(facts.unsteady))
    return _collect(known, probe, facts, first, second)


# ---------------------------------------------------------------- the graph that is run
@dataclass(frozen=True)
class _Probe:
    """A session on the graph with its probes.

    Attributes:
        session: onnxruntime's.
        weights: what is fed besides the inputs.
        shapes: output of the session -> value whose shape it gives.
        contents: output of the session -> value whose contents it gives.
        dtypes: type of every tensor that a node gives.
    """

    session: ort.InferenceSession
    weights: Feed
    shapes: dict[str, str]
    contents: dict[str, str]
    dtypes: dict[str, np.dtype[Any]]


def _best_probe(model: ir.Model, constants: Constants, facts: Dependence, providers: Sequence[str]) -> _Probe:
    """Return a probe with the weights outside the graph if onnxruntime takes it so, else with all of them inside."""
    sizes = {True: 0, False: 0}
    for tensor in constants.values():
        sizes[tensor.dtype.is_floating_point()] += tensor.nbytes
    fed: Fed = "all" if sizes[False] > _INSIDE else "floats"
    try:
        return _probe(model, constants, facts, providers, fed)
    except (ModelError, ProviderError):  # some kernels demand their weights as constants
        if sum(sizes.values()) > _INSIDE:
            raise
        return _probe(model, constants, facts, providers, "none")


def _probe(model: ir.Model, constants: Constants, facts: Dependence, providers: Sequence[str], fed: Fed) -> _Probe:
    """Return a session on the model's graph with a Shape node behind every tensor."""
    proto, weights, zeroed = _skeleton(model, constants, fed)
    names = [o.name for n in model.graph for o in n.outputs if o.name and o.name not in constants]
    types = _types(proto, names, providers)
    unfetched = _tainted(model, zeroed) if zeroed else set()
    prefix = _fresh_prefix(model)
    shapes: dict[str, str] = {}
    contents: dict[str, str] = {}
    dtypes: dict[str, np.dtype[Any]] = {}
    for k, name in enumerate(names):
        if name not in types:
            continue
        elem, dims = types[name]
        dtypes[name] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem))
        shapes[f"{prefix}{k}"] = name
        proto.graph.node.append(onnx.helper.make_node("Shape", [name], [f"{prefix}{k}"], name=f"{prefix}{k}"))
        proto.graph.output.append(onnx.helper.make_tensor_value_info(f"{prefix}{k}", onnx.TensorProto.INT64, [None]))
        if name not in facts.static or name in unfetched or elem in _UNFETCHED or _larger(dims):
            continue
        out = name
        if elem in _WIDENED:  # numpy's border knows no bfloat16
            out = f"{prefix}wide_{k}"
            proto.graph.node.append(onnx.helper.make_node("Cast", [name], [out], name=out, to=onnx.TensorProto.FLOAT))
        contents[out] = name
        proto.graph.output.append(onnx.ValueInfoProto(name=out))
    return _Probe(open_session(proto, providers), weights, shapes, contents, dtypes)


_UNFETCHED = frozenset({onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1})
_WIDENED = frozenset(
    {
        onnx.TensorProto.BFLOAT16,
        onnx.TensorProto.FLOAT8E4M3FN,
        onnx.TensorProto.FLOAT8E4M3FNUZ,
        onnx.TensorProto.FLOAT8E5M2,
        onnx.TensorProto.FLOAT8E5M2FNUZ,
    }
)


def _larger(dims: tuple[int, ...] | None) -> bool:
    return dims is not None and int(np.prod(dims, dtype=np.float64)) > CONTENTS_LIMIT


def _skeleton(model: ir.Model, constants: Constants, fed: Fed) -> tuple[onnx.ModelProto, Feed, set[str]]:
    """Return the model without outputs, value_info and large weights, these weights, and which of them are zeros."""
    graph = model.graph
    proto = onnx.ModelProto(ir_version=max(model.ir_version, 4), producer_name="onnxprune")
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    if not {"", "ai.onnx"} & set(model.opset_imports):
        proto.opset_import.add(domain="", version=13)
    proto.graph.name = graph.name or "graph"
    proto.functions.extend(ir.serde.serialize_function(f) for f in model.functions.values())
    proto.graph.input.extend(ir.serde.serialize_value(v) for v in graph.inputs if v.name not in graph.initializers)
    large = {name: tensor for name, tensor in constants.items() if _is_fed(tensor, fed)}
    proto.graph.initializer.extend(
        _tensor(constants[name], name) for name in graph.initializers if name in constants and name not in large
    )
    for node in graph:
        if not (node.op_type == "Constant" and node.outputs[0].name in large):
            written = ir.serde.serialize_node(node)
            _embed(node, written)
            proto.graph.node.append(written)
    zeros = sum(t.nbytes for t in large.values()) > _ZEROS_FROM
    weights: Feed = {}
    blank = np.zeros(max((t.nbytes for t in large.values()), default=0) if zeros else 0, np.uint8)
    for name, tensor in large.items():
        dims = list(tensor.shape.numpy())
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.dtype.value, dims))
        array = blank[: tensor.nbytes].view(tensor.dtype.numpy()).reshape(dims) if zeros else tensor.numpy()
        weights[name] = np.require(array, requirements=["C", "A"])
    return proto, weights, set(large) if zeros else set()


def _is_fed(tensor: ir.TensorProtocol, fed: Fed) -> bool:
    """Return whether a weight is fed as an input: small ones never, quantized ones only if they would not fit."""
    if fed == "none" or tensor.size <= _FED_FROM:
        return False
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
    return tensor.dtype in floats or (fed == "all" and tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8))


def _tensor(tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    """Return a tensor with its data inside: a path beside the model means nothing to a model in memory."""
    if not isinstance(tensor, ir.ExternalTensor):
        proto = ir.serde.serialize_tensor(tensor)
    else:
        proto = onnx.TensorProto(data_type=tensor.dtype.value, dims=tensor.shape.numpy(), raw_data=tensor.tobytes())
    proto.name = name
    return proto


def _embed(node: ir.Node, written: onnx.NodeProto) -> None:
    """Put the data of external tensors into a written node and its subgraphs."""
    for proto in written.attribute:
        attribute = node.attributes[proto.name]
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
            proto.t.CopyFrom(_tensor(attribute.value, proto.t.name))
        elif attribute.type == ir.AttributeType.GRAPH:
            _embed_graph(attribute.as_graph(), proto.g)
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph, written_graph in zip(attribute.as_graphs(), proto.graphs, strict=True):
                _embed_graph(graph, written_graph)


def _embed_graph(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    for tensor in proto.initializer:
        value = graph.initializers[tensor.name].const_value
        if isinstance(value, ir.ExternalTensor):
            tensor.CopyFrom(_tensor(value, tensor.name))
    for node, written in zip(graph, proto.node, strict=True):
        _embed(node, written)


def _tainted(model: ir.Model, names: set[str]) -> set[str]:
    """Return the values computed from `names`, by way of contents."""
    tainted = set(names)
    for node in model.graph:
        if node.op_type in ("Shape", "Size"):
            continue
        read = [v.name for v in node.inputs if v is not None] + [n for g in subgraphs(node) for n in captured(g)]
        if any(n in tainted for n in read):
            tainted.update(v.name for v in node.outputs if v.name)
    return tainted


def _fresh_prefix(model: ir.Model) -> str:
    """Return a prefix that no name in the model starts with, subgraphs and functions included."""
    prefix = "onnxprune_probe_"
    roots: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    names = [
        name
        for root in roots
        for node in root.all_nodes()
        for name in (node.name, *(v.name for v in node.outputs), *(v.name for v in node.inputs if v is not None))
        if name
    ]
    while any(n.startswith(prefix) for n in names):
        prefix += "_"
    return prefix


# ---------------------------------------------------------------- types
Type = tuple[int, tuple[int, ...] | None]  # element type, and the shape where it is known


def _types(proto: onnx.ModelProto, names: Sequence[str], providers: Sequence[str]) -> dict[str, Type]:
    """Return the types of those values that are tensors; onnx tells most, onnxruntime those of its own operators."""
    types: dict[str, Type] = {}
    others: set[str] = set()
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=False)
    except Exception:
        inferred = proto
    guard.check_ranks(inferred.graph)
    for info in inferred.graph.value_info:
        kind = info.type.WhichOneof("value")
        if kind == "tensor_type" and info.type.tensor_type.elem_type:
            types[info.name] = (info.type.tensor_type.elem_type, _dims(info.type.tensor_type))
        elif kind is not None and kind != "tensor_type":
            others.add(info.name)
    unknown = [n for n in names if n not in types and n not in others]
    if unknown:
        asked = onnx.ModelProto()
        asked.CopyFrom(proto)
        asked.graph.output.extend(onnx.ValueInfoProto(name=n) for n in unknown)
        for out in open_session(asked, providers).get_outputs():
            elem = _ORT_TYPES.get(out.type)
            if elem is not None:
                fixed = all(isinstance(d, int) for d in out.shape)
                types[out.name] = (elem, tuple(out.shape) if fixed and out.shape else None)
    return types


def _dims(tensor: onnx.TypeProto.Tensor) -> tuple[int, ...] | None:
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return tuple(d.dim_value for d in tensor.shape.dim)


_ORT_TYPES = {f"tensor({n.lower()})": v for n, v in onnx.TensorProto.DataType.items()} | {
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(double)": onnx.TensorProto.DOUBLE,
}


# ---------------------------------------------------------------- runs
@dataclass(frozen=True)
class _Run:
    """One run: what it was fed, at which dynamic sizes, and what the session gave."""

    feed: Feed
    sizes: Mapping[model_inputs.Dim, int]
    results: dict[str, np.ndarray]


@dataclass
class _Runner:
    """Runs a probe at one set of sizes after another."""

    probe: _Probe
    specs: Sequence[model_inputs.InputSpec]
    seed: int
    clock: Clock
    lengths: Sequence[int] = ()  # of last resort
    complaint: str = ""

    def first(self) -> _Run:
        """Return the first run that works; a batch of 1 is tried only after all lengths at a batch of 2."""
        tries = [model_inputs.candidate(self.specs, k) for k in range(model_inputs.count(self.specs))]
        kinds = model_inputs.dims(self.specs)
        if any(kind != "batch" for kind in kinds.values()):
            tries += [
                {d: b if kind == "batch" else n for d, kind in kinds.items()} for b in (2, 1) for n in self.lengths
            ]
        for sizes in tries:
            run = self.attempt(sizes, self.seed)
            if run is not None:
                return run
        shapes = model_inputs.sizes(self.specs, 0)
        raise ModelError(
            f"the model runs at none of the {len(tries)} input sizes tried, declare its input dimensions: "
            f"at {', '.join(f'{quote(k)} {list(v)}' for k, v in shapes.items())} onnxruntime says: {self.complaint}"
        )

    def second(self, first: _Run, *, varies: bool) -> _Run:
        """Return a run where as many dynamic sizes as possible differ from the first one's, and from each other.

        Without dynamic sizes it is the first run itself, or (`varies`) one on other data.
        """
        kinds = model_inputs.dims(self.specs)
        if not kinds:
            return (varies and self.attempt({}, self.seed + 1)) or first
        batch = {d: first.sizes[d] + 1 for d, kind in kinds.items() if kind == "batch"}
        tries = range(_OTHERS if len(batch) < len(kinds) else 1)
        lengths = [{d: _other(kind, first.sizes[d], k) for d, kind in kinds.items() if kind != "batch"} for k in tries]
        together = [{**batch, **change} for change in lengths]
        best = first
        for change in (*_apart(kinds, first.sizes), *together, batch, *lengths):
            run = self.attempt({**first.sizes, **change}, self.seed + 1) if change else None
            if run is not None:
                best = run
                break
        for d, kind in kinds.items():  # then one by one what still stands as it was
            for k in range(2 if kind == "batch" else _OTHERS):
                if best.sizes[d] == first.sizes[d]:
                    best = self.attempt({**best.sizes, d: _other(kind, first.sizes[d], k)}, self.seed + 1) or best
        return best

    def attempt(self, sizes: Mapping[model_inputs.Dim, int], seed: int) -> _Run | None:
        """Return a run at these sizes, with integers that the model accepts; None if it accepts none."""
        names = [*self.probe.shapes, *self.probe.contents]
        shapes = model_inputs.resolve(self.specs, sizes)
        integers = any(s.bound or s.dtype.kind in "iub" for s in self.specs)
        for fill in model_inputs.FILLS if integers else model_inputs.FILLS[:1]:
            feed = model_inputs.sample(self.specs, seed, shapes, fill)
            if not names:
                return _Run(feed, sizes, {})
            try:
                results = self.probe.session.run(names, {**feed, **self.probe.weights}, self.clock.options)
            except Exception as error:  # onnxruntime raises a class per status
                if self.clock.over:
                    raise RunError("tracing the model took longer than the timeout: give it more time") from error
                self.complaint = self.complaint or first_line(error)
                continue
            return _Run(feed, sizes, dict(zip(names, results, strict=True)))
        return None


_LONGEST, _MOST_LENGTHS = 4096, 64


def _written_lengths(known: Constants) -> list[int]:
    """Return the numbers in small integer constants: a length that an export has baked in stands in one of them."""
    small = (t for t in known.values() if t.size <= 8 and t.dtype in (ir.DataType.INT64, ir.DataType.INT32))
    found = sorted({int(n) for t in small for n in t.numpy().reshape(-1) if 2 <= n <= _LONGEST})
    return found[:_MOST_LENGTHS]


_OTHERS = 5


def _apart(
    kinds: Mapping[model_inputs.Dim, model_inputs.Kind], sizes: Mapping[model_inputs.Dim, int]
) -> list[dict[model_inputs.Dim, int]]:
    """Return other sizes that tell sizes of one kind (height and width) apart, none if there is one of each kind."""
    seen: Counter[model_inputs.Kind] = Counter()
    change = {}
    for d, kind in kinds.items():
        change[d] = sizes[d] + 1 + 2 * seen[kind] if kind == "batch" else _other(kind, sizes[d], seen[kind] % _OTHERS)
        seen[kind] += 1
    return [change] if max(seen.values(), default=0) > 1 else []


def _other(kind: model_inputs.Kind, n: int, k: int) -> int:
    """Return another size than `n`, the k-th to try."""
    if kind == "batch":
        return (n + 1, 2 * n)[k]
    if kind == "picture":
        return (n + n // 2, 2 * n, n + 32, n // 2, n + 1)[k]
    return (n + 5, 2 * n, n + n // 2 + 1, max(n - 3, 1), n + 1)[k]


# ---------------------------------------------------------------- the result
def _collect(constants: Constants, probe: _Probe, facts: Dependence, first: _Run, second: _Run) -> Trace:
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    values: dict[str, Pair] = {}
    dtypes = dict(probe.dtypes)
    for name, a in first.feed.items():
        shapes[name], dtypes[name] = (a.shape, second.feed[name].shape), a.dtype
    for name, tensor in constants.items():
        shape = tuple(int(d) for d in tensor.shape.numpy())
        shapes[name], dtypes[name] = (shape, shape), _numpy_type(tensor.dtype)
        if tensor.size <= CONTENTS_LIMIT:
            array = tensor.numpy()
            values[name] = (array, array)
    for out, name in probe.shapes.items():
        shapes[name] = (_shape(first.results[out]), _shape(second.results[out]))
    for out, name in probe.contents.items():
        a, b = (np.asarray(run.results[out]).astype(dtypes[name], copy=False) for run in (first, second))
        if max(a.size, b.size) <= CONTENTS_LIMIT:
            values[name] = (a, b)
    return Trace(shapes, values, frozenset(facts.static & shapes.keys()), dtypes, (first.feed, second.feed))


def _shape(array: np.ndarray) -> tuple[int, ...]:
    return tuple(int(d) for d in array)


def _numpy_type(dtype: ir.DataType) -> np.dtype[Any]:
    return np.dtype(object) if dtype == ir.DataType.STRING else np.dtype(dtype.numpy())
