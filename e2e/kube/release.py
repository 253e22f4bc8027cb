"""The operator, installed by helm as in the README."""

from __future__ import annotations

from kube.kubectl import Kubectl, run
from kube.paths import CHART
from kube.versions import OPERATOR_NAMESPACE, RELEASE


def install(*values: str) -> Kubectl:
    """Installs it if it is not there, with these arguments of helm.

    All pods run on the first node, because test_node_loss stops another one.
    """
    for node in Kubectl(OPERATOR_NAMESPACE).find("nodes")[1:]:
        run("kubectl", "cordon", node["metadata"]["name"])
    if RELEASE not in run("helm", "list", "-q", "-n", OPERATOR_NAMESPACE):
        run(
            "helm", "install", RELEASE, str(CHART), "-n", OPERATOR_NAMESPACE, "--create-namespace", "--wait",
            "--timeout", "3m", *values, bound_s=200,
        )  # fmt: skip
    return Kubectl(OPERATOR_NAMESPACE)
