"""Command line of the rule checker: `python -m onnxprune.testing [OPERATOR ...]`."""

from __future__ import annotations

import argparse
import sys

from onnxprune.ops import REGISTRY
from onnxprune.testing.check import check
from onnxprune.testing.freedom import missing
from onnxprune.testing.generate import GENERATORS, random_case


def main(arguments: list[str] | None = None) -> int:
    """Prints a row for every case and returns 0, or 1 where a coupling is wrong or an operator has no cases."""
    parser = argparse.ArgumentParser(prog="python -m onnxprune.testing", description=__doc__)
    parser.add_argument("operators", nargs="*", help="names such as Conv; all without any")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of every operator")
    parser.add_argument("--cases", type=int, default=10, help="cases for every operator")
    given = parser.parse_args(arguments)
    names = sorted(key for key in REGISTRY if not given.operators or key[1] in given.operators)
    unknown = set(given.operators) - {op for _, op in names}
    if unknown:
        print(f"no rule for {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    bad = 0
    for domain, op in names:
        if (domain, op) not in GENERATORS:
            print(f"{op}: no random cases for it")
            bad += 1
            continue
        for seed in range(given.seed, given.seed + given.cases):
            bad += not _row(domain, op, seed)
    return 1 if bad else 0


def _row(domain: str, op: str, seed: int) -> bool:
    """Prints what one case gives under both consumers; returns whether nothing is wrong."""
    case = random_case(domain, op, seed)
    good = True
    for consumer in ("matmul", "sum"):
        try:
            found = check(case, consumer, seed)
        except Exception as error:  # a row must be printed whatever goes wrong
            print(f"FAILED {case} {consumer} seed {seed}: {type(error).__name__}: {str(error).splitlines()[0]}")
            good = False
            continue
        mark = "WRONG " if found.wrong else "ok    "
        stuck = f" stuck: {'; '.join(found.stuck)}" if found.stuck else ""
        print(f"{mark} {case} {consumer} seed {seed}: groups of {list(found.units)}, {found.cuts} cuts{stuck}")
        for line in found.wrong:
            print(f"       {line}")
        good = good and not found.wrong
    if good:
        for line in missing(case, seed):
            print(f"       missing: {line} could go too")
    return good


if __name__ == "__main__":
    sys.exit(main())
