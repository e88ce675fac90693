"""The proof: law 1 against the masked original, and how far the outputs moved, on the file as written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxprune import inputs
from onnxprune.calibration import Calibration
from onnxprune.cost import batch_size, macs
from onnxprune.cut import masked
from onnxprune.cutting import Cutting
from onnxprune.errors import ValidationError
from onnxprune.report import OutputFidelity, Validation
from onnxprune.runtime import first_line, open_session
from onnxprune.writing import save

Outputs = dict[str, npt.NDArray[np.generic]]
Feed = dict[str, np.ndarray]

TOLERANCE = 1e-3
HALF_TOLERANCE = 3e-2
QUANTIZED_TOLERANCE = 5e-2
NOISE_FACTOR = 5.0
IN_MEMORY = 1 << 30  # bytes of weights up to which a model is handed over as one message
FIDELITY_MACS = 10**10  # work that is spent on measuring fidelity
FIDELITY_SAMPLES = 64
REAL_BATCHES = 4


@dataclass(eq=False)
class Judge:
    """Compares pruned models with one original and one cut; the original's outputs are computed once."""

    original: ir.Model
    cutting: Cutting
    providers: tuple[str, ...]
    seed: int
    exact: bool = True
    external: bool = False
    data: Calibration | None = None

    @cached_property
    def feeds(self) -> list[Feed]:
        """Fresh inputs at the traced sizes; the first two are at the two different ones."""
        specs = inputs.specs(self.original)
        shapes = [{n: v.shape for n, v in feed.items()} for feed in self.cutting.coupling.trace.feeds]
        coupling = self.cutting.coupling
        batch = batch_size(coupling)
        rounds = min(FIDELITY_SAMPLES, max(2, FIDELITY_MACS // max(macs(coupling), 1))) // batch
        feeds = [inputs.sample(specs, self.seed + 1, shapes[0])]
        if shapes[1] != shapes[0]:
            feeds.append(inputs.sample(specs, self.seed + 2, shapes[1]))
        if self.data is not None:
            return feeds + list(islice(self.data.batches(), REAL_BATCHES))
        return feeds + [inputs.sample(specs, self.seed + 3 + k, shapes[0]) for k in range(int(rounds) - 1)]

    @cached_property
    def reference(self) -> list[Outputs]:
        """What the original computes."""
        with ready(self.original, self.external) as subject:
            return run_all(subject, self.feeds, self.providers)

    @cached_property
    def expected(self) -> list[Outputs]:
        """What the masked original computes, at each different size."""
        model = masked(self.cutting)
        with ready(model, self.external) as subject:
            return run_all(subject, self.feeds[: self.sizes], self.providers)

    @property
    def sizes(self) -> int:
        """How many of the feeds are at different sizes."""
        trace = self.cutting.coupling.trace
        return 1 + any(trace.feeds[0][n].shape != trace.feeds[1][n].shape for n in trace.feeds[0])

    def judge(self, subject: Path | ir.Model) -> Validation:
        """Returns what was measured on a pruned model.

        Raises:
            ValidationError: it is invalid, does not run, or computes something else than the masked original.
        """
        try:
            check_structure(subject, self.original)
            with ready(subject, self.external) as target:
                found = run_all(target, self.feeds, self.providers)
        except ValidationError:
            raise
        except Exception as error:  # whatever checker and runtime raise, the file is not what it should be
            raise ValidationError(
                f"the pruned model does not run ({first_line(error)}); nothing was written, please report this model"
            ) from error
        moved: float | None = None
        tolerance = TOLERANCE
        if self.exact:
            moved = max(difference(m, f, r) for m, f, r in zip(self.expected, found, self.reference, strict=False))
            tolerance = self._tolerance(moved)
            if not moved <= tolerance:
                raise ValidationError(
                    f"the pruned model differs from the masked original by {moved:.1e} (allowed {tolerance:.1e}); "
                    "nothing was written, please report this model, or freeze what is wrong with --exclude"
                )
        return Validation(
            provider=self.providers,
            error=moved,
            tolerance=tolerance,
            sizes=tuple(_shapes(f) for f in self.feeds[: self.sizes]),
            fidelity=tuple(self._fidelity(found)),
        )

    def _tolerance(self, error: float) -> float:
        """Returns the error to allow: by the arithmetic in the graph, else by its own noise."""
        base = TOLERANCE
        types = {np.dtype(t).itemsize for t in self.cutting.coupling.trace.dtypes.values() if np.dtype(t).kind in "fV"}
        if 2 in types:
            base = HALF_TOLERANCE
        if any(
            "Quantize" in n.op_type or "QLinear" in n.op_type or "Integer" in n.op_type
            for n in self.cutting.coupling.nodes
        ):
            base = QUANTIZED_TOLERANCE
        return base if error <= base else max(base, NOISE_FACTOR * self._noise())

    def _noise(self) -> float:
        """Returns how far the masked original moves under one ulp on its inputs, or at another optimisation level."""
        feeds = self.feeds[: self.sizes]
        moved = [{k: np.nextafter(v, np.inf) if v.dtype.kind == "f" else v for k, v in f.items()} for f in feeds]
        with ready(masked(self.cutting), self.external) as subject:
            others = [
                run_all(subject, moved, self.providers),
                run_all(subject, feeds, self.providers, optimise=False),
            ]
        return max(difference(a, b, a) for other in others for a, b in zip(self.expected, other, strict=True))

    def _fidelity(self, found: Sequence[Outputs]) -> Iterator[OutputFidelity]:
        """Yields, for each float output, how far it moved from the original's."""
        # real data tells most; else all that was made up at the first size
        first_real = self.sizes if self.data is not None else 0
        same_size = [k for k in range(first_real, len(found)) if not (k == 1 and self.sizes == 2)]
        for name, first in self.reference[0].items():
            if first.dtype.kind not in "fV" or any(
                self.reference[k][name].shape != found[k][name].shape for k in same_size
            ):
                continue
            a, b = (
                np.concatenate([np.asarray(o[k][name], np.float64).reshape(-1) for k in same_size])
                for o in (self.reference, found)
            )
            ok = np.isfinite(a) & np.isfinite(b)
            a, b = a[ok], b[ok]
            norm = float(np.linalg.norm(a))
            agreement = None
            if first.ndim == 2 and first.shape[1] > 1:
                hits = [np.argmax(self.reference[k][name], 1) == np.argmax(found[k][name], 1) for k in same_size]
                agreement = float(np.concatenate(hits).mean())
            cosine = float(a @ b / max(norm * float(np.linalg.norm(b)), 1e-30))
            yield OutputFidelity(name, float(np.linalg.norm(a - b) / max(norm, 1e-30)), cosine, agreement)


def difference(expected: Outputs, found: Outputs, original: Outputs) -> float:
    """Returns the largest difference of the float outputs, relative to each one's largest value.

    Where the original is not finite nothing is asked; where it is, both others must be.
    """
    worst = 0.0
    for name, want in expected.items():
        if want.dtype.kind not in "fV":
            continue
        a, b, o = (np.asarray(x, np.float64) for x in (want, found[name], original[name]))
        if a.shape != b.shape:
            return np.inf
        finite = np.isfinite(o) if o.shape == a.shape else np.isfinite(a)
        if not (np.isfinite(a[finite]).all() and np.isfinite(b[finite]).all()):
            return np.inf
        if finite.any():
            worst = max(worst, float(np.abs(a[finite] - b[finite]).max() / max(np.abs(a[finite]).max(), 1e-3)))
    return worst


def check_structure(subject: Path | ir.Model, original: ir.Model) -> None:
    """Passes if onnx's checker does, or if it already refused the original.

    Raises:
        ValidationError: the pruned model is not valid though the original is.
    """
    if isinstance(subject, ir.Model):
        return  # what is written is checked as a file
    try:
        onnx.checker.check_model(str(subject))
    except onnx.checker.ValidationError as error:
        if not _refused(original):
            raise ValidationError(
                f"the pruned model is not valid ({first_line(error)}); nothing was written"
            ) from error


def _refused(original: ir.Model) -> bool:
    with ready(original, True) as path:
        try:
            onnx.checker.check_model(str(path))
        except onnx.checker.ValidationError:
            return True
    return False


@contextmanager
def ready(model: Path | ir.Model, external: bool) -> Iterator[Path | onnx.ModelProto]:
    """Gives what a session can be made of: a path as it is, a model as a message or, if large, as a temporary file."""
    if isinstance(model, Path):
        yield model
    elif not external and _weights(model) < IN_MEMORY:
        yield ir.to_proto(model)
    else:
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            path = Path(folder) / "model.onnx"
            save(model, path, external=True)
            yield path


def _weights(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def run_all(
    subject: Path | onnx.ModelProto,
    feeds: Sequence[Mapping[str, np.ndarray]],
    providers: Sequence[str],
    *,
    optimise: bool = True,
) -> list[Outputs]:
    """Returns the outputs for each feed."""
    session = open_session(subject, providers, optimise=optimise)
    names = [o.name for o in session.get_outputs()]
    return [dict(zip(names, session.run(None, dict(f)), strict=True)) for f in feeds]


def _shapes(feed: Feed) -> str:
    return ", ".join(f"{name} {list(v.shape)}" for name, v in feed.items())
