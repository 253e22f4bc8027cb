"""Suites share no fixtures: builders and helpers that several suites need are in tests/support.

Examples of property tests have no deadline of their own, and may be slow to draw: a busy machine stalls anything for
seconds. The suite's timeout for a whole test is what ends a hang.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """What modules hold is no garbage: later collections need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def left_open() -> Iterator[None]:
    """A socket or file that a module has left open fails a test of this module, not of a later one."""
    yield
    gc.collect()
