"""A corpus of bad, broken and hostile models, and of odd ones that must work.

`corpus()` lists the cases; `case.make(folder)` writes one into an empty folder and returns the command line that it is
tried with. Whatever reads models must survive all of them: the right exit code, one line on stderr, no traceback, the
folder as it was.
"""

from __future__ import annotations

import os
import random
import stat
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, OnnxPruneError, UsageError

RATIO = ("--ratio", "0.5")


@dataclass(frozen=True)
class Case:
    """One file, or command line, that has gone wrong somewhere.

    Attributes:
        row: the kind of trouble; cases of one kind share it.
        name: what is wrong.
        write: puts the files into a folder and returns the model's path.
        codes: the exit codes that are right for `onnxprune MODEL ...`.
        error: what `onnxprune.model.load` raises; None if it must load.
        says: a part of the message.
        options: the command line after the model, `{folder}` standing for the folder.
    """

    row: int
    name: str
    write: Callable[[Path], Path]
    codes: frozenset[int]
    error: type[OnnxPruneError] | None = None
    says: str = ""
    options: tuple[str, ...] = RATIO

    def make(self, folder: Path) -> list[str]:
        """Writes the case's files and returns the arguments of the command."""
        return [str(self.write(folder)), *(option.replace("{folder}", str(folder)) for option in self.options)]


# -------------------------------------------------------------------------------------------------- sound models
def tensor(name: str, *shape: int, seed: int = 0) -> TensorProto:
    """Returns a float tensor of random numbers."""
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32), name)


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """Returns the declaration of a float value."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    initializers: Iterable[TensorProto] = (),
    *,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    domains: Sequence[str] = (),
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """Returns a model from x (N, 8) to y (N, 4), unless told otherwise."""
    graph = helper.make_graph(
        nodes, "g", inputs or [floats("x", "N", 8)], outputs or [floats("y", "N", 4)], list(initializers)
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=functions)


def sound() -> onnx.ModelProto:
    """Returns a perceptron with nothing wrong: 8 inputs, 16 hidden units, 4 outputs."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], "second"),
    ]
    weights = [tensor("w1", 8, 16), tensor("b1", 16, seed=1), tensor("w2", 16, 4, seed=2), tensor("b2", 4, seed=3)]
    return model_of(nodes, weights)


def externalized(model: onnx.ModelProto, location: str = "model.data", start: int = 0) -> bytes:
    """Moves the weights of a model out of it and returns the content of their data file."""
    data = bytearray(start)
    for each in model.graph.initializer:
        raw = each.raw_data
        each.ClearField("raw_data")
        each.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", len(data)), ("length", len(raw))):
            each.external_data.add(key=key, value=str(value))
        data += raw
    return bytes(data)


def write(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """Returns the path of a model that was written as it is, without any check."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def contents(folder: Path) -> dict[str, object]:
    """Returns what lies in a folder: kinds, links and contents."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        name = str(path.relative_to(folder))
        if stat.S_ISLNK(mode):
            found[name] = path.readlink()
        elif stat.S_ISREG(mode) and os.access(path, os.R_OK):
            found[name] = path.read_bytes()
        else:
            found[name] = stat.S_IFMT(mode)
    return found


def _put(data: bytes, name: str = "model.onnx") -> Callable[[Path], Path]:
    def writer(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return writer


def _model(build: Callable[[], onnx.ModelProto]) -> Callable[[Path], Path]:
    return lambda folder: write(build(), folder)


def _changed(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], Path]:
    def writer(folder: Path) -> Path:
        model = sound()
        change(model)
        return write(model, folder)

    return writer


def _first(change: Callable[[TensorProto], None]) -> Callable[[Path], Path]:
    return _changed(lambda model: change(model.graph.initializer[0]))


# -------------------------------------------------------------------------------------------------- files
def _truncated(sixteenths: int) -> Callable[[Path], Path]:
    data = sound().SerializeToString()
    return _put(data[: len(data) * sixteenths // 16])


def _archive(member: str) -> Callable[[Path], Path]:
    def writer(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "model.onnx", "w") as archive:
            archive.writestr(member, b"\x80\x02}q\x00.")
        return folder / "model.onnx"

    return writer


def _directory(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder / "model.onnx"


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


def _unreadable(folder: Path) -> Path:
    path = write(sound(), folder)
    path.chmod(0)
    return path


def external(location: str = "model.data", *, cut: int = 0, **entries: str) -> Callable[[Path], Path]:
    """Returns a writer of a model with external data: `cut` bytes short, and with these entries in its first tensor."""

    def writer(folder: Path) -> Path:
        model = sound()
        data = externalized(model, location)
        for entry in model.graph.initializer[0].external_data:
            entry.value = entries.get(entry.key, entry.value)
        (folder / "model.data").write_bytes(data[: len(data) - cut])
        return write(model, folder)

    return writer


def _missing_data(folder: Path) -> Path:
    path = external()(folder)
    (folder / "model.data").unlink()
    return path


def _data_is_a_pipe(folder: Path) -> Path:
    path = _missing_data(folder)
    os.mkfifo(folder / "model.data")
    return path


def _escaping_link(folder: Path) -> Path:
    home = folder / "home"
    home.mkdir()
    path = external()(home)
    (home / "model.data").rename(folder / "outside.data")
    (home / "model.data").symlink_to("../outside.data")
    return path


def _escaping_folder(folder: Path) -> Path:
    (folder / "home").mkdir()
    path = external("sub/model.data")(folder / "home")
    (folder / "outside").mkdir()
    (folder / "home" / "model.data").rename(folder / "outside" / "model.data")
    (folder / "home" / "sub").symlink_to("../outside")
    return path


def snapshot(folder: Path) -> Path:
    """Returns a model laid out as in the cache of the Hugging Face hub: all files are links into one folder."""
    blobs, shot = folder / "blobs", folder / "snapshots" / "abc"
    blobs.mkdir()
    shot.mkdir(parents=True)
    path = external()(shot)
    for name, blob in (("model.onnx", "0a1b"), ("model.data", "2c3d")):
        (shot / name).rename(blobs / blob)
        (shot / name).symlink_to(f"../../blobs/{blob}")
    return path


def hard_linked(folder: Path) -> Path:
    """Returns a model whose data file has a second name."""
    path = external()(folder)
    (folder / "again.data").hardlink_to(folder / "model.data")
    return path


def _overlapping(folder: Path) -> Path:
    model = sound()
    data = externalized(model)
    for each in model.graph.initializer:
        each.external_data[1].value = "0"
    (folder / "model.data").write_bytes(data)
    return write(model, folder)


# -------------------------------------------------------------------------------------------------- tensors
def _dims(*dims: int) -> Callable[[Path], Path]:
    def change(each: TensorProto) -> None:
        del each.dims[:]
        each.dims.extend(dims)

    return _first(change)


def _raw(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    return _first(lambda each: setattr(each, "raw_data", change(each.raw_data)))


def _typed_as(data_type: int) -> Callable[[Path], Path]:
    return _first(lambda each: setattr(each, "data_type", data_type))


def _twice(each: TensorProto) -> None:
    each.float_data.extend([0.5] * 128)


def _wrong_field(each: TensorProto) -> None:
    each.ClearField("raw_data")
    each.double_data.extend([0.5] * 128)


def _constant_attribute() -> onnx.ModelProto:
    value = tensor("c", 4)
    value.dims[0] = 1 << 40
    nodes = [helper.make_node("Constant", [], ["c"], "k", value=value), helper.make_node("Add", ["x", "c"], ["y"])]
    return model_of(nodes)


def vast_sizes(*, arithmetic: bool) -> onnx.ModelProto:
    """Returns a model with an input of 2^31 sizes, which shape inference with data propagation would all write down."""
    nodes = [helper.make_node("ConstantOfShape", ["total" if arithmetic else "s"], ["c"], "fill")]
    if arithmetic:
        nodes[:0] = [
            helper.make_node("Concat", ["s", "s"], ["two"], "join", axis=0),
            helper.make_node("Add", ["two", "two"], ["total"], "double"),
        ]
    model = sound()
    model.graph.input.append(helper.make_tensor_value_info("s", TensorProto.INT64, [1 << 31]))
    model.graph.output.append(onnx.ValueInfoProto(name="c"))
    model.graph.node.extend(nodes)
    return model


def bomb(kind: str) -> onnx.ModelProto:
    """Returns a perceptron that also makes a value of terabytes out of a few bytes."""
    amounts = {
        "ConstantOfShape": np.array([1 << 20, 1 << 22], np.int64),
        "Expand": np.array([1 << 20, 1 << 20, 1, 1], np.int64),
        "Tile": np.array([1 << 20, 1 << 22], np.int64),
        "Resize": np.array([1e5, 1e7], np.float32),
        "Pad": np.array([0, 0, 1 << 20, 1 << 40], np.int64),
        "Range": np.array(1 << 45, np.int64),
    }
    inputs = {
        "ConstantOfShape": ["amount"],
        "Resize": ["r", "", "amount"],
        "Range": ["zero", "amount", "one"],
    }.get(kind, ["r", "amount"])
    model = sound()
    model.graph.node.append(helper.make_node(kind, inputs, ["vast"], "bomb"))
    constants = {"amount": amounts[kind]}
    if kind == "Range":
        constants |= {"zero": np.array(0), "one": np.array(1)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    model.graph.node.append(helper.make_node("Shape", ["vast"], ["size"], "size"))
    model.graph.output.append(helper.make_tensor_value_info("size", TensorProto.INT64, [None]))
    return model


def not_finite(value: float, *, everywhere: bool = False) -> onnx.ModelProto:
    """Returns a perceptron in which a weight, or all weights of the hidden layer, are no numbers."""
    weights = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    if everywhere:
        weights[:] = value
    else:
        weights[3, 5] = value
    model = sound()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w1"))
    return model


# -------------------------------------------------------------------------------------------------- graphs
def all_zero() -> onnx.ModelProto:
    """Returns a perceptron whose hidden layer is all zeros."""
    model = sound()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((8, 16), np.float32), "w1"))
    return model


def constant_activations() -> onnx.ModelProto:
    """Returns a perceptron whose hidden units give the same whatever comes in."""
    model = all_zero()
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full(16, 2, np.float32), "b1"))
    return model


def one_channel() -> onnx.ModelProto:
    """Returns a perceptron with a single hidden unit."""
    model = sound()
    for each, shape in zip(model.graph.initializer, ((8, 1), (1,), (1, 4)), strict=False):
        each.CopyFrom(tensor(each.name, *shape))
    return model


def infinite_loop() -> onnx.ModelProto:
    """Returns a model that never ends."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Identity", ["v"], ["same"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            floats("v", "N", 4),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), floats("same", "N", 4)],
    )
    model = sound()
    model.graph.node[2].output[0] = "start"
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    model.graph.node.append(helper.make_node("Loop", ["", "true", "start"], ["y"], "forever", body=body))
    return model


def nested_ifs(depth: int) -> bytes:
    """Returns a model file with an If in an If in an If ... (by hand: protobuf refuses to build it)."""

    def inside(field: int, content: bytes) -> bytes:
        length, size = bytearray(), len(content)
        while size > 127:
            length.append(size & 127 | 128)
            size >>= 7
        return bytes([field << 3 | 2, *length, size]) + content

    leaf = helper.make_graph([helper.make_node("Relu", ["x"], ["v0"])], "leaf", [], [onnx.ValueInfoProto(name="v0")])
    branch = leaf.SerializeToString()
    for level in range(1, depth + 1):
        node = onnx.NodeProto(op_type="If", name=f"if{level}", input=["true"], output=[f"v{level}"]).SerializeToString()
        for name in ("then_branch", "else_branch")[: 2 if level == 1 else 1]:
            attribute = onnx.AttributeProto(name=name, type=onnx.AttributeProto.GRAPH).SerializeToString()
            node += inside(5, attribute + inside(6, branch))
        rest = onnx.GraphProto(name=f"b{level}", output=[onnx.ValueInfoProto(name=f"v{level}")])
        branch = inside(1, node) + rest.SerializeToString()
    model = model_of([], [numpy_helper.from_array(np.array(True), "true")], outputs=[floats(f"v{depth}", "N", 8)])
    del model.graph.output[:]
    return model.SerializeToString() + inside(7, branch)


def cyclic() -> onnx.ModelProto:
    """Returns a model in which two nodes wait for each other."""
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], "one"), helper.make_node("Relu", ["a"], ["b"], "two")]
    return model_of([*nodes, helper.make_node("Identity", ["b"], ["y"])], outputs=[floats("y", "N", 8)])


def calling(bodies: dict[str, Sequence[str]]) -> onnx.ModelProto:
    """Returns a model that calls the first of some functions; each applies others, one after another."""
    functions = []
    for name, callees in bodies.items():
        values = ["a", *(f"v{index}" for index in range(len(callees) - 1)), "b"]
        nodes = [
            helper.make_node(callee, [before], [after], domain="local" if callee in bodies else "")
            for callee, before, after in zip(callees, values, values[1:], strict=False)
        ]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        functions.append(helper.make_function("local", name, ["a"], ["b"], nodes, imports))
    node = helper.make_node(next(iter(bodies)), ["x"], ["y"], "call", domain="local")
    return model_of([node], outputs=[floats("y", "N", 8)], functions=functions, domains=["local"])


def exponential() -> onnx.ModelProto:
    """Returns a model of 50 functions that inlines to 2^50 nodes."""
    return calling({**{f"f{k}": [f"f{k + 1}"] * 2 for k in range(50)}, "f50": ["Relu"]})


def shadowing() -> onnx.ModelProto:
    """Returns a model whose If gives a value inside it the name of one outside."""
    return _branching([helper.make_node("Neg", ["h"], ["w2"]), helper.make_node("Relu", ["w2"], ["t"])])


def shadowing_constant() -> onnx.ModelProto:
    """Returns a model whose If holds a constant with the name of one outside."""
    return _branching([helper.make_node("Mul", ["h", "b1"], ["t"])], tensor("b1", 16, seed=7))


def _branching(nodes: list[onnx.NodeProto], *constants: TensorProto) -> onnx.ModelProto:
    """Returns the perceptron with an If in the middle, one of whose branches is made of `nodes`."""
    model = sound()
    then = helper.make_graph(nodes, "t", [], [floats("t")], list(constants))
    other = helper.make_graph([helper.make_node("Relu", ["h"], ["e"])], "e", [], [floats("e")])
    model.graph.node[1].CopyFrom(helper.make_node("If", ["true"], ["r"], "choose", then_branch=then, else_branch=other))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    return model


def _same_output(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "h"


def _output_is_input(model: onnx.ModelProto) -> None:
    model.graph.node[0].output[0] = "x"


def _same_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(tensor("w1", 8, 16, seed=9))


def _same_node_names(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.name = "node"


def constants_of_one_name() -> onnx.ModelProto:
    """Returns a net whose weights are Constant nodes of one name."""
    model = sound()
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    for k, each in enumerate(weights):
        model.graph.node.insert(k, helper.make_node("Constant", [], [each.name], "anon", value=each))
    return model


def _undefined_input(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def unsorted() -> onnx.ModelProto:
    """Returns a perceptron whose nodes stand in the wrong order, as onnxruntime accepts them."""
    model = sound()
    nodes = list(reversed(model.graph.node))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def listed_initializers() -> onnx.ModelProto:
    """Returns a perceptron of 2018, in which every initializer is an input too."""
    model = sound()
    model.ir_version, model.opset_import[0].version = 3, 8
    for each in model.graph.initializer:
        model.graph.input.append(floats(each.name, *each.dims))
    return model


def shared_on_two_axes() -> onnx.ModelProto:
    """Returns a net that uses one weight twice, once transposed."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], "down"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w"], ["y"], "up", transB=1),
    ]
    return model_of(nodes, [tensor("w", 8, 16)], outputs=[floats("y", "N", 8)])


def weight_as_output() -> onnx.ModelProto:
    """Returns a perceptron that also gives out one of its weights."""
    model = sound()
    model.graph.output.append(floats("w1", 8, 16))
    return model


def custom_operator() -> onnx.ModelProto:
    """Returns a perceptron with an activation that nobody knows."""
    model = sound()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Mystery", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    return model


def _opset_999(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def nothing_to_prune() -> onnx.ModelProto:
    """Returns a model without a single weight."""
    return model_of([helper.make_node("Relu", ["x"], ["y"])], outputs=[floats("y", "N", 8)])


NASTY = (
    "<script>alert(1)</script>",
    "]]>",
    "\x1b[31mred\x1b]0;title\x07",
    "two\nlines\r",
    "\u202eright to left\u2066",
    "::error file=x::gone",
    "##[error]gone",
    "| a | b |`code`",
    "../../etc/passwd",
    "{{7*7}}${HOME}%s",
)
"""Names that mean something to a terminal, a page, a table, a log of CI, a shell or a file system."""


def named(names: Sequence[str]) -> onnx.ModelProto:
    """Returns a perceptron whose nodes, weights, values, and metadata have these names."""
    model = sound()
    fresh = {old: f"{names[k % len(names)]}{k}" for k, old in enumerate(("w1", "b1", "w2", "b2", "h", "r", "x", "y"))}
    for node in model.graph.node:
        node.name = f"{names[len(node.name) % len(names)]}{node.name}"
        node.input[:] = [fresh[name] for name in node.input]
        node.output[:] = [fresh[name] for name in node.output]
    for each in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        each.name = fresh[each.name]
    model.graph.name = model.producer_name = names[0]
    model.metadata_props.add(key=names[0], value=names[-1])
    return model


def long_name() -> onnx.ModelProto:
    """Returns a perceptron in which a weight and a node have names of 10 MB."""
    model = sound()
    model.graph.node[0].name = "n" * 10_000_000
    model.graph.node[0].input[1] = model.graph.initializer[0].name = "w" * 10_000_000
    return model


def _heavy_metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="history of everything", value="v" * 100_000_000)


def _name_cases() -> list[Case]:
    return [
        *(_good(31, f"names of {name[:12]!r}", partial(named, [name])) for name in NASTY),
        _good(31, "names of 10 MB", long_name),
        _good(32, "names that lead elsewhere", lambda: named(["../../../x", "/etc/passwd"])),
        Case(33, "100 MB of metadata", _changed(_heavy_metadata), frozenset({0})),
    ]


def _no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def _no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def corpus() -> list[Case]:
    """Returns all cases that this machine can make."""
    return [
        *_file_cases(),
        *_external_cases(),
        *_tensor_cases(),
        *_vast_cases(),
        *_number_cases(),
        *_graph_cases(),
        *_name_cases(),
        *_command_cases(),
    ]


def _bad(row: int, name: str, writer: Callable[[Path], Path], says: str = "") -> Case:
    return Case(row, name, writer, frozenset({3}), ModelError, says)


def _good(row: int, name: str, build: Callable[[], onnx.ModelProto], *codes: int) -> Case:
    return Case(row, name, _model(build), frozenset(codes or {0}))


def _file_cases() -> list[Case]:
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 12345\n"
    cases = [
        _bad(1, "empty file", _put(b""), "empty"),
        _bad(2, "random bytes", _put(random.Random(0).randbytes(4096))),
        *(_bad(2, f"truncated at {n}/16", _truncated(n), "truncated") for n in range(1, 16)),
        _bad(2, "no operator sets", _changed(_no_opset), "operator set"),
        _bad(2, "no outputs", _changed(_no_outputs), "no outputs"),
        _bad(3, "PyTorch checkpoint", _archive("archive/data.pkl"), "PyTorch"),
        _bad(3, "old PyTorch checkpoint", _put(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M"), "pickle"),
        _bad(3, "zip", _archive("config.json"), "zip"),
        _bad(3, "TensorFlow Lite", _put(b"\x1c\x00\x00\x00TFL3" + bytes(64)), "TensorFlow Lite"),
        _bad(3, "HTML page", _put(b"<!DOCTYPE html>\n<html><body>404</body></html>"), "HTML"),
        _bad(3, "Git-LFS pointer", _put(lfs), "git lfs pull"),
        _bad(3, "safetensors", _put(b'\x40\0\0\0\0\0\0\0{"w":{"dtype":"F32"' + bytes(64)), "safetensors"),
        _bad(3, "HDF5", _put(b"\x89HDF\r\n\x1a\n" + bytes(64)), "HDF5"),
    ]
    usage = [("directory", _directory, "folder"), ("missing", lambda folder: folder / "none.onnx", "does not exist")]
    if hasattr(os, "mkfifo"):
        usage += [("pipe", _fifo, "pipe"), ("device", lambda folder: Path("/dev/zero"), "device")]
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # root reads everything
        usage += [("unreadable", _unreadable, "permissions")]
    return [*cases, *(Case(4, name, make, frozenset({2, 3}), UsageError, says) for name, make, says in usage)]


def _external_cases() -> list[Case]:
    cases = [
        _bad(5, f"data at {location[:20]!r}", external(location), says)
        for location, says in (
            ("../x", "outside"),
            ("/etc/passwd", "no relative path"),
            ("sub/../../x", "outside"),
            ("sub\\..\\..\\x", "outside"),
            ("C:\\x", "no relative path"),
            ("", "no relative path"),
            ("model.data\0", "no relative path"),
            ("x" * 5000, "cannot be read"),
        )
    ]
    if hasattr(os, "mkfifo"):
        cases += [
            _bad(6, "data linked to outside", _escaping_link, "leads outside"),
            _bad(6, "folder linked to outside", _escaping_folder, "leads outside"),
            Case(6, "Hugging Face snapshot", snapshot, frozenset({0})),
            Case(7, "hard-linked data", hard_linked, frozenset({0})),
            _bad(8, "data file is a pipe", _data_is_a_pipe, "pipe"),
        ]
    return [
        *cases,
        _bad(8, "data file missing", _missing_data, "missing"),
        _bad(8, "data file truncated", external(cut=1), "truncated"),
        _bad(9, "length too long", external(length="516"), "516"),
        _bad(9, "length too short", external(length="508"), "508"),
        _bad(9, "offset negative", external(offset="-4"), "offset"),
        _bad(9, "length negative", external(length="-512"), "length"),
        _bad(9, "offset past the end", external(offset="1000000"), "truncated"),
        _bad(9, "offset of 10^30", external(offset="1" + "0" * 30), "offset"),
        _bad(9, "length in words", external(length="many"), "length"),
        Case(10, "overlapping ranges", _overlapping, frozenset({0})),
    ]


def _tensor_cases() -> list[Case]:
    return [
        _bad(12, "dims 2^40", _dims(1 << 40), "bytes"),
        _bad(12, "dims overflow to 2^64", _dims(1 << 32, 1 << 32), "more elements"),
        _bad(12, "dims overflow to 128", _dims((1 << 62) + 32, 4), "more elements"),
        _bad(12, "dims huge beside a zero", _dims(0, 1 << 40, 1 << 40), "more elements"),
        _bad(12, "65 axes", _dims(*[1] * 65), "axes"),
        _bad(12, "dims 2^40 in a Constant", _model(_constant_attribute), "bytes"),
        _bad(13, "negative dim", _dims(-8, 16), "negative"),
        _bad(13, "two negative dims", _dims(-8, -16), "negative"),
        _bad(14, "raw_data too short", _raw(lambda data: data[:-1]), "needs 512 bytes"),
        _bad(14, "raw_data too long", _raw(lambda data: data + b"\0"), "needs 512 bytes"),
        _bad(14, "no data at all", _first(lambda each: each.ClearField("raw_data")), "needs 128 values"),
        _bad(15, "data type 999", _typed_as(999), "999"),
        _bad(15, "data type undefined", _typed_as(0), "undefined"),
        _bad(15, "strings as raw_data", _typed_as(TensorProto.STRING), "strings"),
        _bad(16, "raw_data and float_data", _first(_twice), "twice"),
        _bad(16, "floats as double_data", _first(_wrong_field), "double_data"),
    ]


def _graph_cases() -> list[Case]:
    return [
        _good(20, "all-zero layer", all_zero),
        _good(20, "constant activations", constant_activations),
        _good(20, "one channel", one_channel, 0, 6),
        Case(21, "infinite loop", _model(infinite_loop), frozenset({7}), options=(*RATIO, "--timeout", "5")),
        _bad(22, "If nested 25 deep", _put(nested_ifs(25)), "24 graphs deep"),
        _bad(22, "If nested 60 deep", _put(nested_ifs(60)), "deep"),
        _bad(23, "cycle", _model(cyclic), "cycle"),
        _bad(23, "recursive function", _model(lambda: calling({"f": ["f"]})), "circle"),
        _bad(23, "mutual recursion", _model(lambda: calling({"f": ["g"], "g": ["Relu", "f"]})), "circle"),
        _bad(23, "exponential inlining", _model(exponential), "1,000,000"),
        _bad(24, "two outputs of one name", _changed(_same_output), "already names"),
        _bad(24, "output named as an input", _changed(_output_is_input), "already names"),
        _bad(24, "two initializers of one name", _changed(_same_initializer), "2 times"),
        _bad(24, "shadowed name in a subgraph", _model(shadowing), "around it"),
        _good(24, "constant that shadows one outside", shadowing_constant),
        _bad(24, "undefined input", _changed(_undefined_input), "nowhere"),
        _bad(24, "nodes that share a name", _changed(_same_node_names), "3 times"),
        _good(24, "constants that share a name", constants_of_one_name),
        _good(24, "nodes out of order", unsorted),
        _good(25, "initializers among the inputs", listed_initializers),
        _good(26, "one weight on two axes", shared_on_two_axes, 0, 6),
        _good(27, "weight as output", weight_as_output, 0, 6),
        _good(28, "unknown operator", custom_operator, 5),
        Case(28, "opset 999", _changed(_opset_999), frozenset({3, 5})),
        _good(30, "nothing to prune", nothing_to_prune, 6),
    ]


def _vast_cases() -> list[Case]:
    kinds = ("ConstantOfShape", "Expand", "Tile", "Resize", "Pad", "Range")
    return [
        Case(17, "2^31 sizes", _model(lambda: vast_sizes(arithmetic=False)), frozenset({3})),
        Case(17, "2^31 sizes and arithmetic", _model(lambda: vast_sizes(arithmetic=True)), frozenset({3})),
        *(Case(18, f"{kind} of terabytes", _model(partial(bomb, kind)), frozenset({3, 7})) for kind in kinds),
    ]


def _number_cases() -> list[Case]:
    data_free = ("--ratio", "0.5", "--criterion", "l1", "--compensate", "none")
    cases = []
    for value in (float("nan"), float("inf"), float("-inf")):
        for everywhere in (False, True):
            where = "all weights" if everywhere else "one weight"
            build = partial(not_finite, value, everywhere=everywhere)
            cases.append(Case(19, f"{where} {value}", _model(build), frozenset({0, 3, 6})))
            cases.append(Case(19, f"{where} {value}, no data", _model(build), frozenset({0, 3, 6}), options=data_free))
    return cases


def _command_cases() -> list[Case]:
    def to(*output: str) -> tuple[str, ...]:
        return (*RATIO, "-o", *output)

    def linked(folder: Path) -> Path:
        path = write(sound(), folder)
        (folder / "link.onnx").symlink_to(path)
        return path

    def blocked(folder: Path) -> Path:
        (folder / "taken").mkdir()
        return write(sound(), folder)

    plain = _model(sound)
    cases = [
        Case(37, "output is the input", plain, frozenset({2}), options=to("{folder}/model.onnx")),
        Case(37, "output is the data file", external(), frozenset({2}), options=to("{folder}/model.data")),
        Case(37, "output is a folder", blocked, frozenset({2}), options=to("{folder}/taken")),
        Case(38, "output folder missing", plain, frozenset({7}), options=to("{folder}/none/out.onnx")),
    ]
    if hasattr(os, "mkfifo"):
        cases += [Case(37, "output is a link to the input", linked, frozenset({2}), options=to("{folder}/link.onnx"))]
    if Path("/dev/full").exists():
        cases += [Case(37, "output is a device", plain, frozenset({2}), options=to("/dev/full"))]
    return cases
