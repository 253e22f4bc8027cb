"""Drift is what differs in fields that we set, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_operator.observe.drift import matches


@pytest.mark.parametrize(
    ("desired", "live"),
    [
        ({"a": 1}, {"a": 1, "defaulted": True}),
        ({"a": {}}, {}),
        ({"a": []}, {}),
        ({"a": False}, {}),
        ({"cpu": "1000m"}, {"cpu": "1"}),
        ({"memory": "1024Mi"}, {"memory": "1Gi"}),
        ({"memory": "1.5Gi"}, {"memory": "1536Mi"}),
        ([{"name": "a"}], [{"name": "a", "protocol": "TCP"}]),
        ({"a": {}}, {"a": {}}),
    ],
)
def test_defaults_and_other_spellings_are_no_drift(desired: Any, live: Any) -> None:
    assert matches(desired, live)


@pytest.mark.parametrize(
    ("desired", "live"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {}),
        ({"a": {"b": 1}}, {}),
        ({"a": True}, {}),
        ([1], [1, 2]),
        ([1, 2], [2, 1]),
        ({"cpu": "1"}, {"cpu": "2"}),
        ({"cpu": "1"}, {"cpu": "1Gi"}),
        ({"image": "a:1"}, {"image": "a:2"}),
        ({"a": "x"}, {"a": ["x"]}),
        (["x"], "x"),
    ],
)
def test_a_field_of_ours_that_differs_is_drift(desired: Any, live: Any) -> None:
    assert not matches(desired, live)
