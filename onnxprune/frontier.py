"""A network run node by node over many samples, of which only the live values are kept.

Two of these walk side by side: the dense network and the one being pruned. Every segment between two stops is a small
session of its own; weights may be exchanged before their node is run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.constants import constants, is_constant
from onnxprune.coupling import Coupling
from onnxprune.dependence import captured, subgraphs
from onnxprune.runtime import open_session

IN_MEMORY = 1 << 29  # bytes of live values beyond which new ones go to files

Feed = dict[str, np.ndarray]


class Spool:
    """Live values of many batches: in memory, and in plain files when they grow large."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="onnxprune-")
        self._held = 0
        self._own: set[int] = set()
        self._count = 0

    def keep(self, value: np.ndarray) -> np.ndarray:
        """Returns the same contents, perhaps mapped from a file."""
        if self._held + value.nbytes <= IN_MEMORY or value.nbytes < 1 << 16 or value.dtype.kind not in "fiub":
            self._held += value.nbytes
            self._own.add(id(value))
            return value
        path = Path(self._folder.name) / f"{self._count}.bin"
        self._count += 1
        mapped = np.memmap(path, value.dtype, "w+", shape=value.shape)
        mapped[...] = value
        return mapped

    def drop(self, value: np.ndarray) -> None:
        """Frees a value that nothing reads any more."""
        if isinstance(value, np.memmap):
            Path(str(value.filename)).unlink(missing_ok=True)
        elif id(value) in self._own:
            self._own.discard(id(value))
            self._held -= value.nbytes

    def close(self) -> None:
        """Removes all files."""
        self._folder.cleanup()


class Frontier:
    """One network on its way: `values[b]` are the live values of batch b after the nodes run so far."""

    def __init__(
        self,
        coupling: Coupling,
        batches: Sequence[Feed],
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
        self.values: list[Feed] = [dict(b) for b in batches]

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
            session = open_session(self._segment(numbers, reads, wanted), self.providers, optimise=True)
            for values in self.values:
                found = session.run(wanted, {n: values[n] for n in reads})
                values.update({n: self.spool.keep(v) for n, v in zip(wanted, found, strict=True)})
        for values in self.values:
            for name in [n for n in values if self.last_use.get(n, -1) < self.at]:
                self.spool.drop(values.pop(name))

    def _segment(self, numbers: Sequence[int], reads: Sequence[str], wanted: Sequence[str]) -> onnx.ModelProto:
        """Returns the nodes as a model of their own."""
        dtypes = self.coupling.trace.dtypes
        nodes = [self.nodes[k] for k in numbers]
        needed = dict.fromkeys(name for n in nodes for name in inputs_of(n) if name in self.tensors)
        graph = onnx.helper.make_graph(
            [self._message(k) for k in numbers],
            "segment",
            [_info(n, dtypes, len(self.coupling.trace.shapes[n][0])) for n in reads],
            [
                onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(dtypes[n]), None)
                for n in wanted
            ],
            [
                *(self._weight(name) for name in needed),
                *(_bias(k, self.biases[k][1]) for k in numbers if k in self.biases),
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

    def _message(self, index: int) -> onnx.NodeProto:
        """Returns a node, with its new bias if it got one."""
        written = ir.to_proto(self.nodes[index])
        assert isinstance(written, onnx.NodeProto)
        if index in self.biases:
            slot = self.biases[index][0]
            written.input.extend([""] * (slot + 1 - len(written.input)))
            written.input[slot] = _bias_name(index)
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
    return onnx.numpy_helper.from_array(content, _bias_name(index))


def _bias_name(index: int) -> str:
    return f"onnxprune/bias/{index}"


def _info(name: str, dtypes: Mapping[str, np.dtype], rank: int) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(dtypes[name]), [None] * rank)
