"""Which of several operators looks after a cluster. Pure: the time is an argument.

Operators of two releases would each restore what the other one changes, without end. The first to write a cluster's
status records its own Lease there; others leave the cluster alone for as long as that Lease is renewed. An operator
that was uninstalled or is down for longer than its Lease lasts is succeeded by the next one that visits.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from agentserving_operator.manifests import Manifest

# Clocks of two nodes differ.
GRACE_S = 5.0


def recorded(status: Mapping[str, Any]) -> str:
    """namespace/name of the Lease of the operator that looks after the cluster; "" = none is recorded."""
    return str(status.get("operator") or "")


def is_held(lease: Manifest | None, now: datetime.datetime) -> bool:
    """Whether the operators of a Lease work. A Lease that does not exist was uninstalled with its operator."""
    spec = (lease or {}).get("spec") or {}
    if not spec.get("holderIdentity") or not spec.get("renewTime"):
        return False
    renewed = datetime.datetime.fromisoformat(str(spec["renewTime"]))
    return (now - renewed).total_seconds() < float(spec.get("leaseDurationSeconds") or 0) + GRACE_S
