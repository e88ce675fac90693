"""Models that nobody exported: sound ones with random damage, every one told by its seed alone.

`draw(seed)` takes a small sound model (a random network, an operator with what it needs around it, one of the corpus,
or a trained one), edits its graph or its bytes at random, and chooses the command that it is tried with.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import hostile
import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, defs, helper, numpy_helper
from random_graphs import random_net, to_onnx

from onnxprune.testing.cases import build
from onnxprune.testing.generate import GENERATORS, random_case

MODELS = Path(__file__).parent.parent / "models"

CHEAP = ("prune", "--ratio", "0.5", "--criterion", "l1", "--compensate", "none")
_COMMANDS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (60, CHEAP),
    (8, ("prune", "--ratio", "0.3", "--samples", "4")),
    (5, ("prune", "--ratio", "0.7", "--criterion", "l2", "--compensate", "bias", "--samples", "4")),
    (5, (*CHEAP, "--approximate")),
    (4, ("prune", "--target", "macs=0.6", "--allocation", "uniform", "--criterion", "l1", "--compensate", "none")),
    (3, ("prune", "--target", "params=0.5", "--allocation", "uniform", "--criterion", "l1", "--compensate", "none")),
    (3, ("prune", "--ratio", "0.5", "--criterion", "fpgm", "--compensate", "none", "--no-streams", "--align", "2")),
    (2, (*CHEAP, "--dry-run")),
    (2, ("prune", "--ratio", "0")),
    (8, ("inspect",)),
)

_NASTY_INTS = (0, 1, -1, 2, 3, -2, 7, 63, 1 << 15, 1 << 31, -(1 << 31), (1 << 31) - 1, 1 << 40, 1 << 62, -(1 << 63))
_NASTY_FLOATS = (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e38, 1e-45, 0.5)
_NASTY_NAMES = ("", "x", "y", "\x1b[31m", "a\nb", "::error::", "\u202e", "n" * 5000, "<script>", "]]>", "../../x", "\0")


@dataclass(frozen=True)
class Mutation:
    """A damaged model and how it is tried.

    Attributes:
        seed: what all of it follows from.
        base: the sound model that it was made from.
        edits: what was done to it.
        data: the .onnx file.
        command: the command and its options; the model's path goes behind the command.
    """

    seed: int
    base: str
    edits: tuple[str, ...]
    data: bytes
    command: tuple[str, ...]

    def arguments(self, path: Path) -> list[str]:
        """Returns the command line for a model at a path."""
        return [self.command[0], str(path), *self.command[1:]]


def draw(seed: int) -> Mutation:
    """Returns the mutation of a seed."""
    rng = random.Random(seed)
    base, model = _base(rng)
    edits: list[str] = []
    if rng.random() < 0.8:
        for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3))):
            edit = rng.choice(_EDITS)
            edit(rng, model)
            edits.append(edit.__name__.strip("_"))
    data = model.SerializeToString()
    if not edits or rng.random() < 0.1:
        damage = rng.choice(_DAMAGES)
        data = damage(rng, data)
        edits.append(damage.__name__.strip("_"))
    weights, commands = zip(*_COMMANDS, strict=True)
    return Mutation(seed, base, tuple(edits), data, rng.choices(commands, weights)[0])


# -------------------------------------------------------------------------------------------------- sound models
def _base(rng: random.Random) -> tuple[str, onnx.ModelProto]:
    kind = rng.choices(("operator", "network", "corpus", "trained"), (50, 28, 15, 7))[0]
    if kind == "operator":
        domain, op = rng.choice(sorted(GENERATORS))
        seed = rng.randrange(20)
        consumer = rng.choice(("matmul", "sum"))
        return f"{op} {seed} {consumer}", build(random_case(domain, op, seed), consumer, seed)
    if kind == "network":
        seed = rng.randrange(400)
        return f"network {seed}", to_onnx(random_net(seed))
    if kind == "corpus":
        name = rng.choice(sorted(_CORPUS))
        return name, _CORPUS[name]()
    path = rng.choice(_trained())
    return path.stem, onnx.load(path)


def convolutions() -> onnx.ModelProto:
    """Returns a net of convolutions with a shortcut, normalisation, a reshape by computed sizes and a classifier."""
    t = hostile.tensor
    nodes = [
        helper.make_node("Conv", ["x", "c1", "d1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "s", "o", "m", "v"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["r"], "relu1"),
        helper.make_node("Conv", ["r", "c2"], ["b"], "conv2", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "c3"], ["c"], "depthwise", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "r"], ["e"], "add"),
        helper.make_node("GlobalAveragePool", ["e"], ["p"], "pool"),
        helper.make_node("Shape", ["p"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "zero"], ["n0"], "batch", axis=0),
        helper.make_node("Concat", ["n0", "minus"], ["sizes"], "sizes", axis=0),
        helper.make_node("Reshape", ["p", "sizes"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w", "g"], ["y"], "classify", transB=1),
    ]
    weights = [
        t("c1", 8, 3, 3, 3),
        t("d1", 8),
        t("c2", 8, 8, 3, 3, seed=1),
        t("c3", 8, 1, 3, 3, seed=2),
        t("s", 8, seed=3),
        t("o", 8, seed=4),
        t("m", 8, seed=5),
        numpy_helper.from_array(np.ones(8, np.float32), "v"),
        t("w", 4, 8, seed=6),
        t("g", 4, seed=7),
        numpy_helper.from_array(np.array([0], np.int64), "zero"),
        numpy_helper.from_array(np.array([-1], np.int64), "minus"),
    ]
    return hostile.model_of(nodes, weights, inputs=[hostile.floats("x", "N", 3, 8, 8)])


_CORPUS: dict[str, Callable[[], onnx.ModelProto]] = {
    "perceptron": hostile.sound,
    "one channel": hostile.one_channel,
    "shadowing": hostile.shadowing,
    "functions": lambda: hostile.calling({"f": ["g", "Relu"], "g": ["Neg", "Relu"]}),
    "unsorted": hostile.unsorted,
    "listed initializers": hostile.listed_initializers,
    "shared weight": hostile.shared_on_two_axes,
    "weight as output": hostile.weight_as_output,
    "convolutions": convolutions,
}


@cache
def _trained() -> tuple[Path, ...]:
    return tuple(sorted(MODELS.glob("digits_*.onnx")))


# -------------------------------------------------------------------------------------------------- bytes
def _flips(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _header_flips(rng: random.Random, data: bytes) -> bytes:
    """Flips bits where names, shapes and attributes are dense: outside long runs of weights."""
    changed = bytearray(data)
    reach = min(len(changed), 600)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place = rng.randrange(reach)
        changed[place if rng.random() < 0.5 else len(changed) - 1 - place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _bytes_written(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    place = rng.randrange(len(changed))
    changed[place : place + rng.randint(1, 8)] = rng.randbytes(rng.randint(1, 8))
    return bytes(changed)


def _truncation(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def _piece_moved(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    piece = data[start : start + rng.randint(1, 200)]
    place = rng.randrange(len(data))
    return data[:place] + piece + data[place + rng.choice((0, len(piece))) :]


def _piece_lost(rng: random.Random, data: bytes) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randint(1, 64) :]


_DAMAGES: Sequence[Callable[[random.Random, bytes], bytes]] = (
    _flips,
    _header_flips,
    _header_flips,
    _bytes_written,
    _truncation,
    _piece_moved,
    _piece_lost,
)


# -------------------------------------------------------------------------------------------------- nodes
def _node(rng: random.Random, model: onnx.ModelProto) -> onnx.NodeProto:
    if not model.graph.node:
        model.graph.node.append(helper.make_node("Identity", ["x"], ["fuzzed"]))
    return rng.choice(model.graph.node)


def _value(rng: random.Random, model: onnx.ModelProto) -> str:
    graph = model.graph
    names = [v.name for v in graph.input] + [t.name for t in graph.initializer]
    names += [name for node in graph.node for name in node.output]
    return rng.choice(names) if names and rng.random() < 0.97 else rng.choice(_NASTY_NAMES)


def _swap_inputs(rng: random.Random, model: onnx.ModelProto) -> None:
    node, other = _node(rng, model), _node(rng, model)
    if rng.random() < 0.5:
        other = node
    if node.input and other.input:
        i, j = rng.randrange(len(node.input)), rng.randrange(len(other.input))
        node.input[i], other.input[j] = other.input[j], node.input[i]


def _rewire(rng: random.Random, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    if node.input:
        node.input[rng.randrange(len(node.input))] = _value(rng, model)


def _change_arity(rng: random.Random, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    names = node.input if rng.random() < 0.7 else node.output
    if names and rng.random() < 0.6:
        if rng.random() < 0.5:
            names.pop()
        else:
            names[rng.randrange(len(names))] = ""
    else:
        names.append(_value(rng, model) if names is node.input else f"extra{rng.randrange(1000)}")


@cache
def _operators() -> tuple[tuple[str, str], ...]:
    known = {(s.domain, s.name) for s in defs.get_all_schemas()} | set(GENERATORS)
    return tuple(sorted(known))


def _change_operator(rng: random.Random, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    if rng.random() < 0.2:
        node.op_type = rng.choice(("", "Nothing", "Loop", "If", "Scan", "FusedConv"))
    else:
        domain, node.op_type = rng.choice(_operators())
        if domain not in ("", "ai.onnx"):
            node.domain = domain
            if all(o.domain != domain for o in model.opset_import):
                model.opset_import.append(helper.make_opsetid(domain, 1))


def _change_domain(rng: random.Random, model: onnx.ModelProto) -> None:
    _node(rng, model).domain = rng.choice(("", "ai.onnx", "com.microsoft", "ai.onnx.ml", "local", "nowhere", "\n"))


def _delete_node(rng: random.Random, model: onnx.ModelProto) -> None:
    if model.graph.node:
        del model.graph.node[rng.randrange(len(model.graph.node))]


def _duplicate_node(rng: random.Random, model: onnx.ModelProto) -> None:
    copy = onnx.NodeProto()
    copy.CopyFrom(_node(rng, model))
    if rng.random() < 0.7:
        copy.name += "_again"
        copy.output[:] = [f"{name}_again" for name in copy.output]
    model.graph.node.append(copy)


def _shuffle_nodes(rng: random.Random, model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _insert_operator(rng: random.Random, model: onnx.ModelProto) -> None:
    """Puts a random operator on an edge, with random values as what else it needs."""
    node = _node(rng, model)
    schema = rng.choice(_schemas())
    if not node.input:
        return
    place, name = rng.randrange(len(node.input)), f"fuzzed{rng.randrange(10**6)}"
    least = max(schema.min_input, 1)
    inputs = [node.input[place], *(_value(rng, model) for _ in range(least - 1))]
    new = helper.make_node(schema.name, inputs, [name, *(f"{name}_{k}" for k in range(schema.min_output - 1))], name)
    for attribute in schema.attributes.values():
        if attribute.required or rng.random() < 0.1:
            filled = _attribute(rng, attribute.name, int(attribute.type.value))
            if filled is not None:
                new.attribute.append(filled)
    node.input[place] = name
    at = next(k for k, each in enumerate(model.graph.node) if each is node or each == node)
    model.graph.node.insert(at, new)


@cache
def _schemas() -> tuple[defs.OpSchema, ...]:
    return tuple(s for s in defs.get_all_schemas() if not s.domain and s.min_input >= 1)


def _insert_bomb(rng: random.Random, model: onnx.ModelProto) -> None:
    """Puts an operator on an edge whose result is huge, negative or empty."""
    node = _node(rng, model)
    if not node.input:
        return
    place, name = rng.randrange(len(node.input)), f"bomb{rng.randrange(10**6)}"
    rank = rng.randint(0, 4)
    sizes = np.array([rng.choice((0, 1, 2, 3, -1, 1 << 20, 1 << 31, 1 << 40)) for _ in range(rank)], np.int64)
    constant = numpy_helper.from_array(sizes, f"{name}_sizes")
    kind = rng.choice(("ConstantOfShape", "Expand", "Tile", "Reshape", "Pad", "Slice", "Gather", "Resize", "Range"))
    inputs = [node.input[place], constant.name]
    if kind == "ConstantOfShape":
        inputs = [constant.name]
    elif kind == "Resize":
        inputs = [node.input[place], "", "", constant.name]
    elif kind == "Slice":
        inputs = [node.input[place], constant.name, constant.name]
    elif kind == "Range":
        inputs = [constant.name] * 3
    model.graph.initializer.append(constant)
    model.graph.node.insert(0, helper.make_node(kind, inputs, [name], name))
    node.input[place] = name


def _wrap_in_if(rng: random.Random, model: onnx.ModelProto) -> None:
    """Moves a node into both branches of an If."""
    graph = model.graph
    if not graph.node:
        return
    at = rng.randrange(len(graph.node))
    node = onnx.NodeProto()
    node.CopyFrom(graph.node[at])
    if len(node.output) != 1:
        return
    branches = {}
    for branch in ("then_branch", "else_branch"):
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.name, inner.output[0] = f"{node.name}_{branch}", f"{node.output[0]}_{branch}"
        branches[branch] = helper.make_graph([inner], branch, [], [onnx.ValueInfoProto(name=inner.output[0])])
    condition = f"condition{rng.randrange(10**6)}"
    graph.initializer.append(numpy_helper.from_array(np.array(rng.random() < 0.5), condition))
    graph.node[at].CopyFrom(helper.make_node("If", [condition], list(node.output), node.name, **branches))


# -------------------------------------------------------------------------------------------------- attributes
def _attribute(rng: random.Random, name: str, kind: int) -> AttributeProto | None:
    """Returns an attribute with a random value; None for graphs."""
    ints = [rng.choice(_NASTY_INTS) for _ in range(rng.randint(0, 5))]
    values: dict[int, object] = {
        AttributeProto.INT: rng.choice((*range(-3, 12), *_NASTY_INTS)),
        AttributeProto.INTS: ints,
        AttributeProto.FLOAT: rng.choice(_NASTY_FLOATS),
        AttributeProto.FLOATS: [rng.choice(_NASTY_FLOATS) for _ in ints],
        AttributeProto.STRING: rng.choice(("", "linear", "SAME_UPPER", "constant", "forward", "sum", "\xff", "a->a")),
        AttributeProto.STRINGS: ["Tanh", "\n"][: rng.randint(0, 2)],
        AttributeProto.TENSOR: numpy_helper.from_array(np.array(ints, np.int64), "t"),
    }
    if kind not in values:
        return None
    return helper.make_attribute(name, values[kind], attr_type=kind)


def _change_attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if not nodes:
        return
    attribute = rng.choice(rng.choice(nodes).attribute)
    what = rng.random()
    if what < 0.1:
        attribute.name = rng.choice(_NASTY_NAMES)
    elif what < 0.2:
        attribute.type = rng.choice(list(AttributeProto.AttributeType.values()))
    elif what < 0.25:
        attribute.ref_attr_name = "outside"
    elif what < 0.5 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice((*range(-3, 9), *_NASTY_INTS))
    else:
        filled = _attribute(rng, attribute.name, attribute.type)
        if filled is not None:
            attribute.CopyFrom(filled)


def _add_attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    names = (
        "axis",
        "axes",
        "perm",
        "group",
        "kernel_shape",
        "strides",
        "pads",
        "keepdims",
        "to",
        "transB",
        "hidden_size",
    )
    kind = rng.choice((AttributeProto.INT, AttributeProto.INTS, AttributeProto.FLOAT, AttributeProto.STRING))
    filled = _attribute(rng, rng.choice(names), kind)
    if filled is not None and all(a.name != filled.name for a in node.attribute):
        node.attribute.append(filled)


def _delete_attribute(rng: random.Random, model: onnx.ModelProto) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if nodes:
        attributes = rng.choice(nodes).attribute
        del attributes[rng.randrange(len(attributes))]


# -------------------------------------------------------------------------------------------------- tensors
def _tensor(rng: random.Random, model: onnx.ModelProto) -> TensorProto:
    tensors = list(model.graph.initializer)
    tensors += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    return rng.choice(tensors) if tensors else TensorProto()


def _change_dims(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
    dims = list(tensor.dims)
    what = rng.random()
    if what < 0.3:
        rng.shuffle(dims)
    elif what < 0.5 and len(dims) > 1:
        dims = [dims[0] * dims[1], *dims[2:]]
    elif what < 0.7:
        dims.insert(rng.randint(0, len(dims)), 1)
    elif dims:
        dims[rng.randrange(len(dims))] = rng.choice(_NASTY_INTS)
    tensor.dims[:] = dims


def _resize_tensor(rng: random.Random, model: onnx.ModelProto) -> None:
    """Gives a float weight another shape, with data that fit it."""
    tensor = _tensor(rng, model)
    if tensor.data_type == TensorProto.FLOAT and all(0 <= d < 10_000 for d in tensor.dims):
        shape = [rng.choice((d, d, d, 0, 1, 2, d + 1, d - 1 if d else 1)) for d in tensor.dims]
        tensor.CopyFrom(hostile.tensor(tensor.name, *shape, seed=rng.randrange(100)))


def _change_dtype(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
    if rng.random() < 0.5:
        tensor.data_type = rng.choice((*TensorProto.DataType.values(), 99, -1))
        return
    wanted = rng.choice((np.float16, np.float64, np.int8, np.int32, np.int64, np.bool_, np.uint8))
    if tensor.data_type in (TensorProto.FLOAT, TensorProto.INT64) and tensor.dims:
        with np.errstate(all="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(wanted), tensor.name))


def _change_values(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32) or tensor.external_data:
        return
    try:
        array = numpy_helper.to_array(tensor).copy()
    except ValueError:  # an earlier edit has made nonsense of it
        return
    choices = _NASTY_FLOATS if array.dtype.kind == "f" else [n for n in _NASTY_INTS if abs(n) < 1 << 31]
    flat = array.reshape(-1)
    if not flat.size:
        return
    if rng.random() < 0.5:
        flat[:] = rng.choice(choices)
    else:
        for _ in range(rng.randint(1, 3)):
            flat[rng.randrange(flat.size)] = rng.choice(choices)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _delete_tensor(rng: random.Random, model: onnx.ModelProto) -> None:
    if model.graph.initializer:
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


def _tensor_as_input(rng: random.Random, model: onnx.ModelProto) -> None:
    """Declares a weight as an input too, or instead."""
    if model.graph.initializer:
        at = rng.randrange(len(model.graph.initializer))
        tensor = model.graph.initializer[at]
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        if rng.random() < 0.5:
            del model.graph.initializer[at]


def _tensor_in_a_file(rng: random.Random, model: onnx.ModelProto) -> None:
    tensor = _tensor(rng, model)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    location = rng.choice(("model.onnx", "model.onnx", "../x", "/etc/passwd", ".", "none", ""))
    for key, value in (("location", location), ("offset", rng.choice(("0", "8", "-1", "x", "9" * 30)))):
        tensor.external_data.add(key=key, value=value)


# -------------------------------------------------------------------------------------------------- declarations
def _change_declaration(rng: random.Random, model: onnx.ModelProto) -> None:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if not values:
        return
    value = rng.choice(values)
    kind, what = value.type.tensor_type, rng.random()
    if what < 0.2:
        value.ClearField("type")
    elif what < 0.35:
        kind.ClearField("shape")
    elif what < 0.5:
        kind.elem_type = rng.choice((*TensorProto.DataType.values(), 99))
    elif what < 0.6:
        kind.shape.dim.add().dim_value = rng.choice(_NASTY_INTS)
    elif what < 0.7 and kind.shape.dim:
        kind.shape.dim.pop()
    elif kind.shape.dim:
        dim = rng.choice(kind.shape.dim)
        if rng.random() < 0.4:
            dim.dim_param = rng.choice(("N", "batch", "", *_NASTY_NAMES))
        else:
            dim.dim_value = rng.choice((*range(12), *_NASTY_INTS))


def _change_outputs(rng: random.Random, model: onnx.ModelProto) -> None:
    if rng.random() < 0.3 and model.graph.output:
        model.graph.output.pop()
    else:
        model.graph.output.append(onnx.ValueInfoProto(name=_value(rng, model)))


def _rename(rng: random.Random, model: onnx.ModelProto) -> None:
    """Renames one value wherever it stands, or only in one of these places."""
    old, new = _value(rng, model), rng.choice((*_NASTY_NAMES, _value(rng, model)))
    everywhere = rng.random() < 0.5
    for names in [names for node in model.graph.node for names in (node.input, node.output)]:
        for k, name in enumerate(names):
            if name == old and (everywhere or rng.random() < 0.3):
                names[k] = new
    for each in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        if each.name == old and (everywhere or rng.random() < 0.3):
            each.name = new


def _rename_nodes(rng: random.Random, model: onnx.ModelProto) -> None:
    _node(rng, model).name = rng.choice((*_NASTY_NAMES, _node(rng, model).name))


def _change_versions(rng: random.Random, model: onnx.ModelProto) -> None:
    what = rng.random()
    if what < 0.6 and model.opset_import:
        rng.choice(model.opset_import).version = rng.choice((*range(-1, 27), 999, 1 << 40))
    elif what < 0.7 and model.opset_import:
        rng.choice(model.opset_import).domain = rng.choice(_NASTY_NAMES)
    elif what < 0.8 and model.opset_import:
        model.opset_import.append(model.opset_import[0])
    else:
        model.ir_version = rng.choice((0, 1, 2, 3, 4, 7, 10, 13, 99, -1))


def _add_metadata(rng: random.Random, model: onnx.ModelProto) -> None:
    props = rng.choice((model.metadata_props, _node(rng, model).metadata_props, model.graph.metadata_props))
    for _ in range(rng.choice((1, 2))):
        props.add(key=rng.choice(_NASTY_NAMES), value=rng.choice(("", "v" * 100_000, "\0", "{")))


_EDITS: Sequence[Callable[[random.Random, onnx.ModelProto], None]] = (
    _swap_inputs,
    _rewire,
    _rewire,
    _change_arity,
    _change_operator,
    _change_operator,
    _change_domain,
    _delete_node,
    _duplicate_node,
    _shuffle_nodes,
    _insert_operator,
    _insert_operator,
    _insert_operator,
    _insert_bomb,
    _wrap_in_if,
    _change_attribute,
    _change_attribute,
    _change_attribute,
    _add_attribute,
    _delete_attribute,
    _change_dims,
    _resize_tensor,
    _change_dtype,
    _change_values,
    _change_values,
    _delete_tensor,
    _tensor_as_input,
    _tensor_in_a_file,
    _change_declaration,
    _change_declaration,
    _change_outputs,
    _rename,
    _rename_nodes,
    _change_versions,
    _add_metadata,
)
