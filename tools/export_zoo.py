"""Exports architectures of torchvision, timm, transformers and Keras with random weights, to try the program on.

    pip install ".[zoo]"
    python tools/export_zoo.py FOLDER [PATTERN ...]

Writes one .onnx each (about 4 GB in all), two of three by PyTorch's newer exporter, one by the older; what is there
already is left. Nothing is downloaded. `benchmarks/zoo.py FOLDER` then prunes and proves each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
import warnings
from fnmatch import fnmatchcase
from pathlib import Path

import onnx
import torch
from torch import nn
from zoo_catalogue import Entry, OfKeras, entries

SEED = 0
LEAST_CHANGE = 1e-3


def main() -> int:
    """Exports what is not there yet; returns 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("patterns", nargs="*", default=["*"], help="globs over file names")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.backends.mha.set_fastpath_enabled(False)  # a kernel of inference that the older exporter does not know
    failed = 0
    for entry in entries():
        target = arguments.folder / entry.file
        if target.exists() or not any(fnmatchcase(entry.file, p) for p in arguments.patterns):
            continue
        start = time.time()
        try:
            export(entry, target)
            print(f"{entry.file}: {target.stat().st_size / 1e6:.0f} MB, {time.time() - start:.0f} s", flush=True)
        except Exception:  # one architecture that a library's release broke must not keep the others back
            failed += 1
            print(f"{entry.file}: {traceback.format_exc(limit=-1).strip()}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def export(entry: Entry, target: Path) -> None:
    """Writes one architecture in inference mode, with dynamic axes, whole or not at all."""
    torch.manual_seed(SEED)
    net, example, moving = entry.make()
    net.eval()
    stir(net, example)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, torch.no_grad():
        first, second = (net(x)[0] for x in (example, example.flip(0)))
        if not float((first - second).abs().max()) > LEAST_CHANGE * float(first.abs().max()):
            raise ValueError("the output hardly depends on the input")
        written = Path(folder) / "model.onnx"
        if entry.legacy:
            names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": moving, "y": {0: "batch"}}}
            torch.onnx.export(net, (example,), written, dynamo=False, opset_version=17, **names)
        else:
            shapes = (dict.fromkeys(moving, torch.export.Dim.DYNAMIC),)
            torch.onnx.export(net, (example,), written, dynamo=True, dynamic_shapes=shapes, verbose=False)
        onnx.save(onnx.load(written), Path(folder) / "whole.onnx")
        (Path(folder) / "whole.onnx").replace(target)


@torch.no_grad()
def stir(net: nn.Module, example: torch.Tensor) -> None:
    """Moves what libraries initialise to zeros or ones, and BatchNormalizations, as training would have.

    Without that many outputs hardly depend on the input (layer scales of 1e-6), and a wrong cut would not show.
    """
    for parameter in filter(torch.is_floating_point, net.parameters()):
        if float(parameter.abs().max()) < 1e-3:
            parameter.normal_(0, 0.1)
        elif parameter.dim() < 2:
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    if norms:
        net(example)
    net.eval()
    if isinstance(net, OfKeras):
        net.settle(example)


if __name__ == "__main__":
    sys.exit(main())
