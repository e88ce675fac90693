"""Models run for their outputs: on any execution provider, bound to its memory where that is not the CPU's."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxprune.errors import RunError
from onnxprune.graph.runtime import first_line, not_run, open_for_timing, open_session
from onnxprune.graph.writing import save
from onnxprune.reports.report import Placement

__all__ = ["CPU", "Outputs", "Runner", "Subject", "off_cpu", "placement", "ready", "run_all"]

Outputs = dict[str, npt.NDArray[np.generic]]
Subject = Path | onnx.ModelProto

CPU = "CPUExecutionProvider"
LARGE = 1 << 26  # bytes of weights from which on a model is handed over as a file
MOST_IN_MEMORY = 1 << 30  # bytes of weights up to which it may be a message all the same

# Providers that work in a memory of their own, and onnxruntime's name for it.
_DEVICES = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
    "ROCMExecutionProvider": "cuda",
    "MIGraphXExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
}


class Runner:
    """A session that is given feeds and gives outputs by name.

    Attributes:
        providers: onnxruntime's names of execution providers, in order.
    """

    def __init__(self, subject: Subject, providers: Sequence[str], *, optimise: bool = True) -> None:
        """Opens a session.

        Args:
            subject: a message, or the path of a model.
            providers: onnxruntime's names of execution providers, in order.
            optimise: with all graph optimisations, as users run it, or with none.

        Raises:
            ModelError, ProviderError: onnxruntime does not take the graph.
        """
        self.providers = tuple(providers)
        self._session = open_session(subject, providers, optimise=optimise)
        self._inputs = [i.name for i in self._session.get_inputs()]
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._device = _DEVICES.get(self.providers[0]) if self.providers else None

    def __call__(self, feed: Mapping[str, np.ndarray]) -> Outputs:
        """Returns the outputs for one feed.

        Raises:
            RunError: the model does not run on it.
        """
        try:
            bound = self._device is not None and all(v.dtype.kind in "biuf" for v in feed.values())
            values = self._bound(feed) if bound else self._session.run(None, dict(feed))
        except Exception as error:  # onnxruntime raises a class per status
            raise not_run(feed, error) from error
        return dict(zip(self._outputs, values, strict=True))

    def _bound(self, feed: Mapping[str, np.ndarray]) -> list[npt.NDArray[np.generic]]:
        """Returns the outputs of a run whose inputs and outputs lie in the memory of the provider."""
        binding = self._session.io_binding()
        for name in self._inputs:
            if name in feed:
                array = np.ascontiguousarray(feed[name])
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self._device, 0))
        for name in self._outputs:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        return list(binding.copy_outputs_to_cpu())


def run_all(
    subject: Subject, feeds: Sequence[Mapping[str, np.ndarray]], providers: Sequence[str], *, optimise: bool = True
) -> list[Outputs]:
    """Returns the outputs for each feed.

    Raises:
        ModelError, ProviderError, RunError: the model is not taken, or does not run.
    """
    runner = Runner(subject, providers, optimise=optimise)
    return [runner(feed) for feed in feeds]


def off_cpu(providers: Sequence[str]) -> bool:
    """Returns whether any of these providers computes otherwise than onnxruntime's own CPU kernels."""
    return any(p != CPU for p in providers)


@contextmanager
def ready(model: Path | ir.Model, external: bool) -> Iterator[Subject]:
    """Gives what a session can be made of: a path as it is, a model as a message or, if large, as a temporary file.

    A large message takes its time, and several times its size in memory until the session stands. Where there is no
    room for a file it has to do.

    Args:
        model: what is to run.
        external: nothing but a file will do.
    """
    if isinstance(model, Path):
        yield model
    elif not external and _weights(model) < LARGE:
        yield ir.to_proto(model)
    else:
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            path = Path(folder) / "model.onnx"
            try:
                save(model, path, external=True, lasting=False)
            except RunError:
                if external or _weights(model) > MOST_IN_MEMORY:
                    raise
            yield path if path.exists() else ir.to_proto(model)


def _weights(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def placement(subject: Subject, feed: Mapping[str, np.ndarray], providers: Sequence[str]) -> tuple[Placement, ...]:
    """Returns which provider ran how many nodes of a model, of which operators, in one run of the optimised graph.

    What a session was given is not what runs where: nodes that a provider has no kernel for fall to the next one. The
    profile of a run says it of every kernel, in all versions of onnxruntime.

    Args:
        subject: a message, or the path of a model.
        feed: what to run it on.
        providers: onnxruntime's names of execution providers, in order.

    Raises:
        ModelError, ProviderError, RunError: the model is not taken, or does not run.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        session = open_for_timing(subject, providers, profile=Path(folder) / "run")
        try:
            session.run(None, dict(feed))
        except Exception as error:  # onnxruntime raises a class per status
            raise RunError(f"the model does not run: {first_line(error)}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    seen: dict[str, dict[str, str]] = {}
    for event in events:
        told = event.get("args") or {}
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time") and "provider" in told:
            seen.setdefault(str(told["provider"]), {})[str(event["name"])] = str(told.get("op_name", ""))
    order = {name: k for k, name in enumerate(providers)}
    found = []
    for name in sorted(seen, key=lambda n: (order.get(n, len(order)), n)):
        ops = Counter(seen[name].values())
        found.append(Placement(name, sum(ops.values()), dict(sorted(ops.items()))))
    return tuple(found)
