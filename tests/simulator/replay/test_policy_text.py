"""A printed policy is accepted by `agentserving policy set` and in an AgentServingCluster."""

from __future__ import annotations

import json

import pytest
import yaml
from agentserving.contract.policy import PRESETS, Level, Policy
from agentserving.contract.policy_message import policy_from
from agentserving.v1 import types_pb2
from agentserving_controlplane.api.conversion import policy_from_message
from agentserving_operator.spec.parsing import parse
from agentserving_operator.spec.scheduling import Scheduling, to_policy
from agentserving_replay.tuning.policy_text import as_json, as_yaml, in_words
from agentserving_replay.tuning.search import knobs
from google.protobuf import json_format

POLICIES = [policy for preset in PRESETS.values() for _, turned in knobs(preset) for policy in turned]


@pytest.mark.parametrize("policy", POLICIES[:: max(1, len(POLICIES) // 40)])
def test_a_printed_policy_is_read_back_unchanged(policy: Policy) -> None:
    message = json_format.ParseDict(json.loads(as_json(policy)), types_pb2.Policy())
    assert policy_from(message) == policy
    assert policy_from_message(message) == policy
    document = yaml.safe_load("spec:\n" + as_yaml(policy))
    applied = to_policy(parse(Scheduling, document["spec"]["scheduling"]))
    assert applied == Policy(**{**{f: getattr(policy, f) for f in policy.__slots__}, "name": "custom"})
    assert in_words(policy).startswith("account: ")


def test_levels_that_an_object_cannot_express_are_refused_by_name() -> None:
    policy = Policy(levels=(Level(1500, 1500), Level()))
    with pytest.raises(ValueError, match=r"levels\[0\]: bounds and quanta must be whole milliseconds"):
        as_yaml(policy)
