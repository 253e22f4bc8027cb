"""The salt that keeps one tenant's prompts out of another's prefix cache. Pure."""

from __future__ import annotations

import hashlib

# Calls without a ticket, and those of a cluster without keys, which all belong to this tenant, have no salt.
UNSALTED = ("", "default")


def salt_of(tenant: str) -> str:
    """vLLM's `cache_salt` for a tenant: equal for equal tenants only; "" = none."""
    return "" if tenant in UNSALTED else hashlib.sha256(tenant.encode()).hexdigest()[:32]
