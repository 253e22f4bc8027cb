"""The CRD of InferencePools, as the Gateway API Inference Extension publishes it in its Go module."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml
from kube.paths import ROOT

MODULE = "sigs.k8s.io/gateway-api-inference-extension"
CRD = "config/crd/bases/inference.networking.k8s.io_inferencepools.yaml"


def inference_pool_crd() -> dict[str, Any]:
    """Of the version in e2e/gaie/go.mod. Needs Go, and the module proxy the first time.

    CalledProcessError, with Go's message, when the module cannot be had.
    """
    argv = ["go", "mod", "download", "-json", MODULE]
    found = subprocess.run(argv, cwd=ROOT / "e2e/gaie", check=True, capture_output=True, text=True)
    crd: dict[str, Any] = yaml.safe_load((Path(json.loads(found.stdout)["Dir"]) / CRD).read_text())
    return crd
