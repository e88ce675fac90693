"""The cut itself: constants are sliced, copied on write where uses differ, and sizes, attributes and shapes follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.engine.coupling import Use
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.precomputed import precomputed
from onnxprune.engine.sizes import Rewrite
from onnxprune.graph.constants import constants, is_constant
from onnxprune.graph.edit import add_constant, free_name, replace_constant, sweep
from onnxprune.graph.flat import restore
from onnxprune.graph.lazy import Striped
from onnxprune.ops.zero_points import blank

Change = Callable[[Use, np.ndarray], Iterator[np.ndarray]]  # parts along the first axis

LAZY_FROM = 1 << 22  # bytes; larger tensors are sliced when they are written


def cut(cutting: Cutting, rewrite: Rewrite) -> ir.Model:
    """Returns a new model without the cut units; the original is not changed and shares the untouched tensors."""
    editor = _Editor(cutting)
    editor.precompute()
    editor.constants(cutting.slices, cutting.shape_of)
    editor.fold()
    editor.select()
    editor.factors(rewrite)
    editor.edges(rewrite)
    editor.own(rewrite)
    editor.attributes(rewrite)
    editor.shapes()
    editor.scales(rewrite)
    return editor.done()


def masked(cutting: Cutting) -> ir.Model:
    """Returns the original with every cut weight set to zero (quantized ones: to their zero point)."""
    editor = _Editor(cutting)
    editor.constants(editor.blanked, lambda use: use.shape)
    return editor.done()


class _Editor:
    """Edits one clone of the model."""

    def __init__(self, cutting: Cutting) -> None:
        self.cutting, self.coupling = cutting, cutting.coupling
        self.model = self.coupling.model.clone()
        self.graph = self.model.graph
        self.nodes = self.coupling.numbered(self.model)
        self.tensors = constants(self.graph)
        self.holders = {n.outputs[0].name: n for n in self.graph if is_constant(n)}
        self.gone: frozenset[int] = frozenset()

    def done(self) -> ir.Model:
        """Returns the edited model, with its bodies where they belong."""
        flat = self.coupling.flat
        return self.model if flat is None else restore(flat, self.model)

    def constants(self, change: Change, shape_of: Callable[[Use], tuple[int, ...]]) -> None:
        """Changes every constant that loses something: in place where all its readers agree, else in copies."""
        by_name: dict[str, list[Use]] = {}
        for use in self.coupling.uses:
            if self.cutting.touches(use) and use.node not in self.gone:
                by_name.setdefault(use.name, []).append(use)
        for name, uses in by_name.items():
            variants: dict[bytes, list[Use]] = {}
            for use in uses:
                variants.setdefault(self.cutting.mask(use).tobytes() if len(uses) > 1 else b"", []).append(use)
            whole = self._readers(name) > len(uses)
            for k, same in enumerate(variants.values()):
                tensor = self._changed(name, same[0], change, shape_of(same[0]))
                if k == 0 and not whole:
                    replace_constant(self.model, name, tensor)
                else:
                    fresh = add_constant(self.model, name, tensor, self.nodes[same[0].node])
                    for use in same:
                        self.nodes[use.node].replace_input_with(use.slot, fresh)

    def _readers(self, name: str) -> int:
        value = self._value(name)
        return len(value.uses()) + value.is_graph_output()

    def _value(self, name: str) -> ir.Value:
        return self.graph.initializers[name] if name in self.graph.initializers else self.holders[name].outputs[0]

    def _changed(self, name: str, use: Use, change: Change, shape: tuple[int, ...]) -> ir.TensorProtocol:
        """Returns the changed tensor; a large one is made when it is read."""
        old = self.tensors[name]
        made = Striped(
            lambda: change(use, old.numpy()),
            old.dtype,
            ir.Shape(shape),
            name=old.name or name,
            doc_string=old.doc_string,
        )
        if old.nbytes >= LAZY_FROM:
            return made
        return ir.Tensor(made.numpy(), dtype=old.dtype, name=old.name, doc_string=old.doc_string)

    def blanked(self, use: Use, values: np.ndarray) -> Iterator[np.ndarray]:
        """Yields a constant with its cut elements at zero, quantized ones at their zero point."""
        zero = blank(self.coupling.nodes[use.node], use.slot, use.shape)
        yield values if zero is None else np.where(self.cutting.mask(use), values, zero.astype(values.dtype))

    def precompute(self) -> None:
        """Puts constants where whole weights would stay for them alone; what computed them goes."""
        found = precomputed(self.cutting)
        self.gone = found.gone
        outputs = {v.name: v for k in found.gone for v in self.nodes[k].outputs}
        for name, content in found.contents.items():
            self._settle(outputs[name], content)
        sweep(self.model, [v for k in sorted(found.gone) for v in self.nodes[k].outputs])

    def _settle(self, value: ir.Value, content: np.ndarray) -> None:
        """Gives the readers of a value a constant."""
        readers = list(value.uses())
        fresh = add_constant(self.model, str(value.name), ir.Tensor(np.ascontiguousarray(content)), readers[0].node)
        for reader in readers:
            reader.node.replace_input_with(reader.idx, fresh)

    def fold(self) -> None:
        """Input-independent values that are cut become constants."""
        outputs = {v.name: v for n in self.nodes for v in n.outputs if v.name}
        for f in self.coupling.folded:
            kept = [self.cutting.kept(f.tensor, axis) for axis in range(len(f.tensor.shape))]
            if all(len(k) == n for k, n in zip(kept, f.tensor.shape, strict=True)):
                continue
            self._settle(outputs[f.name], self.coupling.trace.values[f.name][0][np.ix_(*kept)])

    def select(self) -> None:
        """Puts a Gather between computed weights, or divisors, and readers that need a part of them."""
        for s in self.coupling.selected:
            reader = self.nodes[s.readers[0][0]]
            part = value = reader.inputs[s.readers[0][1]]
            assert part is not None and value is not None
            producer = value.producer()
            for axis in s.axes:
                if not self.cutting.is_cut(s.tensor, axis):
                    continue
                kept = ir.Tensor(self.cutting.kept(s.tensor, axis).astype(np.int64))
                index = add_constant(self.model, f"{s.name}_kept", kept, reader)
                name = f"{(producer.name if producer else None) or s.name}_kept"
                gather = ir.node("Gather", [part, index], attributes={"axis": axis}, name=free_name(self.model, name))
                part = self._put_before(reader, gather, value, s.name)
            if part is not value:
                for node, slot in s.readers:
                    self.nodes[node].replace_input_with(slot, part)

    def edges(self, rewrite: Rewrite) -> None:
        """Writes constants of sizes, each on its own edge; equal ones that replace the same value are shared."""
        made: dict[tuple[str, bytes], ir.Value] = {}
        for (index, slot), content in sorted(rewrite.edges.items(), key=lambda item: item[0]):
            node = self.nodes[index]
            old = node.inputs[slot] if slot < len(node.inputs) else None
            name = old.name if old is not None and old.name else f"{node.outputs[0].name}_sizes"
            key = (name, repr(content.shape).encode() + content.tobytes())
            only = old is not None and old.name in self.tensors and len(old.uses()) == 1 and not old.is_graph_input()
            if only and not (old is not None and old.is_graph_output()):
                replace_constant(self.model, name, ir.Tensor(content, name=self.tensors[name].name))
                continue
            if key not in made or self.model.ir_version < 4:
                made[key] = add_constant(self.model, name, ir.Tensor(content), node)
            if slot >= len(node.inputs):
                node.resize_inputs(slot + 1)
            node.replace_input_with(slot, made[key])

    def own(self, rewrite: Rewrite) -> None:
        """Puts a Where before nodes that need other numbers in computed sizes than the rest of their readers."""
        for (index, slot), entries in sorted(rewrite.own.items(), key=lambda item: item[0]):
            node = self.nodes[index]
            value, old = node.inputs[slot], self.coupling.nodes[index].inputs[slot]
            assert value is not None and old is not None
            name = str(old.name)
            shape, dtype = self.coupling.trace.shapes[name][0], self.coupling.trace.dtypes[name]
            here, numbers = np.zeros(shape, bool), np.zeros(shape, dtype)
            here[list(entries)], numbers[list(entries)] = True, list(entries.values())
            given = [add_constant(self.model, f"{name}_own", ir.Tensor(x), node) for x in (here, numbers)]
            where = ir.node("Where", [*given, value], name=free_name(self.model, f"{node.name or name}_own"))
            node.replace_input_with(slot, self._put_before(node, where, value, name))

    def _put_before(self, reader: ir.Node, added: ir.Node, value: ir.Value, name: str) -> ir.Value:
        """Returns what a node gives that stands before a reader from now on: of a value's type, named after it."""
        result = added.outputs[0]
        result.name, result.type = free_name(self.model, name), value.type
        self.graph.insert_before(reader, added)
        return result

    def factors(self, rewrite: Rewrite) -> None:
        """Multiplies constants, each for the one node that needs it."""
        for (index, slot), factor in rewrite.factors.items():
            node = self.nodes[index]
            value = node.inputs[slot]
            assert value is not None and value.name is not None
            old = ir.convenience.get_const_tensor(value)
            assert old is not None
            scaled = (old.numpy().astype(np.float64) * factor).astype(old.numpy().dtype)
            tensor = ir.Tensor(scaled, dtype=old.dtype, name=old.name, doc_string=old.doc_string)
            if len(value.uses()) == 1 and not value.is_graph_output():
                replace_constant(self.model, value.name, tensor)
            else:
                node.replace_input_with(slot, add_constant(self.model, value.name, tensor, node))

    def scales(self, rewrite: Rewrite) -> None:
        """Puts a node behind outputs that need one; what it gives has the output's old name."""
        for (index, k), scale in rewrite.scales.items():
            node = self.nodes[index]
            old = node.outputs[k]
            name = str(old.name)
            dtype = self.coupling.trace.dtypes[name]
            number = add_constant(self.model, f"{name}_restored_by", ir.Tensor(np.array(scale.factor, dtype)), node)
            old.name = free_name(self.model, f"{name}_of_kept")
            mul = ir.node(scale.by, [old, number], name=free_name(self.model, f"{node.name or name}_restored"))
            restored = mul.outputs[0]
            restored.name, restored.type, restored.shape = name, old.type, old.shape
            self.graph.insert_after(node, mul)
            for reader in list(old.uses()):
                if reader.node is not mul:
                    reader.node.replace_input_with(reader.idx, restored)
            for place, v in enumerate(self.graph.outputs):
                if v is old:
                    self.graph.outputs[place] = restored

    def attributes(self, rewrite: Rewrite) -> None:
        """Writes attributes, or removes those whose new value is None."""
        for (index, name), value in rewrite.attributes.items():
            if value is None:
                del self.nodes[index].attributes[name]
            else:
                self.nodes[index].attributes[name] = ir.convenience.convert_attribute(name, value)

    def shapes(self) -> None:
        """Declared shapes of cut values follow; a size that stood for a product with a dynamic one is taken out."""
        for value in self._activations():
            t = self.coupling.tensors.get(value.name or "")
            if t is None or not t.arrays or value.shape is None or len(value.shape) != len(t.shape):
                continue
            dims: list[Any] = list(value.shape)
            first, second = self.coupling.trace.shapes[value.name or ""]
            for axis in range(len(dims)):
                if self.cutting.is_cut(t, axis):
                    dims[axis] = len(self.cutting.kept(t, axis)) if first[axis] == second[axis] == dims[axis] else None
            value.shape = ir.Shape(dims)

    def _activations(self) -> Iterator[ir.Value]:
        for node in self.nodes:
            yield from node.outputs
