"""Which values of a graph depend on the data of its inputs, and which only on their sizes.

Shape arithmetic and tables are what a cut rewrites, so their contents must be known; a size that is read off the data
(how many entries are not zero) must never be taken for a number that stands.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.graph.constants import Constants, constants, reads_only

__all__ = ["Dependence", "captured", "dependence", "draws", "givens", "made_of", "subgraphs"]


@dataclass(frozen=True)
class Dependence:
    """How values depend on the inputs.

    Attributes:
        static: values whose contents do not depend on the inputs' data.
        unsteady: values whose shape does (NonZero and what follows from it).
    """

    static: frozenset[str]
    unsteady: frozenset[str]


_RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)
# Shapes that follow from contents. Operators not named here take their shape from the shapes of their inputs.
_UNSTEADY = frozenset(
    {"NonZero", "Unique", "Compress", "NonMaxSuppression", "StringSplit", "ImageDecoder", "If", "Loop", "Scan"}
    | {"SplitToSequence", "SequenceAt", "SequenceMap", "ConcatFromSequence", "OptionalGetElement"}
)
_SIZE_SLOTS: dict[str, frozenset[int]] = {
    op: frozenset(slots)
    for op, slots in {
        "Reshape": [1],
        "Expand": [1],
        "Tile": [1, 2],
        "Slice": [1, 2, 3, 4],
        "Pad": [1, 3],
        "ConstantOfShape": [0],
        "Range": [0, 1, 2],
        "Resize": [1, 2, 3],
        "Upsample": [1],
        "TopK": [1],
        "OneHot": [1],
        "Split": [1],
        "Squeeze": [1],
        "Unsqueeze": [1],
        "CenterCropPad": [1],
        "MaxUnpool": [2],
        "AffineGrid": [1],
        "Col2Im": [1, 2],
        "DFT": [1, 2],
        "STFT": [1, 3],
        "HannWindow": [0],
        "HammingWindow": [0],
        "BlackmanWindow": [0],
        "MelWeightMatrix": [0, 1, 2, 3, 4],
        **{f"Reduce{kind}": [1] for kind in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare")},
        **{f"Reduce{kind}": [1] for kind in ("LogSum", "LogSumExp")},
    }.items()
}
_SHAPE_OF_FIRST = frozenset({"ScatterND", "ScatterElements", "Scatter", "TensorScatter"})


def dependence(model: ir.Model) -> Dependence:
    """Return which values of the top-level graph do not depend on the inputs' data, and whose shapes do."""
    graph = model.graph
    static = set(graph.initializers)
    unsteady: set[str] = set()
    _walk(graph, static, unsteady, model.functions)
    return Dependence(frozenset(static), frozenset(unsteady))


def givens(model: ir.Model) -> Constants:
    """Returns the constants that nobody can give another content when the model is run."""
    inputs = {v.name for v in model.graph.inputs}
    return {name: tensor for name, tensor in constants(model.graph).items() if name not in inputs}


def made_of(model: ir.Model, given: Container[str], *, but: Container[str] = ()) -> dict[str, ir.Node]:
    """Returns the nodes that read these constants alone, or what such nodes make, by what they make; in node order.

    Args:
        model: the model.
        given: names of constants.
        but: operators that are left out.
    """
    made: dict[str, ir.Node] = {}
    for node in model.graph:
        known = node.op_identifier() not in model.functions and next(subgraphs(node), None) is None
        if reads_only(node, given, made) and known and node.op_type not in but and not draws(node, model.functions):
            made |= {str(v.name): node for v in node.outputs if v.name}
    return made


def _walk(
    nodes: Iterable[ir.Node],
    static: set[str],
    unsteady: set[str],
    functions: Mapping[ir.OperatorIdentifier, ir.Function],
) -> None:
    """Add the outputs of `nodes`, in order, to the static values and to those of unsteady shape."""
    for node in nodes:
        names = [v.name for v in node.inputs if v is not None and v.name]
        outer = [v for g in subgraphs(node) for v in captured(g)]
        outputs = [v.name for v in node.outputs if v.name]
        fixed = all(n in static for n in [*names, *outer])
        loose = any(n in unsteady for n in [*names, *outer])
        function = functions.get(node.op_identifier())
        if function is not None:
            _call(node, function, static, unsteady, functions)
        elif node.op_type in ("Shape", "Size") and node.domain == "":
            static.update(() if loose else outputs)
        elif fixed and not draws(node, functions):
            static.update(outputs)
        elif node.op_type == "If" and node.inputs[0] is not None and node.inputs[0].name in static:
            _branches(node, static, unsteady, functions)
        else:
            slots = _SIZE_SLOTS.get(node.op_type, frozenset())
            sized_by_data = any(
                v is not None and v.name and v.name not in static for i, v in enumerate(node.inputs) if i in slots
            )
            if node.op_type in _SHAPE_OF_FIRST and node.inputs[0] is not None:
                loose = node.inputs[0].name in unsteady
            if sized_by_data or loose or node.op_type in _UNSTEADY:
                unsteady.update(outputs)


def _call(
    node: ir.Node,
    function: ir.Function,
    static: set[str],
    unsteady: set[str],
    functions: Mapping[ir.OperatorIdentifier, ir.Function],
) -> None:
    """Walk through a local function with what is known of the arguments of this call."""
    inner_static: set[str] = set()
    inner_unsteady: set[str] = set()
    for k, formal in enumerate(function.inputs):
        actual = node.inputs[k] if k < len(node.inputs) else None
        if formal.name is None:
            continue
        if actual is None or actual.name in static:
            inner_static.add(formal.name)
        elif actual.name in unsteady:
            inner_unsteady.add(formal.name)
    _walk(function, inner_static, inner_unsteady, functions)
    for formal, result in zip(function.outputs, node.outputs, strict=False):
        if result.name and formal.name in inner_static:
            static.add(result.name)
        if result.name and formal.name in inner_unsteady:
            unsteady.add(result.name)


def _branches(
    node: ir.Node, static: set[str], unsteady: set[str], functions: Mapping[ir.OperatorIdentifier, ir.Function]
) -> None:
    """Walk into the branches of an If that sizes alone decide: exporters write many of these for squeezed axes."""
    branches = []
    for graph in subgraphs(node):
        inner_static, inner_unsteady = static | set(graph.initializers), set(unsteady)
        _walk(graph, inner_static, inner_unsteady, functions)
        branches.append((graph.outputs, inner_static, inner_unsteady))
    for k, output in enumerate(node.outputs):
        if output.name and any(outs[k].name in inner for outs, _, inner in branches):
            unsteady.add(output.name)
        elif output.name and all(outs[k].name in inner for outs, inner, _ in branches):
            static.add(output.name)


def draws(node: ir.Node, functions: Mapping[ir.OperatorIdentifier, ir.Function]) -> bool:
    """Return whether a node, or one inside it, gives random numbers."""
    if node.op_type in _RANDOM or (node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None):
        return True
    function = functions.get(node.op_identifier())
    inside = [*(function or ()), *(n for g in subgraphs(node) for n in g)]
    return any(draws(n, functions) for n in inside)


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Return the graphs inside a node: branches, bodies of loops."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def captured(graph: ir.Graph) -> Iterator[str]:
    """Return the names that a subgraph takes from outside it."""
    own = {v.name for v in graph.inputs} | set(graph.initializers) | {v.name for n in graph for v in n.outputs}
    for node in graph:
        for v in node.inputs:
            if v is not None and v.name and v.name not in own:
                yield v.name
        for inner in subgraphs(node):
            yield from (name for name in captured(inner) if name not in own)
    yield from (v.name for v in graph.outputs if v.name and v.name not in own)
