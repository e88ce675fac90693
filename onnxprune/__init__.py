"""Makes trained ONNX models smaller and faster, with no training: channels, neurons, heads and units are taken out.

    import onnxprune

    result = onnxprune.prune("model.onnx", ratio=0.5)
    result.report.macs.after
    result.save("small.onnx")

Public names are loaded when they are first used, so that `onnxprune --help` need not wait for onnxruntime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.errors import (
        DataError,
        GateError,
        ModelError,
        NothingToPruneError,
        OnnxPruneError,
        ProviderError,
        RunError,
        TargetError,
        UsageError,
        ValidationError,
    )
    from onnxprune.latency.benchmark import bench
    from onnxprune.latency.timing import Timing
    from onnxprune.pipeline import Result, inspect, prune
    from onnxprune.plan import Plan
    from onnxprune.proof.comparison import validate
    from onnxprune.proof.gate import Verdict, judge
    from onnxprune.proof.gate_limits import Limits
    from onnxprune.reports.report import Comparison, Inspection, Report
    from onnxprune.tradeoff import Sweep, sweep

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "DataError",
    "GateError",
    "Inspection",
    "Limits",
    "ModelError",
    "NothingToPruneError",
    "OnnxPruneError",
    "Plan",
    "ProviderError",
    "Report",
    "Result",
    "RunError",
    "Sweep",
    "TargetError",
    "Timing",
    "UsageError",
    "ValidationError",
    "Verdict",
    "__version__",
    "bench",
    "inspect",
    "judge",
    "prune",
    "sweep",
    "validate",
]

_HOME_OF = {
    "Comparison": "reports.report",
    "Inspection": "reports.report",
    "Limits": "proof.gate_limits",
    "Plan": "plan",
    "Report": "reports.report",
    "Result": "result",
    "Sweep": "tradeoff",
    "Timing": "latency.timing",
    "Verdict": "proof.gate",
    "bench": "latency.benchmark",
    "inspect": "pipeline",
    "judge": "proof.gate",
    "prune": "pipeline",
    "sweep": "tradeoff",
    "validate": "proof.comparison",
}


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
