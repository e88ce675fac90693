"""What onnx-ir cannot hold, kept: a model that was loaded and saved again is the model that was loaded.

onnx-ir drops or reorders parts of a model on the way through it: sparse initializers, training information, map types,
the order of `value_info` and of metadata, entries for graph outputs, fields that are set to nothing, unknown fields.
The cure is a three-way merge. `to_ir` hangs the original message on the graph; `to_proto` serializes the model as it is
now and as it was when loaded, and carries only the differences between the two over into the original. What was not
changed is thus not touched, whatever it is.

Tensors take no part in this by their contents: a token stands for each initializer, the same one as long as it is the
same tensor, and `Serialized.tensors` gives the new ones.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import Message  # type: ignore[import-untyped]

from onnxprune.errors import ModelError, quote
from onnxprune.graph.lazy import Mapped

__all__ = ["Original", "Serialized", "attributes", "graphs", "nodes", "original_of", "to_ir", "to_proto"]

_KEY = "onnxprune.original"
_TOKEN_BYTES = 16


@dataclass(frozen=True, eq=False)
class Original:
    """The message that a model was loaded from, and the files that its bytes came from."""

    proto: onnx.ModelProto
    path: Path | None = None
    data_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Serialized:
    """A model's message, in which the tensors that are not the original's are still to be filled in.

    Attributes:
        proto: the message. An initializer that is new in it has no name of its own data yet, only a token.
        tensors: for each token what is to be filled in.
    """

    proto: onnx.ModelProto
    tensors: dict[bytes, ir.TensorProtocol]

    def new_tensor(self, tensor: onnx.TensorProto) -> ir.TensorProtocol | None:
        """Returns what is to stand for `tensor`, or None if it is what it was."""
        if tensor.data_type != onnx.TensorProto.UINT8 or list(tensor.dims) != [2 * _TOKEN_BYTES]:
            return None
        return self.tensors.get(tensor.raw_data)


def original_of(model: ir.Model) -> Original | None:
    """Returns what a model was loaded from; None if it was not loaded by `to_ir`. Clones remember it too."""
    original = model.graph.meta.get(_KEY)
    return original if isinstance(original, Original) else None


# -------------------------------------------------------------------------------------------------- loading
def to_ir(original: Original) -> ir.Model:
    """Returns the model in memory, in topological order, with its original kept beside it.

    Sparse tensors stand in it as dense ones that are computed on access; map types as no type at all; tensors in data
    files as ones that are mapped on access.
    """
    proto, sparse = _digestible(original.proto)
    model = ir.from_proto(proto)

    def other(tensor: ir.TensorProtocol) -> ir.TensorProtocol | None:
        found = sparse.get(tensor.doc_string or "")
        if found is not None:
            return _dense(found)
        return Mapped.of(tensor) if isinstance(tensor, ir.ExternalTensor) else None

    if sparse or original.data_files:
        _exchange(model, other)
    for number, value in enumerate(_initializers(model)):
        if value.const_value is not None:
            value.const_value.meta[_KEY] = (original, number)
    parts: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for part in parts:
        if not _is_sorted(part):
            part.sort()
    model.graph.meta[_KEY] = original
    return model


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yields every node of a model, of inner graphs and functions too."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()


def _is_sorted(part: ir.Graph | ir.Function) -> bool:
    place: dict[ir.Node | None, int] = {node: index for index, node in enumerate(part.all_nodes())}
    return all(
        place.get(value.producer(), -1) < index
        for node, index in place.items()
        if node is not None
        for value in node.inputs
        if value is not None
    )


# What onnx-ir refuses to read is taken out of a copy of the message, and put into the model again afterwards.
def _digestible(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.SparseTensorProto]]:
    """Returns a message that onnx-ir can read, and the sparse tensors that marked placeholders stand for in it."""
    if not any(map(_is_hard_graph, graphs(proto))) and not any(map(_is_hard, attributes(proto))):
        return proto, {}
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    sparse: dict[str, onnx.SparseTensorProto] = {}
    for graph in graphs(copy):
        for value in _declared(graph):
            if _holds_map(value.type):
                value.ClearField("type")
        for each in graph.sparse_initializer:
            graph.initializer.add().CopyFrom(_placeholder(each, sparse))
    for node in _nodes(copy):
        for attribute in node.attribute:
            if _is_hard(attribute):
                _soften(node, attribute, sparse)
    return copy, sparse


def _is_hard_graph(graph: onnx.GraphProto) -> bool:
    return bool(graph.sparse_initializer) or any(_holds_map(value.type) for value in _declared(graph))


def _declared(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    return chain(graph.input, graph.output, graph.value_info)


def _holds_map(kind: onnx.TypeProto) -> bool:
    while (name := kind.WhichOneof("value")) in ("sequence_type", "optional_type"):
        kind = getattr(kind, name).elem_type
    return bool(name == "map_type")


def _is_hard(attribute: onnx.AttributeProto) -> bool:
    return attribute.type in _HARD and not attribute.ref_attr_name


def _soften(node: onnx.NodeProto, attribute: onnx.AttributeProto, sparse: dict[str, onnx.SparseTensorProto]) -> None:
    """Rewrites an attribute that onnx-ir cannot hold into one that it can."""
    where = f"{quote(node.op_type, 40)[1:-1]} (node {quote(node.name)}), attribute {quote(attribute.name)}"
    if attribute.type == onnx.AttributeProto.UNDEFINED:  # as models from before 2018 have it
        filled = [kind for field, kind in _VALUE_FIELDS.items() if _is_set(attribute, field)]
        if len(filled) != 1:
            raise ModelError(f"{where}: it has no type and {len(filled)} values: export the model again")
        attribute.type = filled[0]
    if attribute.type in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS):
        if node.op_type != "Constant" or attribute.name != "sparse_value":
            raise ModelError(f"{where}: sparse tensors are not supported there: make it dense first")
        tensor = _placeholder(attribute.sparse_tensor, sparse)
        attribute.Clear()
        attribute.CopyFrom(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))


def _is_set(message: Message, field: str) -> bool:
    descriptor = message.DESCRIPTOR.fields_by_name[field]
    return bool(getattr(message, field) if descriptor.is_repeated else message.HasField(field))


def _placeholder(tensor: onnx.SparseTensorProto, sparse: dict[str, onnx.SparseTensorProto]) -> onnx.TensorProto:
    mark = f"{_KEY}.{secrets.token_hex(8)}"
    sparse[mark] = tensor
    return onnx.TensorProto(
        name=tensor.values.name, data_type=tensor.values.data_type, dims=tensor.dims, doc_string=mark
    )


def _exchange(model: ir.Model, other: Callable[[ir.TensorProtocol], ir.TensorProtocol | None]) -> None:
    """Puts other tensors in the place of initializers and of what Constants hold; None: it stays."""
    for value in _initializers(model):
        if value.const_value is not None and (found := other(value.const_value)) is not None:
            value.const_value = found
    for node in nodes(model):
        attribute = node.attributes.get("value")
        if attribute is None or attribute.type != ir.AttributeType.TENSOR or attribute.is_ref():
            continue
        if (found := other(attribute.as_tensor())) is not None:
            node.attributes["value"] = ir.AttrTensor("value", found)


def _dense(tensor: onnx.SparseTensorProto) -> ir.LazyTensor:
    """Returns a sparse tensor as one that is made dense whenever it is looked at."""
    values, indices, shape = tensor.values, tensor.indices, tuple(tensor.dims)

    def compute() -> ir.TensorProtocol:
        filled, places = (ir.serde.deserialize_tensor(part).numpy() for part in (values, indices))
        dense = np.zeros(shape, filled.dtype)
        if places.ndim == 2:
            dense[tuple(places.T)] = filled
        else:
            dense.reshape(-1)[places] = filled
        return ir.Tensor(dense, dtype=ir.DataType(values.data_type), name=values.name)

    return ir.LazyTensor(compute, ir.DataType(values.data_type), ir.Shape(shape), name=values.name)


def graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yields every graph of a message, inner ones too."""
    yield proto.graph
    for attribute in attributes(proto):
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def attributes(proto: onnx.ModelProto) -> Iterator[onnx.AttributeProto]:
    """Yields every attribute of every node of a message, of inner graphs and functions too."""
    for node in _nodes(proto):
        yield from node.attribute


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    bodies: list[Sequence[onnx.NodeProto]] = [proto.graph.node, *(f.node for f in proto.functions)]
    while bodies:
        for node in bodies.pop():
            yield node
            for attribute in node.attribute:
                if attribute.type in _PLAIN:
                    continue
                if attribute.HasField("g"):
                    bodies.append(attribute.g.node)
                bodies.extend(graph.node for graph in attribute.graphs)


# -------------------------------------------------------------------------------------------------- saving
def to_proto(model: ir.Model) -> Serialized:
    """Returns a model's message: the original's, with what has changed since, and without the new tensors' bytes."""
    original = original_of(model)
    stamp = secrets.token_bytes(_TOKEN_BYTES)
    tensors: dict[bytes, ir.TensorProtocol] = {}
    with _tokens(model, original, stamp, tensors):
        now = ir.to_proto(model)
    if original is None:
        return Serialized(now, tensors)
    loaded = to_ir(original)
    with _tokens(loaded, original, stamp, {}):
        then = ir.to_proto(loaded)
    proto = onnx.ModelProto()
    proto.CopyFrom(original.proto)
    _merge(proto, then, now)
    return Serialized(proto, tensors)


@contextmanager
def _tokens(
    model: ir.Model, original: Original | None, stamp: bytes, tensors: dict[bytes, ir.TensorProtocol]
) -> Iterator[None]:
    """Puts a token in the place of each initializer for a while, and notes in `tensors` what it stands for."""
    values = [value for value in _initializers(model) if value.const_value is not None]
    kept = [value.const_value for value in values]
    try:
        for index, (value, tensor) in enumerate(zip(values, kept, strict=True)):
            assert tensor is not None
            known, number = tensor.meta.get(_KEY, (None, 0))
            if original is None or known is not original:
                number = (1 << 64) + index
            token = stamp + number.to_bytes(_TOKEN_BYTES, "little")
            tensors[token] = tensor
            value.const_value = ir.Tensor(np.frombuffer(token, np.uint8), name=value.name)
        yield
    finally:
        for value, tensor in zip(values, kept, strict=True):
            value.const_value = tensor


# -------------------------------------------------------------------------------------------------- merging
# Messages are merged in place: `ours` is the original, `then` and `now` are what onnx-ir made of the model.
def _merge(ours: Any, then: Any, now: Any) -> None:
    """Carries what differs between `then` and `now` over into `ours`."""
    if then == now:
        return
    if isinstance(ours, onnx.TensorProto):
        ours.CopyFrom(now)
        return
    if isinstance(ours, onnx.GraphProto):  # onnx-ir declares the type of every initializer: most models do not
        declared = {value.name for value in ours.value_info}
        here = {t.name for t in now.initializer}.union(*(node.output for node in then.node)) - declared
        _drop(now.value_info, lambda value: value.name in here)
    for field in ours.DESCRIPTOR.fields:
        _merge_field(field.name, field.is_repeated, ours, then, now)
    if isinstance(ours, onnx.GraphProto):
        _settle_graph(ours, then, now)
    elif isinstance(ours, onnx.NodeProto) and any(a.name == "value" for a in ours.attribute):
        _drop(ours.attribute, lambda attribute: attribute.name == "sparse_value")  # it has become the dense `value`


def _merge_field(name: str, repeated: bool, ours: Any, then: Any, now: Any) -> None:
    if repeated:
        _merge_list(getattr(ours, name), getattr(then, name), getattr(now, name))
    elif not now.HasField(name):
        if then.HasField(name):
            ours.ClearField(name)
    elif not isinstance(getattr(now, name), Message):
        if not then.HasField(name) or getattr(then, name) != getattr(now, name):
            setattr(ours, name, getattr(now, name))
    elif then.HasField(name):
        _merge(getattr(ours, name), getattr(then, name), getattr(now, name))
    else:
        getattr(ours, name).CopyFrom(getattr(now, name))


def _merge_list(ours: Any, then: Any, now: Any) -> None:
    """Merges by key (name, output ...), place by place where there is no key, or takes `now` where neither fits."""
    if then == now:
        return
    if isinstance((ours or now or then)[0], onnx.StringStringEntryProto):
        _merge_entries(ours, then, now)
        return
    sides = [[_key(each) for each in side] for side in (ours, then, now)]
    if any(None in side or len(set(side)) < len(side) for side in sides):
        if len(ours) == len(then) == len(now) and isinstance(now[0], Message):
            for mine, old, new in zip(ours, then, now, strict=True):
                _merge(mine, old, new)
        else:
            del ours[:]
            ours.extend(now)
        return
    before, after = dict(zip(sides[1], then, strict=True)), dict(zip(sides[2], now, strict=True))
    _drop(ours, lambda each: _key(each) in before and _key(each) not in after)
    mine = {_key(each): each for each in ours}
    previous: Hashable = None
    for key, new in after.items():
        if key in mine:
            if key in before:
                _merge(mine[key], before[key], new)
            else:
                mine[key].CopyFrom(new)
        elif before.get(key) != new:
            ours.insert(next((i + 1 for i, each in enumerate(ours) if _key(each) == previous), 0), new)
        else:
            continue
        previous = key


def _merge_entries(ours: Any, then: Any, now: Any) -> None:
    """Merges metadata: a key that stands there twice, which onnx-ir reads once, stays twice."""
    before, after = ({entry.key: entry.value for entry in side} for side in (then, now))
    _drop(ours, lambda entry: entry.key in before and entry.key not in after)
    mine = {entry.key: entry for entry in ours}
    for key, value in after.items():
        if key not in mine:
            ours.add(key=key, value=value)
        elif before.get(key) != value:
            mine[key].value = value


def _key(each: Any) -> Hashable:
    """Returns what names a message among its like; None if nothing does."""
    if isinstance(each, onnx.NodeProto):
        return tuple(filter(None, each.output)) or None
    if isinstance(each, onnx.FunctionProto):
        return (each.domain, each.name, each.overload)
    field = _KEYS.get(type(each))
    return getattr(each, field) if field else None


def _drop(messages: Any, unwanted: Callable[[Any], bool]) -> None:
    for index in reversed(range(len(messages))):
        if unwanted(messages[index]):
            del messages[index]


def _settle_graph(ours: onnx.GraphProto, then: onnx.GraphProto, now: onnx.GraphProto) -> None:
    """Removes what the merge has made out of date: sparse forms of dense tensors, types that are declared twice."""
    dense = {tensor.name for tensor in ours.initializer}
    _drop(ours.sparse_initializer, lambda sparse: sparse.values.name in dense)
    ends = dict(zip(chain(map(_key, then.input), map(_key, then.output)), chain(then.input, then.output), strict=True))
    changed = {v.name: v for v in chain(now.input, now.output) if v.name in ends and ends[v.name].type != v.type}
    for value in ours.value_info:
        if value.name in changed:
            value.type.CopyFrom(changed[value.name].type)


_KEYS: dict[type, str] = {
    onnx.TensorProto: "name",
    onnx.ValueInfoProto: "name",
    onnx.AttributeProto: "name",
    onnx.OperatorSetIdProto: "domain",
    onnx.TensorAnnotation: "tensor_name",
}
_PLAIN = frozenset(
    (
        onnx.AttributeProto.FLOAT,
        onnx.AttributeProto.INT,
        onnx.AttributeProto.STRING,
        onnx.AttributeProto.TENSOR,
        onnx.AttributeProto.FLOATS,
        onnx.AttributeProto.INTS,
        onnx.AttributeProto.STRINGS,
    )
)
_HARD = frozenset(
    (onnx.AttributeProto.UNDEFINED, onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS)
)
_VALUE_FIELDS = {
    "f": onnx.AttributeProto.FLOAT,
    "i": onnx.AttributeProto.INT,
    "s": onnx.AttributeProto.STRING,
    "t": onnx.AttributeProto.TENSOR,
    "g": onnx.AttributeProto.GRAPH,
    "floats": onnx.AttributeProto.FLOATS,
    "ints": onnx.AttributeProto.INTS,
    "strings": onnx.AttributeProto.STRINGS,
    "tensors": onnx.AttributeProto.TENSORS,
    "graphs": onnx.AttributeProto.GRAPHS,
    "sparse_tensor": onnx.AttributeProto.SPARSE_TENSOR,
    "tp": onnx.AttributeProto.TYPE_PROTO,
}
