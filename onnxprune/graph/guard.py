"""Checks of a model that nobody vouches for, before anything is allocated for it or computed from it.

onnx's checker, onnxruntime and onnx-ir each let some of this through or die of it. What passes here has tensors whose
bytes fit their dims, external data that is there and inside the model's folder, names that mean one value, and graphs
and functions that end.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxprune.errors import ModelError, quote
from onnxprune.graph.files import DataFile, foreign_format, truncation

__all__ = [
    "MAX_DEPTH",
    "MAX_INLINED_NODES",
    "MAX_RANK",
    "MAX_SPARSE_BYTES",
    "Finder",
    "check_model",
    "check_ranks",
    "parse",
]

MAX_DEPTH = 24
"""Graphs inside graphs (If, Loop, Scan) deeper than this are refused: recursion must end, and protobuf's does at 32."""
MAX_INLINED_NODES = 1_000_000
"""Functions that inline to more nodes than this are refused: calls that double at each level grow exponentially."""
MAX_RANK = 64
"""NumPy has no arrays of more axes."""
MAX_SPARSE_BYTES = 2**31
"""A sparse tensor that is larger than this when dense is refused: a few bytes can ask for any amount of memory."""

_INT = re.compile(r"\d{1,18}")
_INT32_TYPES = "int32_data"
_FIELDS = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.STRING: "string_data",
}
_TYPED = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
_PACKED_BITS = (2, 4)


class Finder(Protocol):
    """Finds the file that external data lies in."""

    def find(self, location: str, where: str) -> DataFile:
        """Returns the file, or raises a ModelError that begins with `where`."""


@dataclass(frozen=True)
class _Context:
    files: Finder | None
    scope: set[str]  # every name that the graphs around define


def parse(data: bytes, name: str) -> onnx.ModelProto:
    """Returns the model that `data` holds; `name` is what errors call it.

    Raises:
        ModelError: it is damaged, truncated or something else than ONNX; says what, as far as that can be told.
    """
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RecursionError):
        if what := foreign_format(data):
            raise ModelError(f"{name} is not an ONNX model but {what}") from None
        if how := truncation(data):
            raise ModelError(f"{name} is truncated ({how}): copy or download it again") from None
        raise ModelError(
            f"{name} cannot be parsed: it is damaged, no ONNX model, or nests graphs too deeply: export it again"
        ) from None
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        what = foreign_format(data) or "something else: it holds no graph"
        raise ModelError(f"{name} is not an ONNX model but {what}")
    return proto


def check_model(proto: onnx.ModelProto, files: Finder | None) -> None:
    """Passes a model that is safe to work on; spells out `external_data` in place: absolute path, offset, length.

    Args:
        proto: the model.
        files: where its external data may lie; None if it may have none.

    Raises:
        ModelError: names what is wrong, where, and what to do.
    """
    if not proto.opset_import and proto.ir_version >= 3:
        raise ModelError("the model imports no operator set: it is truncated or was not exported properly")
    if not proto.graph.output:
        raise ModelError("the model has no outputs: export it again")
    _check_text(proto, "the model")
    for opset in proto.opset_import:
        _check_text(opset, "an operator set")
    context = _Context(files, set())
    _check_graph(proto.graph, context, depth=0)
    for function in proto.functions:
        _check_function(function, context)
    _check_calls(proto)


# -------------------------------------------------------------------------------------------------- graphs
def _check_graph(graph: onnx.GraphProto, context: _Context, depth: int) -> set[str]:
    """Returns the names that a graph takes from the graphs around it."""
    _check_text(graph, "a graph")
    where = f"graph {quote(graph.name)}"
    if depth > MAX_DEPTH:
        raise ModelError(f"{where} lies more than {MAX_DEPTH} graphs deep: flatten the nested If and Loop nodes")
    for k, tensor in enumerate(graph.initializer):
        _check_text(tensor, where)
        if not tensor.name:
            raise ModelError(f"{where}: initializer {k} has no name: the model is damaged, export it again")
        check_tensor(tensor, f"initializer {quote(tensor.name)}", context.files)
    for sparse in graph.sparse_initializer:
        _check_text(sparse.values, where)
        _check_sparse(sparse, f"sparse initializer {quote(sparse.values.name)}", context.files)
    for value in chain(graph.input, graph.output, graph.value_info):
        _check_text(value, where)
        _check_type(value.type, f"value {quote(value.name)}")
    given = _unique((v.name for v in graph.input), where, "input")
    constants = chain((t.name for t in graph.initializer), (s.values.name for s in graph.sparse_initializer))
    given |= _unique(filter(None, constants), where, "initializer")
    named = (node.name for node in graph.node if node.name and node.op_type != "Constant")  # runtimes drop those
    _unique(named, where, "node")
    return _check_body(graph.node, given, [v.name for v in graph.output], where, context, depth=depth)


def _check_function(function: onnx.FunctionProto, context: _Context) -> None:
    for message in (function, *function.opset_import, *function.value_info):
        _check_text(message, "a function")
    where = f"function {quote(function.name)}"
    given = _unique(function.input, where, "input")
    _check_body(function.node, given, list(function.output), where, context, depth=0)


def _check_body(
    nodes: Sequence[onnx.NodeProto], given: set[str], results: list[str], where: str, context: _Context, *, depth: int
) -> set[str]:
    """Returns the names that a body of nodes takes from outside."""
    produced = _producers(nodes, given, where)
    own = given | produced.keys()
    if shadowed := own & context.scope:
        raise ModelError(
            f"{where}: {quote(min(shadowed))} also names a value of a graph around it: give each value its own name"
        )
    context.scope.update(own)
    needs: list[set[str]] = []
    outside: set[str] = set()
    for node in nodes:
        used = {name for name in node.input if name} | _check_attributes(node, context, depth)
        if unknown := used - context.scope:
            raise ModelError(
                f"{_node(node)}: its input {quote(min(unknown))} is produced nowhere: the model is damaged, "
                "export it again"
            )
        needs.append(used & own)
        outside |= used - own
    for name in results:
        if name not in (context.scope if depth else own):
            raise ModelError(f"{where}: its output {quote(name)} is produced nowhere: export the model again")
    context.scope.difference_update(own)
    _check_order(nodes, needs, produced, given)
    return outside


def _producers(nodes: Sequence[onnx.NodeProto], given: set[str], where: str) -> dict[str, int]:
    """Returns the index of the node that produces each value."""
    produced: dict[str, int] = {}
    for index, node in enumerate(nodes):
        _check_text(node, f"{where}, node {index}")
        if not node.op_type:
            raise ModelError(f"{where}: node {index} names no operator: the model is damaged, export it again")
        for name in node.output:
            if name and (name in given or produced.setdefault(name, index) != index):
                raise ModelError(
                    f"{_node(node)}: its output {quote(name)} already names another value: give each value its own name"
                )
        if len(node.output) > 1 and len({*filter(None, node.output)}) < sum(map(bool, node.output)):
            raise ModelError(f"{_node(node)}: two of its outputs share a name: give each value its own name")
    return produced


def _check_attributes(node: onnx.NodeProto, context: _Context, depth: int) -> set[str]:
    """Returns the names that the graphs inside a node take from around it."""
    if not node.attribute:
        _check_bodies(node)
        return set()
    where = _node(node)
    _unique((a.name for a in node.attribute), where, "attribute")
    used: set[str] = set()
    for attribute in node.attribute:
        _check_text(attribute, where)
        kind = attribute.type
        if kind in _PLAIN or attribute.ref_attr_name:
            continue
        place = f"{where}, attribute {quote(attribute.name)}"
        tensors = [attribute.t] if kind == onnx.AttributeProto.TENSOR else attribute.tensors
        for tensor in tensors:
            check_tensor(tensor, place, context.files)
        sparse = [attribute.sparse_tensor] if kind == onnx.AttributeProto.SPARSE_TENSOR else attribute.sparse_tensors
        for each in sparse:
            _check_sparse(each, place, context.files)
        graphs = [attribute.g] if kind == onnx.AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            used |= _check_graph(graph, context, depth + 1)
    _check_bodies(node)
    return used


def _check_bodies(node: onnx.NodeProto) -> None:
    """Passes a control flow operator that has its bodies, and a constant that has a value."""
    if node.domain not in ("", "ai.onnx"):
        return
    if node.op_type == "Constant" and (len(node.attribute) != 1 or node.attribute[0].name not in _VALUES):
        raise ModelError(f"{_node(node)}: it is a constant without a value: the model is damaged, export it again")
    if node.op_type in _BODIES:
        given = {a.name for a in node.attribute if a.type == onnx.AttributeProto.GRAPH and not a.ref_attr_name}
        missing = [name for name in _BODIES[node.op_type] if name not in given]
        if missing:
            raise ModelError(f"{_node(node)}: it has no graph {missing[0]}: the model is damaged, export it again")


_VALUES = {"value", "sparse_value", *(f"value_{kind}{s}" for kind in ("float", "int", "string") for s in ("", "s"))}
_BODIES = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}


_PLAIN = {
    onnx.AttributeProto.FLOAT,
    onnx.AttributeProto.INT,
    onnx.AttributeProto.STRING,
    onnx.AttributeProto.FLOATS,
    onnx.AttributeProto.INTS,
    onnx.AttributeProto.STRINGS,
}


def _check_order(
    nodes: Sequence[onnx.NodeProto], needs: list[set[str]], produced: dict[str, int], given: set[str]
) -> None:
    """Passes nodes that some order can compute (theirs need not be one)."""
    done = set(given)
    for node, needed in zip(nodes, needs, strict=True):
        if not needed <= done:
            break
        done.update(node.output)
    else:
        return
    waiting = [len({produced[name] for name in needed - given}) for needed in needs]
    users: dict[int, set[int]] = defaultdict(set)
    for index, needed in enumerate(needs):
        for name in needed - given:
            users[produced[name]].add(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    while ready:
        for user in users[ready.pop()]:
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    stuck = next((index for index, count in enumerate(waiting) if count), None)
    if stuck is not None:
        raise ModelError(f"{_node(nodes[stuck])}: it waits for its own output, the graph has a cycle: export it again")


def _check_text(message: Any, where: str) -> None:
    """Passes a message whose texts are texts: protobuf gives what is not valid UTF-8 as bytes."""
    kind = type(message)
    if kind not in _TEXTS:
        fields = [f for f in message.DESCRIPTOR.fields if f.type == f.TYPE_STRING]
        _TEXTS[kind] = ([f.name for f in fields if not f.is_repeated], [f.name for f in fields if f.is_repeated])
    single, repeated = _TEXTS[kind]
    texts = chain(
        (getattr(message, name) for name in single),
        (text for name in repeated for text in getattr(message, name)),
        (text for entry in getattr(message, "metadata_props", ()) for text in (entry.key, entry.value)),
    )
    if any(type(text) is bytes for text in texts):
        raise ModelError(f"{where}: a name or text is not valid UTF-8: the file is damaged, export it again")


_TEXTS: dict[type, tuple[list[str], list[str]]] = {}


def _unique(names: Iterable[str], where: str, what: str) -> set[str]:
    counts = Counter(names)
    name, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise ModelError(f"{where}: {what} {quote(name)} is there {count} times: give each its own name")
    return set(counts)


def _node(node: onnx.NodeProto) -> str:
    name = node.name or next(filter(None, node.output), "")
    return f"{quote(node.op_type, 40)[1:-1]} (node {quote(name)})"


_SHAPES = {"ConstantOfShape": 0, "Reshape": 1, "Expand": 1, "AffineGrid": 1}
"""Operators that make a value of a shape, and which input the shape is."""


def check_ranks(graph: onnx.GraphProto, outside: Mapping[str, int] | None = None) -> None:
    """Passes a graph in which no value is to have more axes than there can be, as far as its types tell.

    onnxruntime makes room for each axis when it loads a model: a shape that is declared to have 2^31 sizes takes all
    memory, without a single number of it.

    Args:
        graph: with the types that shape inference has found.
        outside: lengths of vectors of the graphs around.

    Raises:
        ModelError: names the node.
    """
    lengths = dict(outside or {})
    for value in chain(graph.input, graph.value_info):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 1 and dims[0].HasField("dim_value"):
            lengths[value.name] = dims[0].dim_value
    lengths |= {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 1}
    for node in graph.node:
        place = _SHAPES.get(node.op_type, len(node.input))
        if place < len(node.input) and lengths.get(node.input[place], 0) > MAX_RANK:
            raise ModelError(
                f"{_node(node)}: the shape that it is given has {lengths[node.input[place]]:,} sizes, "
                f"no value has more than {MAX_RANK}: export the model again"
            )
        for attribute in node.attribute:
            for inner in chain([attribute.g] if attribute.HasField("g") else [], attribute.graphs):
                check_ranks(inner, lengths)


# -------------------------------------------------------------------------------------------------- functions
def _check_calls(proto: onnx.ModelProto) -> None:
    """Passes functions that do not call themselves, in circles or into millions of nodes."""
    names = [_called(f.domain, f.name, f.overload) for f in proto.functions]
    bodies = dict(zip(names, proto.functions, strict=True))
    if len(bodies) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ModelError(f"function {quote(twice[1])} is defined more than once: give each its own name")
    calls = {
        name: Counter(_called(n.domain, n.op_type, n.overload) for n in _nodes(body.node))
        for name, body in bodies.items()
    }
    sizes: dict[tuple[str, str, str], int] = {}
    try:
        for name in TopologicalSorter(calls).static_order():
            if name in bodies:
                total = sum(count * sizes.get(callee, 1) for callee, count in calls[name].items())
                sizes[name] = min(total, MAX_INLINED_NODES + 1)  # no number of thousands of digits on the way
    except CycleError as error:
        around = quote(" -> ".join(name[1] for name in error.args[1]), 200)
        raise ModelError(f"functions call each other in a circle, {around}: unroll the recursion") from None
    if not bodies:
        return
    total = sum(sizes.get(_called(n.domain, n.op_type, n.overload), 1) for n in _nodes(proto.graph.node))
    if max(total, *sizes.values()) > MAX_INLINED_NODES:
        raise ModelError(
            f"the model's functions inline to more than {MAX_INLINED_NODES:,} nodes: inline or simplify them first"
        )


def _called(domain: str, name: str, overload: str) -> tuple[str, str, str]:
    return ("" if domain == "ai.onnx" else domain, name, overload)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in chain([attribute.g] if attribute.HasField("g") else [], attribute.graphs):
                yield from _nodes(graph.node)


# -------------------------------------------------------------------------------------------------- tensors
def check_tensor(tensor: onnx.TensorProto, where: str, files: Finder | None) -> None:
    """Passes a tensor whose bytes are there and fit its dims.

    External data is spelled out in place: absolute path, offset and length.

    Raises:
        ModelError: begins with `where`.
    """
    dtype = _dtype(tensor.data_type, where)
    count = _count(tensor.dims, where)
    if tensor.HasField("segment"):
        raise ModelError(f"{where}: it is stored in segments, which no runtime reads: save the model again")
    filled = [name for name in _TYPED if len(getattr(tensor, name))]
    if tensor.HasField("raw_data"):
        filled.append("raw_data")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, dtype, count, where, files=files, filled=filled)
        return
    if len(filled) > 1:
        raise ModelError(f"{where}: its data is there twice, as {filled[0]} and as {filled[-1]}: save the model again")
    field = filled[0] if filled else _FIELDS.get(dtype, _INT32_TYPES)
    if field == "raw_data":
        if dtype == ir.DataType.STRING:
            raise ModelError(f"{where}: it holds strings as raw_data, which ONNX forbids: save the model again")
        need, have, unit = _nbytes(dtype, count), len(tensor.raw_data), "bytes"
    else:
        if field != _FIELDS.get(dtype, _INT32_TYPES):
            raise ModelError(f"{where}: {field} cannot hold its type {dtype.name}: save the model again")
        need, have, unit = _entries(dtype, count), len(getattr(tensor, field)), "values"
    if need != have:
        raise ModelError(
            f"{where}: its shape {list(tensor.dims)} needs {need:,} {unit} of {dtype.name}, it has {have:,}: "
            "the model is damaged, export it again"
        )


def _dtype(number: int, where: str) -> ir.DataType:
    try:
        dtype = ir.DataType(number)
    except ValueError:
        raise ModelError(f"{where}: ONNX has no data type {number}: the model is damaged or too new") from None
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(f"{where}: its data type is undefined: the model is damaged, export it again")
    return dtype


def _count(dims: Sequence[int], where: str) -> int:
    """Returns the number of elements."""
    if len(dims) > MAX_RANK:
        raise ModelError(f"{where}: it has {len(dims)} axes, NumPy has at most {MAX_RANK}")
    count = 1
    for dim in dims:
        if dim < 0:
            raise ModelError(f"{where}: its shape {list(dims)} has a negative size: export the model again")
        count *= dim
    # Each factor counts, also beside a zero: what numpy and onnxruntime multiply in 64 bits must not wrap around.
    if max(count, int(np.prod([max(dim, 1) for dim in dims], dtype=object))) >= 2**62:
        raise ModelError(f"{where}: its shape {list(dims)} has more elements than fit any memory: export it again")
    return count


def _nbytes(dtype: ir.DataType, count: int) -> int:
    return (count * dtype.bitwidth + 7) // 8


def _entries(dtype: ir.DataType, count: int) -> int:
    """Returns how many values a typed field of that many elements has."""
    if dtype in _COMPLEX:
        return 2 * count
    if dtype != ir.DataType.STRING and dtype.bitwidth in _PACKED_BITS:
        return _nbytes(dtype, count)
    return count


def _check_external(
    tensor: onnx.TensorProto, dtype: ir.DataType, count: int, where: str, *, files: Finder | None, filled: list[str]
) -> None:
    if filled:
        raise ModelError(f"{where}: its data is there twice, in a file and as {filled[0]}: save the model again")
    if dtype == ir.DataType.STRING:
        raise ModelError(f"{where}: it holds strings in a data file, which ONNX forbids: save the model again")
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, need = entries.get("location", ""), _nbytes(dtype, count)
    offset, length = (_number(entries.get(key), key, where) for key in ("offset", "length"))
    if length is not None and length != need:
        raise ModelError(
            f"{where}: its shape {list(tensor.dims)} needs {need:,} bytes of {dtype.name}, its external data is "
            f"{length:,} long: the model is damaged, export it again"
        )
    if files is None:
        raise ModelError(
            f"{where}: its data lies in the file {quote(location, 200)}, of unknown folder: "
            "pass the path of the model instead"
        )
    file = files.find(location, where)
    start = offset or 0
    if start + need > file.size:
        raise ModelError(
            f"{where}: its data ends at byte {start + need:,} of {quote(location, 200)}, which has {file.size:,}: "
            "the data file is truncated or belongs to another model"
        )
    # One spelling for all that follows: the real path, and a length, which onnx-ir and onnxruntime read differently.
    del tensor.external_data[:]
    for key, value in (("location", str(file.path)), ("offset", str(start)), ("length", str(need))):
        tensor.external_data.add(key=key, value=value)


def _number(text: str | None, key: str, where: str) -> int | None:
    if text is None or text == "":
        return None
    if not _INT.fullmatch(text):
        raise ModelError(f"{where}: the {key} of its external data is {quote(text, 40)}, no size: save the model again")
    return int(text)


def _check_sparse(sparse: onnx.SparseTensorProto, where: str, files: Finder | None) -> None:
    """Passes a sparse tensor in one of the two layouts of the specification, of bounded size when dense."""
    check_tensor(sparse.values, f"{where}, values", files)
    check_tensor(sparse.indices, f"{where}, indices", files)
    count, rank, filled = _count(sparse.dims, where), len(sparse.dims), list(sparse.values.dims)
    dtype = _dtype(sparse.values.data_type, where)
    if dtype == ir.DataType.STRING or _nbytes(dtype, count) > MAX_SPARSE_BYTES:
        raise ModelError(f"{where}: its dense form is not supported (strings, or above 2 GiB): make it dense first")
    shapes = ([*filled], [*filled, rank])
    if len(filled) != 1 or sparse.indices.data_type != ir.DataType.INT64 or list(sparse.indices.dims) not in shapes:
        raise ModelError(f"{where}: the shapes of its values and indices do not fit: export the model again")
    indices = ir.serde.deserialize_tensor(sparse.indices).numpy()
    limit = np.array(sparse.dims if indices.ndim == 2 else count)
    if indices.size and ((indices < 0).any() or (indices >= limit).any()):
        raise ModelError(f"{where}: an index lies outside its shape {list(sparse.dims)}: export the model again")


def _check_type(kind: onnx.TypeProto, where: str) -> None:
    """Passes a value's type whose element types exist."""
    for _ in range(MAX_DEPTH):
        _check_text(kind, where)
        field = kind.WhichOneof("value")
        if field in ("tensor_type", "sparse_tensor_type"):
            inner = getattr(kind, field)
            if inner.elem_type:
                _dtype(inner.elem_type, where)
            for dim in inner.shape.dim:
                _check_text(dim, where)
            return
        if field not in ("sequence_type", "optional_type"):
            return
        kind = getattr(kind, field).elem_type
    raise ModelError(f"{where}: its type nests more than {MAX_DEPTH} levels deep: export the model again")
