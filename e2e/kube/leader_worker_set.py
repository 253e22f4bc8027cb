"""LeaderWorkerSet, as it is published in its Go module: the CRD, and the chart of its controller."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml
from kube.paths import ROOT

MODULE = "sigs.k8s.io/lws"
CRD = "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml"


def leader_worker_set_module() -> Path:
    """Its directory, of the version in e2e/kube/lws.version. Needs Go, and the module proxy the first time.

    CalledProcessError, with Go's message, when the module cannot be had.
    """
    version = (ROOT / "e2e/kube/lws.version").read_text().strip()
    argv = ["go", "mod", "download", "-json", f"{MODULE}@{version}"]
    found = subprocess.run(argv, check=True, capture_output=True, text=True)
    return Path(json.loads(found.stdout)["Dir"])


def leader_worker_set_crd() -> dict[str, Any]:
    """The CRD of LeaderWorkerSets."""
    found: dict[str, Any] = yaml.safe_load((leader_worker_set_module() / CRD).read_text())
    return found
