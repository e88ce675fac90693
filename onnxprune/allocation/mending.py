"""A decided cut and what makes up for it: which units go is settled by data, and the rest is refitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune.allocation.counts import least_important
from onnxprune.criteria.ranking import rank_by_data, rank_by_weights
from onnxprune.engine.cutting import Cutting
from onnxprune.engine.frontier import Feed, Live
from onnxprune.engine.labels import Array
from onnxprune.engine.sizes import Rewrite, rewrite_sizes
from onnxprune.options import Options
from onnxprune.refit.compensation import Compensated, apply, compensate

__all__ = ["Chosen", "mend"]


@dataclass(frozen=True, eq=False)
class Chosen:
    """A decided cut with all that follows from it.

    Attributes:
        cutting: the cut, of the weights as they are to be.
        rewrite: edits of sizes in the graph.
        stuck: nodes whose sizes could not be rewritten, so that their labels stay.
        notes: what is worth knowing.
    """

    cutting: Cutting
    rewrite: Rewrite
    stuck: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> tuple[int, ...]:
        """How many units of each group go."""
        dead = self.cutting.dead
        return tuple(int(dead[g.units].sum()) for g in self.cutting.units.groups)


def mend(
    chosen: Chosen,
    options: Options,
    batches: Sequence[Feed],
    providers: Sequence[str],
    *,
    choose: bool,
    made_up: bool,
    known: dict[int, Array] | None = None,
    jobs: int,
    tell: Callable[[int, int], None],
) -> Chosen:
    """Returns the cut with units chosen by what data tell, where asked for, and with weights that make up for it.

    Args:
        chosen: what weights alone chose; its counts hold.
        options: what tells units apart, and how the rest makes up for them.
        batches: calibration inputs.
        providers: onnxruntime's execution providers.
        choose: units may still be exchanged; False for a plan.
        made_up: the inputs are not real ones.
        known: what is kept of one call for the next, on the same inputs; None: there is none.
        jobs: batches at a time; the result does not depend on it.
        tell: called with the steps done and their number.
    """
    units, counts = chosen.cutting.units, chosen.counts
    keep_choice = tuple(np.where(chosen.cutting.dead[g.units], 0.0, 1.0) for g in units.groups)
    by_loss = choose and options.chooses_by_loss
    by_rank = choose and options.ranks_by_data
    ranked, told = keep_choice, list[str]()
    if by_loss:
        ranked = rank_by_weights(units, options.criterion, options.seed, jobs)
    elif by_rank:
        name, seed = options.criterion or "", options.seed
        given = [b for b in batches if not (isinstance(b, Live) and b.mixed)]
        ranked, told = rank_by_data(units, name, counts, given, providers, seed, jobs, tell)
    by_data = by_loss or by_rank
    for first in (True, False) if by_data else (False,):
        scores = ranked if first else keep_choice
        if options.mode == "none" and not (by_loss and first):
            found = Compensated(least_important(units, scores, counts))
        else:
            found = compensate(
                units,
                counts,
                scores,
                batches,
                choose=options.chooses_by_loss,
                mode=options.mode,
                providers=providers,
                seed=options.seed,
                jobs=jobs,
                align=made_up,
                known=known if first else None,
                planned=None if by_data and first else chosen.cutting.dead,
                progress=tell,
            )
        mended = Cutting(apply(units, found), found.dead)
        rewrite = rewrite_sizes(mended)
        if not rewrite.failed:
            break
    return replace(chosen, cutting=mended, rewrite=rewrite, notes=(*chosen.notes, *told, *found.notes))
