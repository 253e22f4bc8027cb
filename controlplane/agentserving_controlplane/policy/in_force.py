"""The policy in force, its version, and the requests that set it lately. Pure."""

from __future__ import annotations

import msgspec
from agentserving.contract.policy import Policy
from agentserving.contract.policy_message import policy_to
from agentserving.v1 import admin_service_pb2, types_pb2

from agentserving_controlplane.api import convert
from agentserving_controlplane.engines.load_balancer import Balancer
from agentserving_controlplane.errors import ConflictError
from agentserving_controlplane.store.port import Write
from agentserving_controlplane.table.admission_keys import check_key, digest, reused

POLICY_KEY, REQUESTS_KEY = "policy", "policy-requests"
MAX_REQUESTS_KEPT = 16


class _Applied(msgspec.Struct, array_like=True):
    """A request with a key, and the PolicyVersion that it made."""

    key: str
    request: str
    version: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[_Applied])


class PolicyInForce:
    """`message` for the wire, `value` for decisions; what engines execute may be made from it (`execute`)."""

    def __init__(self, policy: Policy, balancer: Balancer) -> None:
        self.message = types_pb2.PolicyVersion(
            version=1, policy=policy_to(policy), balancer=convert.balancer_to_number(balancer)
        )
        self.value, self.balancer = policy, balancer
        self.executed, self.for_engines = policy, self.message
        self._applied: list[_Applied] = []

    def restore(self, stored: bytes | None, requests: bytes | None) -> None:
        """Takes in what the store holds."""
        if stored is not None:
            self._use(types_pb2.PolicyVersion.FromString(stored))
        if requests is not None:
            self._applied = _decoder.decode(requests)

    def _use(self, message: types_pb2.PolicyVersion) -> None:
        self.message = message
        self.value = convert.policy_from_message(message.policy)
        self.balancer = convert.balancer_from_number(message.balancer)
        self.executed, self.for_engines = self.value, message

    def execute(self, policy: Policy) -> bool:
        """What engines execute in the place of `value`, under the same version; False when they do so already."""
        if policy == self.executed:
            return False
        self.executed = policy
        self.for_engines = types_pb2.PolicyVersion()
        self.for_engines.CopyFrom(self.message)
        self.for_engines.policy.CopyFrom(policy_to(policy))
        return True

    def apply(self, request: admin_service_pb2.ApplyPolicyRequest) -> tuple[types_pb2.PolicyVersion, list[Write]]:
        """The version that a request makes, and what to write down together; nothing to write when it did so before."""
        key, asked = request.idempotency_key, digest(request)
        check_key(key)
        for applied in self._applied if key else ():
            if applied.key == key:
                if applied.request != asked:
                    raise reused(key)
                return types_pb2.PolicyVersion.FromString(applied.version), []
        if request.expected_version and request.expected_version != self.message.version:
            raise ConflictError(
                "VERSION_MISMATCH", f"version {self.message.version} is in force, not {request.expected_version}"
            )
        wanted = types_pb2.PolicyVersion()
        wanted.CopyFrom(self.message)
        wanted.version += 1
        if request.HasField("policy") and request.policy != types_pb2.Policy():
            wanted.policy.CopyFrom(policy_to(convert.policy_from_message(request.policy)))
        if request.balancer:
            wanted.balancer = convert.balancer_to_number(convert.balancer_from_number(request.balancer))
        self._use(wanted)
        writes = [Write(POLICY_KEY, wanted.SerializeToString())]
        if key:
            self._applied = [*self._applied[1 - MAX_REQUESTS_KEPT :], _Applied(key, asked, writes[0].value or b"")]
            writes.append(Write(REQUESTS_KEY, _encoder.encode(self._applied)))
        return wanted, writes
