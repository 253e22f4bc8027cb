"""The CustomResourceDefinition, made from `spec` and `status_fields`. Pure but for `main`, which `make crd` runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from agentserving_operator.spec.cluster import DNS_LABEL, MAX_NAME, ClusterSpec
from agentserving_operator.spec.fields import Rule
from agentserving_operator.spec.schema import object_schema, validation
from agentserving_operator.spec.status import ClusterStatus

GROUP, VERSION = "agentserving.io", "v1alpha1"
KIND, PLURAL, SINGULAR, SHORT = "AgentServingCluster", "agentservingclusters", "agentservingcluster", "asc"
API_VERSION = f"{GROUP}/{VERSION}"

NAME_RULES = (
    Rule(f"size(self.metadata.name) <= {MAX_NAME}", f"metadata.name may have at most {MAX_NAME} characters"),
    Rule(
        f"self.metadata.name.matches('{DNS_LABEL}')",
        "metadata.name must begin with a letter and have lower-case letters, digits and - only",
    ),
)
HEADER = "# Written by `make crd` from operator/agentserving_operator/spec/cluster.py: change that, not this.\n"


def _condition(kind: str, member: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{member}'


def columns() -> list[dict[str, Any]]:
    """What `kubectl get asc` prints."""
    return [
        {"name": "Ready", "type": "string", "jsonPath": _condition("Ready", "status")},
        {"name": "Reason", "type": "string", "jsonPath": _condition("Ready", "reason")},
        {"name": "URL", "type": "string", "jsonPath": ".status.url"},
        {"name": "Policy", "type": "string", "jsonPath": ".status.policy.name"},
        {"name": "Engines", "type": "string", "jsonPath": ".status.engines.summary"},
        {"name": "Programs", "type": "integer", "jsonPath": ".status.programs"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]


def version() -> dict[str, Any]:
    """v1alpha1."""
    schema = {
        "type": "object",
        "description": "A cluster of engines that serves agentic programs, and what schedules them.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": object_schema(ClusterSpec),
            "status": object_schema(ClusterStatus, defaults=False),
        },
        "x-kubernetes-validations": [validation(rule) for rule in NAME_RULES],
    }
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": columns(),
        "schema": {"openAPIV3Schema": schema},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.engine.replicas",
                "statusReplicasPath": ".status.engines.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
    }


def definition() -> dict[str, Any]:
    """The whole object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT],
                "categories": ["agentserving"],
            },
            "versions": [version()],
        },
    }


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(document: dict[str, Any]) -> str:
    """YAML without anchors, keys in the order given."""
    return str(yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120))


def main(argv: list[str]) -> int:
    """Writes the YAML to the path given."""
    Path(argv[0]).write_text(HEADER + to_yaml(definition()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
