"""What holds for all tests."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest
from hypothesis import HealthCheck, settings

from onnxprune.reports.formats import SUMMARY


def pytest_configure(config: pytest.Config) -> None:
    """Keeps reports of tests out of the summary of the step that runs them, and measured times out of the user's."""
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")  # how fast data are drawn says nothing of the program
    for number in (signal.SIGINT, signal.SIGHUP):  # ignored in the background; commands that tests end inherit that
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    os.environ.pop(SUMMARY, None)
    cache = tempfile.TemporaryDirectory(prefix="onnxprune-tests-")
    os.environ["ONNXPRUNE_CACHE"] = cache.name
    config.add_cleanup(cache.cleanup)
