"""The policy in force, its version, and the requests that changed it recently. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
from agentserving.contract.policy import Policy, Source

from agentserving_controlplane.errors import ConflictError
from agentserving_controlplane.policy import stored
from agentserving_controlplane.policy.auto import Choice, Decided
from agentserving_controlplane.policy.version import Balancer, PolicyVersion
from agentserving_controlplane.table.programs import check_key, key_reused

# Store keys.
POLICY_KEY, REQUESTS_KEY, CHOICES_KEY = "policy", "policy-requests", "policy-choices"
MAX_REQUESTS_KEPT = 16
# Requests are forgotten earlier when their policies take more than this; the newest one is always kept.
MAX_REQUESTS_BYTES = 400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyChange:
    """ApplyPolicy; None leaves a part as it is. `expected_version` 0: whatever is in force."""

    policy: Policy | None = None
    balancer: Balancer | None = None
    expected_version: int = 0
    idempotency_key: str = ""
    # Identifies the rest of the request; set with the key.
    digest: str = ""


@dataclass(frozen=True, slots=True)
class _Applied:
    """A change that carried a key, and the version that it made."""

    key: str
    digest: str
    version: PolicyVersion


_encoder = msgspec.msgpack.Encoder()
_applied_decoder = msgspec.msgpack.Decoder(list[tuple[str, str, bytes]])
_choices_decoder = msgspec.msgpack.Decoder(tuple[Choice, ...])


class PolicyInForce:
    """`current` is what was applied. Engines execute `for_engines`: the same version, with levels computed from it.

    `choices` explain the difference if the policy is `auto`.
    """

    def __init__(self, policy: Policy, balancer: Balancer) -> None:
        self.current = self.for_engines = PolicyVersion(1, policy, balancer)
        self.choices: tuple[Choice, ...] = ()
        self._applied: list[_Applied] = []

    def restore(
        self,
        policy: bytes | None,
        requests: bytes | None,
        choices: bytes | None,
        decode_message: Callable[[bytes], PolicyVersion],
    ) -> None:
        """Takes over what the store holds. UnreadablePolicyError, which changes nothing (stored.py)."""
        version = self.current if policy is None else stored.decode(policy, decode_message)
        try:
            kept = [] if requests is None else _applied_decoder.decode(requests)
        except msgspec.DecodeError as error:
            raise stored.UnreadablePolicyError(f"{REQUESTS_KEY}: {error}") from error
        try:
            self.choices = () if choices is None else _choices_decoder.decode(choices)
        except msgspec.DecodeError:
            # They are learned again.
            self.choices = ()
        self._applied = [_Applied(key, digest, stored.decode(data, decode_message)) for key, digest, data in kept]
        self._use(version)

    def _use(self, version: PolicyVersion) -> None:
        self.current = self.for_engines = version

    def execute(self, decided: Decided) -> tuple[bool, list[tuple[str, bytes]]]:
        """Replaces what engines execute, under the same version.

        Returns whether that changed, and the items to store: none unless a class was decided differently.
        """
        decisions = [(choice.class_name, choice.chosen) for choice in self.choices]
        changed = decided.policy != self.for_engines.policy
        self.choices = decided.choices
        if changed:
            self.for_engines = replace(self.current, policy=decided.policy)
        if not changed and decisions == [(choice.class_name, choice.chosen) for choice in self.choices]:
            return False, []
        return changed, [(CHOICES_KEY, _encoder.encode(self.choices))] if self.choices else []

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
        if version.policy.source is not Source.AUTO:
            self.choices = ()
        items = [(POLICY_KEY, stored.encode(version)), (CHOICES_KEY, _encoder.encode(self.choices))]
        if change.idempotency_key:
            self._applied.append(_Applied(change.idempotency_key, change.digest, version))
            items.append((REQUESTS_KEY, self._encode_applied()))
        return version, items

    def _encode_applied(self) -> bytes:
        """The newest requests, as many as are kept; forgets the others."""
        kept: list[tuple[str, str, bytes]] = []
        size = 0
        for applied in reversed(self._applied[-MAX_REQUESTS_KEPT:]):
            data = stored.encode(applied.version)
            size += len(data)
            if kept and size > MAX_REQUESTS_BYTES:
                break
            kept.append((applied.key, applied.digest, data))
        self._applied = self._applied[-len(kept) :]
        return _encoder.encode(kept[::-1])
