"""Calibration data: the inputs that a network is measured on, in every form that users keep them.

`open_calibration` takes a path, arrays or a reader, `open_script` the user's own Python file, and both give a
`Calibration`: batches that a session of the model accepts, as often as they are asked for.
"""

from __future__ import annotations

from onnxprune.calibration.batches import DEFAULT_SAMPLES, Calibration, samples_in
from onnxprune.calibration.mixing import mixtures
from onnxprune.calibration.opening import Data, open_calibration
from onnxprune.calibration.pictures import PictureOptions
from onnxprune.calibration.protobuf import find_test_data
from onnxprune.calibration.script import open_script

__all__ = [
    "DEFAULT_SAMPLES",
    "Calibration",
    "Data",
    "PictureOptions",
    "find_test_data",
    "mixtures",
    "open_calibration",
    "open_script",
    "samples_in",
]
