"""`bench`: how long the original and the pruned file take, on the provider, threads and batch that will serve them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.calibration import open_calibration
from onnxprune.errors import ModelError, RunError, UsageError, quote
from onnxprune.graph import inputs
from onnxprune.graph.model import Source, load
from onnxprune.graph.running import ready
from onnxprune.graph.runtime import open_session, provider_names
from onnxprune.latency.timing import ROUNDS, SECONDS, TWICE_UP_TO, Timing, compare, runner

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["bench", "check_alike", "feed_for"]

Feed = dict[str, np.ndarray]


def bench(
    original: Any,
    pruned: Any,
    *,
    calibration: Any = None,
    provider: Sequence[str] = (),
    threads: int = 0,
    batch: int | None = None,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Timing:
    """Returns how long two models take on the same input, measured in turns.

    Args:
        original: path, `onnx.ModelProto`, `onnx_ir.Model` or `gs.Graph`.
        pruned: another one that takes the same inputs.
        calibration: data to take the input from, as for `prune`; None: made up.
        provider: execution providers, in order (`cpu`, `cuda`, ...); default: the CPU.
        threads: how many work on one operator; 0 is the provider's own choice.
        batch: samples of one run where the models leave it open; default: 1.
        rounds: how many there are at most.
        seconds: after which no new round begins.
        seed: of made-up inputs.
        progress: called with what is done.

    Raises:
        UsageError: an option makes no sense, or the models take different inputs.
        ModelError, DataError, ProviderError: see `onnxprune.errors`.
        RunError: a model does not run on the input.
    """
    if batch is not None and batch < 1:
        raise UsageError(f"batch {batch} is below 1: give the samples of one run")
    if threads < 0:
        raise UsageError(f"threads {threads} is below 0: give how many work on one operator, 0 for the provider's own")
    if rounds < 1 or not seconds > 0:
        raise UsageError("rounds and seconds have to be more than 0: give how long to measure")
    providers = provider_names(provider)
    sources = load(original), load(pruned)
    check_alike(*(inputs.specs(source.model) for source in sources))
    with ExitStack() as stack:
        first, second = (stack.enter_context(ready(s.served, s.external)) for s in sources)
        session = open_session(first, providers)
        feed = feed_for(sources[0], session, batch=batch, calibration=calibration, seed=seed)
        del session
        return compare(
            first,
            second,
            feed,
            providers=providers,
            threads=threads,
            rounds=rounds,
            seconds=seconds,
            twice=sources[0].size <= TWICE_UP_TO,
            progress=progress,
        )


def feed_for(
    source: Source,
    session: ort.InferenceSession,
    *,
    batch: int | None = None,
    calibration: Any = None,
    seed: int = 0,
) -> Feed:
    """Returns one feed that a model runs on, at a batch.

    Args:
        source: the model.
        session: of it.
        batch: samples of the feed; None is 1, or what the model declares.
        calibration: data to take it from, or None.
        seed: of the draw.

    Raises:
        UsageError: the model declares another batch.
        DataError: the data do not fit the model.
        ModelError: no sizes were found that it runs at.
    """
    specs = inputs.specs(source.model)
    kinds = inputs.dims(specs)
    declared = {d for s in specs for d in s.shape[:1] if isinstance(d, int)}
    if batch is not None and "batch" not in kinds.values() and declared != {batch}:
        shown = ", ".join(map(str, sorted(declared))) or "none"
        raise UsageError(f"the batch of the model is declared ({shown}) and can't be {batch}: leave --batch out")
    if calibration is not None:
        data = open_calibration(calibration, specs, samples=batch or 1, batch=batch or 1, seed=seed)
        return dict(next(islice(data.batches(), 1)))
    return _made_up(specs, kinds, session, batch or 1, seed)


def _made_up(
    specs: Sequence[inputs.InputSpec],
    kinds: Mapping[inputs.Dim, inputs.Kind],
    session: ort.InferenceSession,
    batch: int,
    seed: int,
) -> Feed:
    """Returns the first made-up feed, of those that validation tries too, that the model runs on."""
    complaint, tried = "", set()
    for k in range(inputs.count(specs)):
        chosen = inputs.candidate(specs, k)
        sizes = {d: batch if kinds[d] == "batch" else n for d, n in chosen.items()}
        if tuple(sizes.values()) in tried:
            continue
        tried.add(tuple(sizes.values()))
        for fill in inputs.FILLS:
            feed = inputs.sample(specs, seed + 1, inputs.resolve(specs, sizes), fill)
            try:
                runner(session, feed)()
            except RunError as error:
                complaint = complaint or str(error)
                continue
            return feed
    raise ModelError(f"no input sizes were found that the model runs at, give data with --calib: {complaint}")


def check_alike(original: Sequence[inputs.InputSpec], pruned: Sequence[inputs.InputSpec]) -> None:
    """Passes if two models can be fed the same.

    Raises:
        UsageError: they cannot.
    """
    one, other = ({s.name: s for s in specs} for specs in (original, pruned))
    for name in one.keys() ^ other.keys():
        raise UsageError(f"input {quote(name)} is there in one of the models only: give a model and its pruned version")
    for name, a in one.items():
        b = other[name]
        if a.dtype != b.dtype or len(a.shape) != len(b.shape):
            raise UsageError(f"input {quote(name)} differs between the models: give a model and its pruned version")
