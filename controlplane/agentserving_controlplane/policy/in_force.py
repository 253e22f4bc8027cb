"""The policy in force, its version, and the requests that changed it recently. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
from agentserving.contract.policy import Policy

from agentserving_controlplane.errors import ConflictError
from agentserving_controlplane.policy.version import Balancer, PolicyVersion
from agentserving_controlplane.table.programs import check_key, key_reused

# Store keys.
POLICY_KEY, REQUESTS_KEY = "policy", "policy-requests"
MAX_REQUESTS_KEPT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChange:
    """ApplyPolicy; None leaves a part as it is. `expected_version` 0: whatever is in force."""

    policy: Policy | None = None
    balancer: Balancer | None = None
    expected_version: int = 0
    idempotency_key: str = ""
    # Identifies the rest of the request; set with the key.
    digest: str = ""


class _Applied(msgspec.Struct, array_like=True):
    """A change that carried a key, and the version that it made."""

    key: str
    digest: str
    version: PolicyVersion


_encoder = msgspec.msgpack.Encoder()
_version_decoder = msgspec.msgpack.Decoder(PolicyVersion)
_applied_decoder = msgspec.msgpack.Decoder(list[_Applied])


class PolicyInForce:
    """`current` is what was applied. Engines execute `for_engines`: the same version, with levels computed from it."""

    def __init__(self, policy: Policy, balancer: Balancer) -> None:
        self.current = self.for_engines = PolicyVersion(1, policy, balancer)
        self._applied: list[_Applied] = []

    def restore(self, stored: bytes | None, requests: bytes | None) -> bool:
        """Takes over what the store holds; False when it cannot be read (version 0.1 stored another format)."""
        try:
            if stored is not None:
                self._use(_version_decoder.decode(stored))
            if requests is not None:
                self._applied = _applied_decoder.decode(requests)
        except msgspec.DecodeError:
            return False
        return True

    def _use(self, version: PolicyVersion) -> None:
        self.current = self.for_engines = version

    def execute(self, policy: Policy) -> bool:
        """Replaces what engines execute, under the same version; False when they execute it already."""
        if policy == self.for_engines.policy:
            return False
        self.for_engines = replace(self.current, policy=policy)
        return True

    def apply(self, change: PolicyChange) -> tuple[PolicyVersion, list[tuple[str, bytes]]]:
        """The version that a change makes, and the items to store together: none when it was applied before.

        ConflictError when another version than the expected one is in force, ExistsError for a reused key.
        """
        check_key(change.idempotency_key)
        for applied in self._applied if change.idempotency_key else ():
            if applied.key == change.idempotency_key:
                if applied.digest != change.digest:
                    raise key_reused(applied.key)
                return applied.version, []
        if change.expected_version and change.expected_version != self.current.version:
            raise ConflictError(
                "VERSION_MISMATCH", f"version {self.current.version} is in force, not {change.expected_version}"
            )
        version = PolicyVersion(
            self.current.version + 1,
            change.policy if change.policy is not None else self.current.policy,
            change.balancer if change.balancer is not None else self.current.balancer,
        )
        self._use(version)
        items = [(POLICY_KEY, _encoder.encode(version))]
        if change.idempotency_key:
            applied = _Applied(change.idempotency_key, change.digest, version)
            self._applied = [*self._applied[1 - MAX_REQUESTS_KEPT :], applied]
            items.append((REQUESTS_KEY, _encoder.encode(self._applied)))
        return version, items
