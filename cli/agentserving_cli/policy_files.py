"""Policies that users write: the name of a preset, or a JSON file in the form of the contract's Policy message.

The one module of the command line that sees protobuf messages.
"""

from __future__ import annotations

import json
from pathlib import Path

from agentserving.contract.policy import InvalidPolicyError, Policy
from agentserving.contract.policy_message import policy_from
from agentserving.v1 import types_pb2
from google.protobuf import json_format

from agentserving_cli.connection import fail


def policy_of(name_or_file: str) -> Policy | str:
    """The policy that a file describes, or the name itself: the control plane knows its presets."""
    path = Path(name_or_file)
    if path.is_file():
        try:
            document = json.loads(path.read_text())
            if not isinstance(document, dict):
                fail(f"{path}: a policy is a JSON object, this is {type(document).__name__}")
            return policy_from(json_format.ParseDict(document, types_pb2.Policy()))
        except (json_format.ParseError, InvalidPolicyError, OSError, ValueError) as error:
            fail(f"{path}: {' '.join(str(error).split())}")
    if name_or_file.endswith(".json"):
        fail(f"{name_or_file}: there is no such file")
    return name_or_file
