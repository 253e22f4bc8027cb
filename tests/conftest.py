"""Suites share no fixtures: builders and helpers that several suites need are in tests/support.

Examples of property tests have no deadline of their own, and may be slow to draw: a busy machine stalls anything for
seconds. The suite's timeout for a whole test is what ends a hang.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
