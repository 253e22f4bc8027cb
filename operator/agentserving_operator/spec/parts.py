"""Parts of the spec that occur in several places, named as in Kubernetes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from agentserving_operator.spec.fields import Rule, choice, integer, quantity, struct, text


class TolerationOperator(StrEnum):
    """As in Kubernetes."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """As in Kubernetes."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretKey:
    """A value in a Secret of the same namespace."""

    secret_name: str = text("Name of the Secret.", 253, min_length=1, pattern=r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    key: str = text("Key in the Secret.", 253, default="token", min_length=1, pattern=r"^[-._a-zA-Z0-9]+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """A taint that a pod tolerates."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.value) || self.operator == 'Equal'",
            "value goes with operator Equal only",
            lambda t: t.value is None or t.operator is TolerationOperator.EQUAL,
            "value",
        ),
        Rule(
            "has(self.key) || self.operator == 'Exists'",
            "key may be absent with operator Exists only",
            lambda t: t.key is not None or t.operator is TolerationOperator.EXISTS,
            "key",
        ),
        Rule(
            "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            "tolerationSeconds goes with effect NoExecute only",
            lambda t: t.toleration_seconds is None or t.effect is TaintEffect.NO_EXECUTE,
            "tolerationSeconds",
        ),
    )

    key: str | None = text("Key of the taint; absent: any.", 316, default=None, min_length=1)
    operator: TolerationOperator = choice("Exists or Equal.", default=TolerationOperator.EXISTS)
    value: str | None = text("Value of the taint.", 63, default=None)
    effect: TaintEffect | None = choice("Effect of the taint; absent: any.", default=None)
    toleration_seconds: int | None = integer("How long it is tolerated; absent: for ever.", 0, 86_400, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantities:
    """Amounts for one container."""

    cpu: str | None = quantity("Cores.", default=None)
    memory: str | None = quantity("Bytes.", default=None)
    ephemeral_storage: str | None = quantity("Bytes.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Requests and limits of one container."""

    requests: Quantities | None = struct("What is reserved for it.", default=None)
    limits: Quantities | None = struct("What it may not exceed.", default=None)
