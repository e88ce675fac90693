"""A checker for operator rules: cut what a rule says, and compare with the masked original in onnxruntime.

    python -m onnxprune.testing Conv

draws random shapes and attributes for one operator (for all of them, without a name) from a seed, and lists wrong and
missing couplings. Tables with expected groups are written with the same `Case` in tests/ops.
"""

from onnxprune.testing.cases import Case, Consumer, Data, Feed, Weight, build
from onnxprune.testing.check import Outcome, check, check_model
from onnxprune.testing.freedom import missing

__all__ = ["Case", "Consumer", "Data", "Feed", "Outcome", "Weight", "build", "check", "check_model", "missing"]
