"""Every part has an identity of its own, and no token."""

from __future__ import annotations

from agentserving_operator.manifests import desired
from support.operator_objects import make_cluster, pod_spec


def test_every_pod_has_an_existing_account_without_a_token() -> None:
    objects = desired(make_cluster())
    accounts = {each["metadata"]["name"]: each for each in objects if each["kind"] == "ServiceAccount"}
    used = [pod_spec(each)["serviceAccountName"] for each in objects if each["kind"] in ("Deployment", "StatefulSet")]
    assert sorted(used) == sorted(accounts)
    assert not any(account["automountServiceAccountToken"] for account in accounts.values())
