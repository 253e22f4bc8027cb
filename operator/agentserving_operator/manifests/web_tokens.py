"""The issuer of clients' JWTs in pods that verify them: its Secret, and the flags that name its file. Pure."""

from __future__ import annotations

from agentserving_operator.manifests.common import AgentServingCluster, Manifest, secret_files
from agentserving_operator.spec.auth import JWKS_KEY

DIR = "/etc/agentserving/jwt-issuer"


def token_volumes(cluster: AgentServingCluster) -> list[Manifest]:
    """Optional: the process that misses its file says so, which a pod that cannot mount a Secret does not."""
    given = cluster.spec.auth.jwt
    return [] if given is None else [secret_files("jwt-issuer", given.jwks_secret_name, [JWKS_KEY])]


def token_mounts(cluster: AgentServingCluster) -> list[Manifest]:
    """A directory, because kubelet never updates single files."""
    return [] if cluster.spec.auth.jwt is None else [{"name": "jwt-issuer", "mountPath": DIR, "readOnly": True}]


def token_flags(cluster: AgentServingCluster) -> list[str]:
    """Flags of control planes and pickers."""
    given = cluster.spec.auth.jwt
    if given is None:
        return []
    return [
        f"--jwt-issuer={given.issuer}", f"--jwt-audience={given.audience}", f"--jwt-jwks-file={DIR}/{JWKS_KEY}",
        f"--jwt-algorithms={','.join(given.algorithms)}", f"--jwt-tenant-claim={given.tenant_claim}",
        f"--jwt-leeway-s={given.leeway_seconds}",
    ]  # fmt: skip
