"""How long two models take, measured side by side: interleaved, with an interval, and against the noise of the machine.

Each round runs the original, the pruned model and the original again (a session of its own), so that whatever slows the
machine down slows all three. The ratio of one round is a pair of neighbours in time; the figure is the median over the
rounds, its interval comes from their order alone and needs no bell curve. What the original's two sessions differ by is
the noise (the A/A check): an effect that is not larger is not claimed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx

from onnxprune.errors import RunError
from onnxprune.graph.runtime import first_line, open_for_timing
from onnxprune.reports.records import Record

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["Spread", "Timing", "compare", "interleave", "verdict"]

ROUNDS, SECONDS = 300, 20.0
LEAST_ROUNDS = 6  # fewer have no 95 % interval
BURST = 2e-3  # seconds that one turn should last, so that the clock and the change of turns don't count
LONGEST_BURST = 50
TWICE_UP_TO = 1 << 30  # bytes of a model up to which the original gets a session more
WARM_UP = 0.2  # seconds

Run = Callable[[], object]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Spread:
    """Milliseconds of one run.

    Attributes:
        p10: one run in ten was faster: the machine at its best.
        p50: the median.
    """

    p10: float
    p50: float


@dataclass(frozen=True)
class Timing(Record):
    """Two models' times, and what can be said about them.

    Attributes:
        original: of one run of the original.
        pruned: of one run of the pruned model.
        speedup: how many times faster the pruned model is: the median over the rounds.
        low: lower end of that median's 95 % interval.
        high: its upper end.
        noise: how far the interval of the original against itself reaches from 1.
        conclusive: whether the interval leaves out 1 and the effect is larger than the noise.
        rounds: how many were run.
        provider: execution providers.
        threads: how many worked on one operator; 0 is the provider's own choice.
        inputs: what the models were fed, by input: shapes.
    """

    kind: ClassVar[str] = "bench"

    original: Spread
    pruned: Spread
    speedup: float
    low: float
    high: float
    noise: float
    conclusive: bool
    rounds: int
    provider: tuple[str, ...] = ()
    threads: int = 0
    inputs: tuple[str, ...] = ()


def verdict(timing: Timing) -> str:
    """Returns in one line what a timing says, and no more than that."""
    interval = f"{timing.low:.3g} to {timing.high:.3g}"
    if not timing.conclusive:
        return (
            f"not conclusive: {timing.speedup:.3g} times as fast ({interval}), "
            f"where the original differs from itself by up to {timing.noise:.1%}"
        )
    if timing.speedup < 1:
        slower = f"{1 / timing.high:.3g} to {1 / timing.low:.3g}"
        return f"{1 / timing.speedup:.3g} times slower ({slower}), noise {timing.noise:.1%}"
    return f"{timing.speedup:.3g} times faster ({interval}), noise {timing.noise:.1%}"


def compare(
    original: onnx.ModelProto | Path,
    pruned: onnx.ModelProto | Path,
    feed: Mapping[str, np.ndarray],
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    twice: bool = True,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> Timing:
    """Returns how long two models take on the same input.

    Args:
        original: a message, or the path of a model.
        pruned: another one that takes the same inputs.
        feed: arrays by input name.
        providers: onnxruntime's names of execution providers, in order.
        threads: how many work on one operator; 0 is the provider's own choice.
        rounds: how many rounds there are at most.
        seconds: after which no new round begins, six rounds apart.
        twice: give the original a second session for the noise; a very large one has room for one only.
        clock: tells seconds.
        progress: called with how far it is.

    Raises:
        ModelError, ProviderError: onnxruntime does not take one of them.
        RunError: one does not run on this input.
    """
    first = open_for_timing(original, providers, threads)
    second = open_for_timing(pruned, providers, threads)
    again = open_for_timing(original, providers, threads) if twice else first
    runs = [runner(session, feed) for session in (first, second, again)]
    shapes = tuple(f"{name} {list(array.shape)}" for name, array in feed.items())
    found = interleave(*runs, rounds=rounds, seconds=seconds, clock=clock, progress=progress)
    return Timing(**{**vars(found), "provider": tuple(providers), "threads": threads, "inputs": shapes})


def runner(session: ort.InferenceSession, feed: Mapping[str, np.ndarray]) -> Run:
    """Returns what runs a session once.

    Raises:
        RunError: it does not run, told when it is tried.
    """
    given = {i.name: feed[i.name] for i in session.get_inputs() if i.name in feed}

    def run() -> object:
        try:
            return session.run(None, given)
        except Exception as error:  # onnxruntime raises a class per status
            raise RunError(f"a model does not run on these inputs, give others: {first_line(error)}") from error

    return run


def interleave(
    original: Run,
    pruned: Run,
    again: Run,
    *,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> Timing:
    """Returns the times of two models whose turns take each other's place.

    Args:
        original: runs the original once.
        pruned: runs the pruned model once.
        again: runs the original once more, for the noise.
        rounds: how many rounds there are at most.
        seconds: after which no new round begins, `LEAST_ROUNDS` apart.
        clock: tells seconds.
        progress: called with how far it is.
    """
    started = clock()
    runs = (original, pruned, again)
    bursts = [_burst(_warmed(run, clock, min(WARM_UP, seconds / 10))) for run in runs]
    times: list[list[float]] = [[], [], []]
    turns: list[list[float]] = [[], [], []]
    done = 0
    while done < max(rounds, LEAST_ROUNDS) and (done < LEAST_ROUNDS or clock() - started < seconds):
        for k in (0, 1, 2) if done % 2 else (2, 1, 0):
            runs[k]()  # the others' turns have left the caches cold
            burst = [_once(runs[k], clock) for _ in range(bursts[k])]
            times[k] += burst
            turns[k].append(float(np.median(burst)))
        done += 1
        if progress is not None and done % 10 == 0:
            progress(f"round {done} of {rounds}")
    a, b, c = (np.array(turn) for turn in turns)
    middle, low, high = _median_interval((a + c) / 2 / b)
    _, least, most = _median_interval(a / c)
    noise = max(most, 1 / least) - 1
    conclusive = not low <= 1 <= high and abs(math.log(middle)) > math.log1p(noise)
    return Timing(_spread([*times[0], *times[2]]), _spread(times[1]), middle, low, high, noise, conclusive, rounds=done)


def _once(run: Run, clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return max(clock() - start, 1e-9)


def _warmed(run: Run, clock: Callable[[], float], seconds: float) -> float:
    """Returns the seconds of one run after some runs that don't count."""
    run()
    start, found = clock(), [_once(run, clock)]
    while clock() - start < seconds:
        found.append(_once(run, clock))
    return float(np.median(found[-10:]))


def _burst(seconds: float) -> int:
    return int(min(max(BURST / seconds, 1), LONGEST_BURST))


def _spread(seconds: Sequence[float]) -> Spread:
    p10, p50 = np.percentile(np.array(seconds) * 1e3, (10, 50))
    return Spread(float(p10), float(p50))


def _median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Returns the median and the ends of its 95 % interval: two of the sorted values.

    How many of n values lie below the true median is binomial, whatever their distribution
    (Hahn & Meeker, Statistical Intervals, 1991, section 5.2).
    """
    n, values = len(values), np.sort(values)
    k, below = 0, 1
    while 40 * (below + math.comb(n, k + 1)) <= 2**n:
        below += math.comb(n, k + 1)
        k += 1
    return float(np.median(values)), float(values[k]), float(values[n - 1 - k])
