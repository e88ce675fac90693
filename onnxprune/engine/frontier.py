"""A network run node by node over many samples, of which only the live values are kept.

Two of these walk side by side: the dense network and the one being pruned. Every segment between two stops is a small
session of its own; weights may be exchanged before their node is run.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.engine.cost import batch_size
from onnxprune.engine.coupling import Coupling
from onnxprune.graph.constants import constants, is_constant
from onnxprune.graph.dependence import captured, subgraphs
from onnxprune.graph.runtime import memory_to_give, open_session, run

AT_ONCE = 1 << 25  # bytes of the largest value of a batch that are aimed at

Feed = MutableMapping[str, np.ndarray]


def room() -> int:
    """Returns how many bytes of live values a walk may keep in memory: an eighth of what is free, 128 MiB at least."""
    return max(memory_to_give() // 4, 1 << 27)


class Spool:
    """Arrays out of the way: in memory, and in plain files when they grow large."""

    def __init__(self) -> None:
        self._room = room()
        self._folder: Path | None = None
        self._held = 0
        self._count = 0

    def store(self, batches: Iterable[Mapping[str, np.ndarray]], *, mixed: bool = False) -> list[Feed]:
        """Returns the same batches, of which no more than one is in memory if they are large; `mixed`: see `Live`."""
        return [Live(self, b, mixed=mixed) for b in batches]

    def put(self, value: np.ndarray) -> Kept:
        """Returns a place that gives the array back; the place is freed when nobody holds it any more."""
        if value.dtype.kind not in "fiub" or value.nbytes < 1 << 16:
            return Kept(value)
        if self._held + value.nbytes <= self._room:
            kept = Kept(value)
            self._held += value.nbytes
            weakref.finalize(kept, self._release, value.nbytes)
            return kept
        path = self._place() / f"{self._count}.bin"
        self._count += 1
        value.tofile(path)  # not mapped: mapped pages count as memory of the process
        kept = Kept(path, value.dtype, value.shape)
        weakref.finalize(kept, path.unlink, missing_ok=True)
        return kept

    def _place(self) -> Path:
        """Returns the folder of the files, made when the first is; it goes with the spool at the latest."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="onnxprune-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def _release(self, size: int) -> None:
        self._held -= size

    def close(self) -> None:
        """Removes all files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


class Kept:
    """An array in a spool."""

    __slots__ = ("__weakref__", "_dtype", "_held", "_shape")

    def __init__(self, held: np.ndarray | Path, dtype: np.dtype | None = None, shape: tuple[int, ...] = ()) -> None:
        self._held, self._dtype, self._shape = held, dtype, shape

    def read(self) -> np.ndarray:
        """Returns the array."""
        if isinstance(self._held, Path):
            return np.fromfile(self._held, self._dtype or np.float32).reshape(self._shape)
        return self._held


class Live(MutableMapping[str, np.ndarray]):
    """Values of one batch by name; the arrays lie in a spool.

    Attributes:
        mixed: they come of mixtures of inputs, not of inputs that were given.
    """

    def __init__(self, spool: Spool, values: Mapping[str, np.ndarray], *, mixed: bool = False) -> None:
        self._spool = spool
        self.mixed: bool = mixed or (isinstance(values, Live) and values.mixed)
        self._kept: dict[str, Kept] = (
            dict(values._kept) if isinstance(values, Live) else {n: spool.put(v) for n, v in values.items()}
        )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._kept[name].read()

    def __setitem__(self, name: str, value: np.ndarray) -> None:
        self._kept[name] = self._spool.put(value)

    def __delitem__(self, name: str) -> None:
        del self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def first(self, samples: int) -> Live:
        """Returns the first of its samples, which stand along axis 0."""
        return Live(self._spool, {name: self[name][:samples] for name in self}, mixed=self.mixed)

    def shares(self, other: Live, name: str) -> bool:
        """Returns whether a value is one and the same in both."""
        return self._kept[name] is other._kept[name]


def samples_at_once(coupling: Coupling) -> int:
    """Returns how many samples to feed at a time so that no value takes much memory, as far as a trace can tell."""
    trace = coupling.trace
    sizes = (
        np.prod(pair[0], dtype=np.float64) * trace.dtypes[name].itemsize
        for name, pair in trace.shapes.items()
        if name not in trace.static and name in trace.dtypes
    )
    each = max(sizes, default=1.0) / batch_size(coupling)
    return int(max(1, AT_ONCE // max(each, 1)))


class Frontier:
    """One network on its way: `values[b]` are the live values of batch b after the nodes run so far."""

    def __init__(
        self,
        coupling: Coupling,
        batches: Iterable[Mapping[str, np.ndarray]],
        providers: Sequence[str],
        spool: Spool,
        lasting: Iterable[tuple[str, int]],
    ) -> None:
        self.coupling, self.providers, self.spool = coupling, providers, spool
        self.nodes = coupling.nodes
        self.tensors = constants(coupling.model.graph)
        self.weights: dict[str, np.ndarray] = {}
        self.biases: dict[int, tuple[int, np.ndarray]] = {}  # new ones: node -> (slot, contents)
        self.at = 0
        self.last_use: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            for name in inputs_of(node):
                self.last_use[name] = index
        for name, index in lasting:
            self.last_use[name] = max(index, self.last_use.get(name, index))
        self.values: list[Live] = [Live(spool, b) for b in batches]

    def advance(self, stop: int) -> None:
        """Runs the nodes before `stop` that have not been run."""
        first, self.at = self.at, max(self.at, stop)
        numbers = [k for k in range(first, self.at) if not is_constant(self.nodes[k])]
        nodes = [self.nodes[k] for k in numbers]
        if not nodes:
            return
        made = {v.name for n in nodes for v in n.outputs if v.name}
        reads = list(
            dict.fromkeys(name for n in nodes for name in inputs_of(n) if name not in made and name not in self.tensors)
        )
        wanted = [
            n
            for n in dict.fromkeys(v.name for x in nodes for v in x.outputs if v.name)
            if self.last_use.get(n, -1) >= self.at
        ]
        if wanted:
            session = open_session(self.segment(numbers, reads, wanted), self.providers, optimise=True)
            for values in self.values:
                found = run(session, wanted, {n: values[n] for n in reads})
                values.update(zip(wanted, found, strict=True))
                del found
        for values in self.values:
            for name in [n for n in values if self.last_use.get(n, -1) < self.at]:
                del values[name]

    def again(self, numbers: Sequence[int], wanted: str) -> None:
        """Makes a live value anew; see `maker`."""
        make = self.maker(numbers, wanted)
        for values in self.values:
            values[wanted] = make(values)

    def maker(self, numbers: Sequence[int], wanted: str) -> Callable[[Feed], np.ndarray]:
        """Returns what makes a value of live values of a batch, with weights as they are now.

        Args:
            numbers: of nodes, in order, among which all are that the value hangs on and that read no live values.
            wanted: the value.
        """
        needed, own = {wanted}, list[int]()
        for k in reversed(numbers):
            if needed & {v.name for v in self.nodes[k].outputs} and not is_constant(self.nodes[k]):
                own.insert(0, k)
                needed.update(inputs_of(self.nodes[k]))
        made = {v.name for k in own for v in self.nodes[k].outputs}
        reads = sorted(name for name in needed - made if name not in self.tensors)
        session = open_session(self.segment(own, reads, [wanted]), self.providers, optimise=True)

        def make(values: Feed) -> np.ndarray:
            return np.asarray(run(session, [wanted], {name: values[name] for name in reads})[0])

        return make

    def content(self, name: str) -> np.ndarray:
        """Returns a constant as it stands in this network."""
        return self.weights[name] if name in self.weights else self.tensors[name].numpy()

    def segment(
        self,
        numbers: Sequence[int],
        reads: Sequence[str],
        wanted: Sequence[str],
        fed: Mapping[str, np.ndarray] | None = None,
    ) -> onnx.ModelProto:
        """Returns nodes as a model of their own; constants and new biases (`bias_name`) in `fed` are inputs of it.

        What is fed is wide: numpy has no integers of four bits, and neither has what hands them to a session.
        """
        given = {n: wide(v) for n, v in (fed or {}).items()}
        narrow = {n: v.dtype for n, v in (fed or {}).items() if given[n] is not v}
        dtypes = self.coupling.trace.dtypes
        nodes = [self.nodes[k] for k in numbers]
        needed = dict.fromkeys(name for n in nodes for name in inputs_of(n) if name in self.tensors)
        graph = onnx.helper.make_graph(
            [
                *(_narrowed(n, dtype) for n, dtype in narrow.items()),
                *(self._message(k, narrow) for k in numbers),
            ],
            "segment",
            [
                *(_info(n, dtypes[n], self._declared(n)) for n in reads),
                *(_info(n, v.dtype, v.shape) for n, v in given.items()),
            ],
            [
                onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(dtypes[n]), None)
                for n in wanted
            ],
            [
                *(self._weight(name) for name in needed if name not in given),
                *(_bias(k, self.biases[k][1]) for k in numbers if k in self.biases and bias_name(k) not in given),
            ],
        )
        model = self.coupling.model
        proto = onnx.helper.make_model(graph, ir_version=max(model.ir_version, 4))
        del proto.opset_import[:]
        proto.opset_import.extend(onnx.helper.make_opsetid(d, v) for d, v in model.graph.opset_imports.items())
        for function in model.functions.values():
            written = ir.to_proto(function)
            assert isinstance(written, onnx.FunctionProto)
            proto.functions.append(written)
        return proto

    def _declared(self, name: str) -> list[int | None]:
        """Returns the shape to declare for a value that is fed: open, but for what onnx takes for 0 then.

        That is the width of three-dimensional queries, and the number of sizes of a Resize.
        """
        trace = self.coupling.trace
        one, other = trace.shapes[name]
        listed = len(one) == 1 and name in trace.static
        known = one[-1:] if one[-1:] == other[-1:] and (listed or name in self._attending) else ()
        return [None] * (len(one) - len(known)) + list(known)

    @cached_property
    def _attending(self) -> set[str]:
        return {name for node in self.nodes if node.op_type == "Attention" for name in inputs_of(node)}

    def _message(self, index: int, narrow: Container[str]) -> onnx.NodeProto:
        """Returns a node, with its new bias if it got one; it reads what is made of inputs that are fed wide."""
        written = ir.to_proto(self.nodes[index])
        assert isinstance(written, onnx.NodeProto)
        if index in self.biases:
            slot = self.biases[index][0]
            written.input.extend([""] * (slot + 1 - len(written.input)))
            written.input[slot] = bias_name(index)
        for slot, name in enumerate(written.input):
            written.input[slot] = narrow_name(name) if name in narrow else name
        return written

    def _weight(self, name: str) -> onnx.TensorProto:
        tensor = self.tensors[name]
        if name in self.weights:
            return onnx.numpy_helper.from_array(np.ascontiguousarray(self.weights[name]), name)
        written = ir.to_proto(ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name))
        assert isinstance(written, onnx.TensorProto)
        return written


def inputs_of(node: ir.Node) -> list[str]:
    """Returns the names that a node reads, those of its subgraphs too."""
    own = [v.name for v in node.inputs if v is not None and v.name]
    return own + [name for g in subgraphs(node) for name in captured(g)]


def _bias(index: int, content: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(content, bias_name(index))


def bias_name(index: int) -> str:
    """Returns the name of the bias that a node got where it had none."""
    return f"onnxprune/bias/{index}"


def wide(content: np.ndarray) -> np.ndarray:
    """Returns numbers in a type that a session can be fed: integers of a few bits in eight, others as they are."""
    few = {"int4": np.int8, "uint4": np.uint8, "int2": np.int8, "uint2": np.uint8}
    return content.astype(few[content.dtype.name]) if content.dtype.name in few else content


def narrow_name(name: str) -> str:
    """Returns the name of what is made of a constant that is fed wide."""
    return f"{name}/narrow"


def _narrowed(name: str, dtype: np.dtype) -> onnx.NodeProto:
    """Returns the node that makes what is fed wide as narrow as it is."""
    to = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    return onnx.helper.make_node("Cast", [name], [narrow_name(name)], to=to)


def _info(name: str, dtype: np.dtype, shape: Sequence[int | None]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(dtype), shape)
