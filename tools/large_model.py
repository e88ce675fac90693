"""Makes a model of more than 2 GB, prunes it, and prints what that took.

    python tools/large_model.py --layers 40 FOLDER

    python tools/large_model.py --layers 40 FOLDER -- --ratio 0.5 --criterion l1 --compensate none --no-validate

The model is a chain of matrix products of 4,096 x 4,096 floats (64 MiB each) with external data; its answer is compared
with that of the original in which the weights that were cut are zero, as in every run of the command but those with
--no-validate. How long its data file takes to copy is measured before, as what no such run can beat by much.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 4096


def make(folder: Path, layers: int) -> Path:
    """Returns the path of the model, with its weights in a file beside it."""
    rng, nodes, weights, value = np.random.default_rng(0), [], [], "x"
    with (folder / "large.data").open("wb") as file:
        for k in range(layers):
            weight = TensorProto(name=f"w{k}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            weight.data_location = TensorProto.EXTERNAL
            places = {"location": "large.data", "offset": file.tell(), "length": WIDTH * WIDTH * 4}
            for key, entry in places.items():
                weight.external_data.add(key=key, value=str(entry))
            file.write((rng.standard_normal((WIDTH, WIDTH), np.float32) * np.float32(WIDTH**-0.5)).tobytes())
            weights.append(weight)
            nodes.append(helper.make_node("MatMul", [value, f"w{k}"], [f"h{k}"], f"matmul{k}"))
            value = f"h{k}"
            if k < layers - 1:
                nodes.append(helper.make_node("Relu", [value], [f"r{k}"], f"relu{k}"))
                value = f"r{k}"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", WIDTH]) for name in ("x", value))
    graph = helper.make_graph(nodes, "large", [x], [y], weights)
    path = folder / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def copied(file: Path) -> float:
    """Returns the seconds that a copy of a file takes, until it is on the disk."""
    start = time.perf_counter()
    copy = file.with_suffix(".copy")
    shutil.copyfile(file, copy)
    with copy.open("rb") as handle:
        os.fsync(handle.fileno())
    copy.unlink()
    return time.perf_counter() - start


def main() -> int:
    """Returns the exit code of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="an empty folder with room for twice the model")
    parser.add_argument("--layers", type=int, default=40, help="of 64 MiB each")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    parser.add_argument("options", nargs="*", help="of the command, behind --; default: a ratio of 0.1 by l1")
    asked = parser.parse_args()
    path = make(asked.folder, asked.layers)
    options = asked.options or ["--ratio", "0.1", "--criterion", "l1", "--compensate", "none"]
    output = asked.folder / "small.onnx"
    copying = min(copied(path.with_suffix(".data")) for _ in range(3))
    start = time.perf_counter()
    command = [sys.executable, "-m", "onnxprune", "prune", str(path), "-o", str(output), "--json", *options]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10  # of the largest process
    if found.returncode == 0:
        report = json.loads(found.stdout)
        size, proof = report["size"], report["validation"]
        print(f"{size['before']:,} bytes became {size['after']:,} in {seconds:.1f} s, {peak / 1e9:.2f} GB at most")
        print(f"a copy of its data takes {copying:.1f} s")
        if proof is not None:
            print(f"law 1: differs by {proof['error']:.1e}")
    if not asked.keep:
        for file in (path, output, *asked.folder.glob("*.data")):
            file.unlink(missing_ok=True)
    return found.returncode


if __name__ == "__main__":
    sys.exit(main())
