"""The proof: law 1 against the masked original, and how far the outputs moved, on the file as written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxprune.calibration import Calibration, samples_in
from onnxprune.engine.cost import batch_size, macs
from onnxprune.engine.coupling import Coupling
from onnxprune.engine.cut import masked
from onnxprune.engine.cutting import Cutting
from onnxprune.errors import ModelError, ProviderError, RunError, ValidationError
from onnxprune.graph import inputs
from onnxprune.graph.model import Source
from onnxprune.graph.running import CPU, Outputs, Runner, Subject, off_cpu, placement, ready, run_all
from onnxprune.graph.runtime import first_line, open_session
from onnxprune.proof.fidelity import fidelity
from onnxprune.reports.report import Placement, Validation

__all__ = [
    "Judge",
    "base_tolerance",
    "check_structure",
    "difference",
    "fidelity_feeds",
    "noise_floor",
    "own_noise",
    "pairs",
    "proof_feeds",
]

Feed = dict[str, np.ndarray]

TOLERANCE = 1e-3
HALF_TOLERANCE = 3e-2
QUANTIZED_TOLERANCE = 5e-2
NOISE_FACTOR = 5.0
FIDELITY_MACS = 10**10  # work that is spent on measuring fidelity on made-up inputs
FIDELITY_SAMPLES = 64
REAL_MACS = 10**11  # on real ones, which say more
REAL_SAMPLES, FEWEST_REAL = 256, 16


@dataclass(frozen=True, eq=False)
class _Dense:
    """The original as it runs.

    Attributes:
        runner: its session.
        outputs: what it computes at each different size.
        noise: how far it alone moves from the CPU to the providers; None on the CPU.
    """

    runner: Runner
    outputs: list[Outputs]
    noise: float | None


@dataclass(eq=False)
class Judge:
    """Compares pruned models with one original and one cut.

    Attributes:
        original: the model before the cut, as loaded.
        cutting: the cut, of the weights that the pruned model has.
        providers: onnxruntime's names of execution providers, in order.
        seed: of made-up inputs.
        exact: whether the cut has to be exact.
        data: inputs to measure fidelity on; None: made-up ones.
        held_out: whether nothing was chosen or refitted on `data`.
    """

    original: Source
    cutting: Cutting
    providers: tuple[str, ...]
    seed: int
    exact: bool = True
    data: Calibration | None = None
    held_out: bool = False

    @cached_property
    def feeds(self) -> list[Feed]:
        """Fresh inputs at the traced sizes, one for each that differs."""
        return proof_feeds(self.cutting.coupling, self.seed)

    @cached_property
    def expected(self) -> list[Outputs]:
        """What the masked original computes at each different size."""
        with ready(masked(self.cutting), self.original.external) as subject:
            return run_all(subject, self.feeds, self.providers)

    def judge(self, subject: Path | ir.Model) -> Validation:
        """Returns what was measured on a pruned model.

        Raises:
            ValidationError: it is invalid, does not run, or computes something else than the masked original.
        """
        samples = fidelity_feeds(self.cutting.coupling, self.data, self.seed)
        error, tolerance = None, TOLERANCE
        places: tuple[Placement, ...] = ()
        with self._dense() as dense, self._opened(subject) as (target, runner):
            if self.exact:
                error, tolerance = self._proved(runner, dense)
            if off_cpu(self.providers):
                places = placement(target, self.feeds[0], self.providers)
            found, unlike = fidelity(pairs(samples, dense.runner, runner))
        return Validation(
            provider=self.providers,
            error=error,
            tolerance=tolerance,
            sizes=tuple(shown_shapes(f) for f in self.feeds),
            fidelity=found,
            inputs="made-up inputs" if self.data is None else self.data.source,
            made_up=self.data is None or self.data.synthetic,
            held_out=self.data is None or self.held_out,
            noise=dense.noise,
            placement=places,
            unlike=unlike,
        )

    def prove(self, subject: Path | ir.Model) -> None:
        """Passes if a pruned model is valid, runs, and computes what the masked original computes.

        Raises:
            ValidationError: it is not so.
        """
        with self._dense() as dense, self._opened(subject) as (_, runner):
            self._proved(runner, dense)

    @contextmanager
    def _dense(self) -> Iterator[_Dense]:
        """Lends the original, run: one session for the proof and for fidelity.

        Raises:
            ModelError: where the original does not run, the pruned one is not to blame.
        """
        with ready(self.original.served, self.original.external) as subject:
            try:
                runner = Runner(subject, self.providers)
                outputs = [runner(feed) for feed in self.feeds]
                noise = noise_floor(subject, self.feeds, outputs, self.providers)
            except RunError as error:
                raise ModelError(f"on inputs of its declared types {error}") from error
            yield _Dense(runner, outputs, noise)

    @contextmanager
    def _opened(self, subject: Path | ir.Model) -> Iterator[tuple[Subject, Runner]]:
        """Lends a pruned model that can be run. Whatever checker and runtime raise, the file is not what it should be.

        The masked original is run first: it is as large as the original, and the pruned one is not open then.

        Raises:
            ValidationError: it is invalid, or does not run.
        """
        try:
            _ = self.exact and self.expected
            check_structure(subject, self.original)
            with ready(subject, self.original.external) as target:
                yield target, Runner(target, self.providers)
        except ValidationError:
            raise
        except Exception as failure:
            with ready(self.original.served, True) as original:
                open_session(original, self.providers)
            raise ValidationError(
                f"the pruned model does not run ({first_line(failure)}); nothing was written, please report this model"
            ) from failure

    def _proved(self, runner: Runner, dense: _Dense) -> tuple[float, float]:
        """Returns the largest difference from the masked original, and what is allowed.

        Raises:
            ValidationError: it is more.
        """
        found = (runner(feed) for feed in self.feeds)
        error = max(difference(m, f, d) for m, f, d in zip(self.expected, found, dense.outputs, strict=True))
        allowed = base_tolerance(self.cutting)
        if error > allowed:
            with ready(masked(self.cutting), self.original.external) as subject:
                own = own_noise(subject, self.feeds, self.expected, self.providers)
            allowed = max(allowed, NOISE_FACTOR * max(own, dense.noise or 0.0))
        if not error <= allowed:
            raise ValidationError(
                f"the pruned model differs from the masked original by {error:.1e} (allowed {allowed:.1e}); "
                "nothing was written, please report this model, or freeze what is wrong with --exclude"
            )
        return error, allowed


def fidelity_feeds(
    coupling: Coupling, data: Calibration | None, seed: int, *, most: int = REAL_SAMPLES, work: int = REAL_MACS
) -> Iterator[tuple[int, Feed]]:
    """Yields the feeds that fidelity is measured on, each with the number of its samples.

    How many is what a pass over the model is worth.

    Args:
        coupling: the original, traced.
        data: inputs; None: made-up ones, at the first traced size.
        seed: of made-up inputs.
        most: how many samples of `data` at most.
        work: MACs that a pass over them may cost.
    """
    specs = inputs.specs(coupling.model)
    each = max(macs(coupling), 1)
    if data is not None:
        left = min(most, max(FEWEST_REAL, work // each))
        for feed in data.batches():
            rows = samples_in(feed, specs)
            yield rows, feed
            left -= rows
            if left <= 0:
                return
        return
    shape = {name: v.shape for name, v in coupling.trace.feeds[0].items()}
    rounds = min(FIDELITY_SAMPLES, max(2, FIDELITY_MACS // each)) // batch_size(coupling)
    for k in range(max(int(rounds), 1)):
        feed = inputs.sample(specs, seed + 1 + (k and k + 1), shape)  # the second seed is the second size's
        yield samples_in(feed, specs), feed


def proof_feeds(coupling: Coupling, seed: int) -> list[Feed]:
    """Returns fresh inputs at the traced sizes, one for each that differs."""
    shapes = [{n: v.shape for n, v in feed.items()} for feed in coupling.trace.feeds]
    specs = inputs.specs(coupling.model)
    seeds = enumerate(shapes if shapes[0] != shapes[1] else shapes[:1], seed + 1)
    return [inputs.sample(specs, seed, shape) for seed, shape in seeds]


def pairs(
    samples: Iterable[tuple[int, Feed]], original: Runner, pruned: Runner
) -> Iterator[tuple[int, Outputs, Outputs]]:
    """Yields, for each feed, how many samples it holds and what two models make of it."""
    for rows, feed in samples:
        yield rows, original(feed), pruned(feed)


def shown_shapes(feed: Feed) -> str:
    """Returns the shapes of a feed in words."""
    return ", ".join(f"{name} {list(v.shape)}" for name, v in feed.items())


# ---------------------------------------------------------------- what may differ
def base_tolerance(cutting: Cutting) -> float:
    """Returns the relative error that is allowed at least: by the arithmetic in the graph."""
    coupling = cutting.coupling
    if any("Quantize" in n.op_type or "QLinear" in n.op_type or "Integer" in n.op_type for n in coupling.nodes):
        return QUANTIZED_TOLERANCE
    types = {np.dtype(t).itemsize for t in coupling.trace.dtypes.values() if np.dtype(t).kind in "fV"}
    return HALF_TOLERANCE if 2 in types else TOLERANCE


def own_noise(subject: Subject, feeds: Sequence[Feed], found: Sequence[Outputs], providers: Sequence[str]) -> float:
    """Returns how far a model moves under one ulp on its inputs, or at another optimisation level.

    Args:
        subject: the model.
        feeds: what it is run on.
        found: what it computed.
        providers: where.
    """
    moved = [{k: np.nextafter(v, np.inf) if v.dtype.kind == "f" else v for k, v in f.items()} for f in feeds]
    others = [run_all(subject, moved, providers), run_all(subject, feeds, providers, optimise=False)]
    return max(difference(a, b, a) for other in others for a, b in zip(found, other, strict=True))


def noise_floor(
    subject: Subject, feeds: Sequence[Feed], found: Sequence[Outputs], providers: Sequence[str]
) -> float | None:
    """Returns how far a model alone moves from the CPU to other providers: what no pruned model can be blamed for.

    Args:
        subject: the model.
        feeds: what it is run on.
        found: what it computed on the providers.
        providers: onnxruntime's names of them.

    Returns:
        The largest difference relative to each output's largest value; None on the CPU, and where the model needs
        another provider.
    """
    if not off_cpu(providers):
        return None
    try:
        on_cpu = run_all(subject, feeds, (CPU,))
    except (ModelError, ProviderError, RunError):
        return None
    return max(difference(a, b, a) for a, b in zip(on_cpu, found, strict=True))


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


def check_structure(subject: Path | ir.Model, original: Source) -> None:
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


def _refused(original: Source) -> bool:
    with ready(original.served, True) as path:
        try:
            onnx.checker.check_model(str(path))
        except onnx.checker.ValidationError:
            return True
    return False
