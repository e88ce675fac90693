"""onnxruntime as this program uses it: bounded in memory and time, and with errors of our own tree."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx
import onnxruntime as ort

from onnxprune.errors import ModelError, ProviderError, RunError, quote

__all__ = [
    "PROVIDERS",
    "Clock",
    "first_line",
    "memory_to_give",
    "open_for_timing",
    "open_session",
    "provider_names",
]


PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv_tensorrt_rtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}


def provider_names(asked: Sequence[str]) -> tuple[str, ...]:
    """Return onnxruntime's names of providers, in order; none asked for is the CPU.

    Args:
        asked: short names (`cpu`, `cuda`, ...) or onnxruntime's own.

    Raises:
        ProviderError: one is not there.
    """
    names = tuple(PROVIDERS.get(name.lower(), name) for name in asked) or ("CPUExecutionProvider",)
    _require(names)
    return names


def _require(names: Sequence[str]) -> None:
    there = ort.get_available_providers()
    missing = [quote(name) for name in names if name not in there]
    if missing:
        raise ProviderError(
            f"onnxruntime has no {missing[0]} here, it has {', '.join(there)}: "
            "install the wheel that brings it, or ask for another provider"
        )


def open_session(
    subject: onnx.ModelProto | Path, providers: Sequence[str], *, optimise: bool = False, threads: int = 0
) -> ort.InferenceSession:
    """Return a session that cannot take more memory than this machine has to give.

    Args:
        subject: a message, or the path of a model (one with external data).
        providers: onnxruntime's names of execution providers, in order.
        optimise: with all graph optimisations, as users run it, or with none.
        threads: how many work on one operator; 0 is the provider's own choice.

    Raises:
        ModelError, ProviderError: onnxruntime does not take the graph.
    """
    level = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.use_deterministic_compute = True
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    return _opened(subject, providers, options)


def open_for_timing(
    subject: onnx.ModelProto | Path, providers: Sequence[str], threads: int = 0, *, profile: Path | None = None
) -> ort.InferenceSession:
    """Return a session as services run it: all optimisations, onnxruntime's own defaults, and threads that don't spin.

    Args:
        subject: a message, or the path of a model.
        providers: onnxruntime's names of execution providers, in order.
        threads: how many work on one operator; 0 is the provider's own choice.
        profile: beginning of the name of a file that the times of all kernels are written to.

    Raises:
        ModelError, ProviderError: onnxruntime does not take the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return _opened(subject, providers, options)


def _opened(
    subject: onnx.ModelProto | Path, providers: Sequence[str], options: ort.SessionOptions
) -> ort.InferenceSession:
    """Return a session with these options, bounded in memory and silent."""
    _require(providers)
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if _bounded_memory():
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        model = str(subject) if isinstance(subject, Path) else subject.SerializeToString()
        session = ort.InferenceSession(model, options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # onnxruntime raises a class per status, protobuf its own
        raise _refusal(error) from error
    dropped = [p for p in providers if p not in session.get_providers()]
    if dropped:
        raise ProviderError(
            f"onnxruntime could not start {dropped[0]}, it runs on {', '.join(session.get_providers())}: "
            "mend its installation, or ask for another provider"
        )
    return session


@functools.cache
def _bounded_memory() -> bool:
    """Return whether sessions here share an arena with an upper limit.

    A model of a hundred bytes can ask for terabytes (ConstantOfShape, Tile, Resize). With a limit this is an error of
    that run; without one the system kills the process. The registration is for the whole process, but only sessions
    that ask for the environment's allocators see it.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    arena = ort.OrtArenaCfg({"max_mem": memory_to_give(), "arena_extend_strategy": 1})
    try:
        ort.create_and_register_allocator(memory, arena)
    except Exception:
        return False
    return True


def memory_to_give() -> int:
    """Return half of what is free, in bytes: of the machine, the container or --max-memory, where that is less."""
    free = [1 << 34]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        free.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free[1:] = [int(lines["MemAvailable"].split()[0]) << 10]
    with contextlib.suppress(OSError, ValueError):
        free.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    with contextlib.suppress(ImportError, AttributeError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_DATA)  # as --max-memory sets it
        free += [limit] if limit != resource.RLIM_INFINITY else []
    return max(min(free) // 2, 1 << 28)


def run(
    session: ort.InferenceSession, wanted: Sequence[str] | None, feed: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Returns the wanted outputs (None: all) for one feed.

    Raises:
        RunError: the graph does not run on it.
    """
    try:
        return list(session.run(None if wanted is None else list(wanted), dict(feed)))
    except Exception as error:  # onnxruntime raises a class per status
        raise not_run(feed, error) from error


def not_run(feed: Mapping[str, np.ndarray], error: Exception) -> RunError:
    """Returns the error to raise where a graph does not run on a feed."""
    shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in list(feed.items())[:4])
    return RunError(f"the model does not run on {shapes}: {first_line(error)}")


_UNKNOWN_OPERATOR = (
    "NOT_IMPLEMENTED",
    "is not a registered function/op",
    "No Op registered",
    "No opset import",
    "is under development",
)


def _refusal(error: Exception) -> ModelError | ProviderError:
    """Return the error to raise where onnxruntime does not take a graph: its own first line says why."""
    line = first_line(error)
    if any(sign in str(error) for sign in _UNKNOWN_OPERATOR):
        return ProviderError(
            f"onnxruntime {ort.__version__} cannot run the model, convert the operator or take another build: {line}"
        )
    return ModelError(f"onnxruntime {ort.__version__} rejects the model, export it again: {line}")


def first_line(error: Exception) -> str:
    """Return the first line of what onnxruntime says: 400 characters at most, without its codes and source files."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text[:4000])
    text = re.sub(r"/\S*onnxruntime\S*\.(cc|h):\d+ .*?\)( const)? ", "", text)
    return text.strip()[:400]


class Clock:
    """Ends runs that take too long: onnxruntime looks at `terminate` between two nodes, in subgraphs too."""

    def __init__(self, seconds: float | None) -> None:
        self.options = ort.RunOptions()
        self.options.log_severity_level = 4
        self.options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self.over = False
        self._timer = None if seconds is None else threading.Timer(seconds, self._end)

    def _end(self) -> None:
        self.over = True
        self.options.terminate = True

    def __enter__(self) -> Self:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
