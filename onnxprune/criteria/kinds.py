"""What criteria see: arrays, never operators or graphs.

There are four kinds. Most look at the weights of one member of a group, or at what one linear consumer of it reads;
two are told by the whole network. Each returns numbers that are larger the more a cell matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.floating]
Scores = npt.NDArray[np.float64]
Rule = Callable[[Matrix, np.random.Generator], Scores]


@dataclass(frozen=True)
class OnWeights:
    """A criterion that looks at weights.

    Attributes:
        rule: takes the weights of one member, a matrix with a row for each cell of the group (a cell is one index of
            a tensor; a unit has one or, like a head, several), and a generator; returns a score for each row.
        scales: shown only the scales of BatchNormalizations.
        comparable: its scores compare across groups as they are; others are divided by their mean.
    """

    rule: Rule
    scales: bool = False
    comparable: bool = False


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one linear consumer reads of a group, over all positions of all calibration samples.

    A cell is one channel or feature of what is read; the cells of a unit stand anywhere.

    Attributes:
        unit: (cells,) the number of each cell's unit in its group.
        mean: (cells,) mean.
        magnitude: (cells,) mean of absolute values.
        square: (cells,) mean of squares.
        zeros: (cells,) share of values that are exactly zero.
        weights: (cells, n) the consumer's weights on each cell.
        covariance: (cells, cells), only for criteria that ask for it.
    """

    unit: npt.NDArray[np.int64]
    mean: Scores
    magnitude: Scores
    square: Scores
    zeros: Scores
    weights: Scores
    covariance: Scores | None = None


@dataclass(frozen=True)
class OnInputs:
    """A criterion that looks at what linear consumers read.

    Attributes:
        rule: takes what one consumer reads of a group; returns a score for each cell.
        covariance: it needs the covariance too.
    """

    rule: Callable[[Inputs], Scores]
    covariance: bool = False


@dataclass(frozen=True)
class OnOutputs:
    """A criterion that looks at how far the outputs move when a unit is masked: exact, and one run for each unit.

    Attributes:
        rule: takes one output of the dense model and of the masked one; returns the change, 0 for none.
    """

    rule: Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class OnRefit:
    """The choice by what least squares cannot mend: it is made while the weights are refitted (see `obs.py`)."""


Criterion = OnWeights | OnInputs | OnOutputs | OnRefit
