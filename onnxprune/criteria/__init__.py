"""Criteria: what a unit is worth, one short file each. Add one of your own to `CRITERIA`."""

from __future__ import annotations

from onnxprune.criteria.activation import apoz, mean, rms, wanda
from onnxprune.criteria.bn_scale import bn_scale
from onnxprune.criteria.correlation import correlation
from onnxprune.criteria.fpgm import fpgm
from onnxprune.criteria.kinds import Criterion, Inputs, OnInputs, OnOutputs, OnRefit, OnWeights
from onnxprune.criteria.lamp import lamp
from onnxprune.criteria.loss import loss
from onnxprune.criteria.magnitude import l1, l2
from onnxprune.criteria.random import random

CRITERIA: dict[str, Criterion] = {
    "obs": OnRefit(),
    "l1": OnWeights(l1),
    "l2": OnWeights(l2),
    "bn_scale": OnWeights(bn_scale, scales=True),
    "fpgm": OnWeights(fpgm),
    "lamp": OnWeights(lamp, comparable=True),
    "random": OnWeights(random),
    "mean": OnInputs(mean),
    "rms": OnInputs(rms),
    "apoz": OnInputs(apoz),
    "wanda": OnInputs(wanda),
    "correlation": OnInputs(correlation, covariance=True),
    "loss": OnOutputs(loss),
}

__all__ = ["CRITERIA", "Criterion", "Inputs", "OnInputs", "OnOutputs", "OnRefit", "OnWeights"]
