"""Damages sound models at random, prunes them, and counts what came of it.

    python tools/fuzz.py --count 10000 --out fuzz.jsonl

Each mutation follows from its seed alone: `--seeds 17 4711` tries single ones again. Mutations run in workers with
limits of time and memory; what ends a worker (a crash of a native library, a limit) is tried again through the command
itself, which must end with one error line and exit code 7. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from fuzz_driver import LIMIT, Finding, fuzz, retried, to_json


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="how many mutations")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, nargs="*", help="these seeds instead")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one mutation")
    parser.add_argument("--out", type=Path, help="where all findings go, one line of JSON each")
    asked = parser.parse_args()
    seeds = asked.seeds or list(range(asked.start, asked.start + asked.count))
    start = time.perf_counter()
    lines = asked.out.open("w") if asked.out else None

    def tell(finding: Finding) -> None:
        if lines is not None:
            print(to_json(finding), file=lines, flush=True)
        if finding.faults:
            print(f"seed {finding.seed} ({finding.what}): {'; '.join(finding.faults)}\n{finding.stderr}", flush=True)

    found = fuzz(seeds, workers=asked.workers, limit=asked.limit, tell=tell)
    ended = [finding for finding in found if finding.code is None or finding.code < 0]
    summarise(found, time.perf_counter() - start)
    again = [retried(finding) for finding in ended]
    for finding in again:
        print(f"ended a worker: seed {finding.seed} ({finding.what}); the command: {finding.code}, {finding.stderr}")
    return int(any(finding.faults for finding in (*found, *again)))


def summarise(found: list[Finding], seconds: float) -> None:
    """Prints the figures of a run."""
    codes = Counter(finding.code for finding in found)
    print(f"{len(found):,} mutations in {seconds:,.0f} s")
    for code, count in sorted(codes.items(), key=lambda item: (item[0] is None, item[0])):
        what = "out of time" if code is None else f"signal {-code}" if code < 0 else f"exit code {code}"
        print(f"  {what}: {count:,}")
    slowest = max(found, key=lambda finding: finding.seconds)
    hungriest = max(found, key=lambda finding: finding.peak)
    print(f"  slowest: {slowest.seconds:.1f} s (seed {slowest.seed}: {slowest.what})")
    print(f"  most memory: {hungriest.peak / 1e6:,.0f} MB (seed {hungriest.seed}: {hungriest.what})")
    print(f"  faults: {sum(bool(finding.faults) for finding in found)}")


if __name__ == "__main__":
    sys.exit(main())
