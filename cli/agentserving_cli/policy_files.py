"""Policies that users write: the name of a preset, or a JSON file in the form of the contract's Policy message.

The one module of the command line that sees protobuf messages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from agentserving.client.values import Balancer
from agentserving.contract.policy import InvalidPolicyError, Policy
from agentserving.contract.policy_message import policy_from
from agentserving.v1 import admin_service_pb2, types_pb2
from google.protobuf import json_format

from agentserving_cli.connection import fail

# The balancer is UNSPECIFIED where nothing is said about it.
Found = tuple[Policy | str, Balancer]


def policy_of(name_or_file: str) -> Found:
    """What a file says, or the name itself: the control plane knows its presets."""
    if Path(name_or_file).is_file():
        return policy_in(name_or_file)
    if name_or_file.endswith(".json"):
        fail(f"{name_or_file}: there is no such file")
    return name_or_file, Balancer.UNSPECIFIED


def policy_in(file: str) -> Found:
    """The policy in a file (`-`: standard input): a Policy, or an answer of `policy get -o json` with its balancer."""
    try:
        document = json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
        if not isinstance(document, dict):
            fail(f"{file}: a policy is a JSON object, this is {type(document).__name__}")
        if "policy" not in document:
            return policy_from(json_format.ParseDict(document, types_pb2.Policy())), Balancer.UNSPECIFIED
        found = json_format.ParseDict(document, admin_service_pb2.GetPolicyResponse()).policy
        return policy_from(found.policy), Balancer(found.balancer)
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except (json_format.ParseError, InvalidPolicyError, ValueError) as error:
        fail(f"{file}: {' '.join(str(error).split())}")
