"""CRDs of kinds that need not be installed, as the Gateway API and its extension publish them in their Go modules."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml
from kube.paths import ROOT

POOLS = (
    "sigs.k8s.io/gateway-api-inference-extension",
    "config/crd/bases/inference.networking.k8s.io_inferencepools.yaml",
)
ROUTES = ("sigs.k8s.io/gateway-api", "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml")


def inference_pool_crd() -> dict[str, Any]:
    """The CRD of InferencePools; see `_published`."""
    return _published(*POOLS)


def http_route_crd() -> dict[str, Any]:
    """The CRD of HTTPRoutes; see `_published`."""
    return _published(*ROUTES)


def _published(module: str, path: str) -> dict[str, Any]:
    """Of the version in e2e/gaie/go.mod. Needs Go, and the module proxy the first time.

    CalledProcessError, with Go's message, when the module cannot be had.
    """
    argv = ["go", "mod", "download", "-json", module]
    found = subprocess.run(argv, cwd=ROOT / "e2e/gaie", check=True, capture_output=True, text=True)
    crd: dict[str, Any] = yaml.safe_load((Path(json.loads(found.stdout)["Dir"]) / path).read_text())
    return crd
