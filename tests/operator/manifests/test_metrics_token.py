"""Readers of metrics need the token of a Secret, if the spec names one."""

from __future__ import annotations

from typing import Any

import pytest
from agentserving_controlplane.settings import Settings as ControlPlaneSettings
from agentserving_gateway.__main__ import Settings as PickerSettings
from agentserving_operator.manifests.control_plane_deployment import control_plane_deployment
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_operator.manifests.gateway_deployment import gateway_deployment
from agentserving_process import options
from agentserving_sidecar.settings import Settings as SidecarSettings
from support.operator_objects import make_cluster, pod_spec

PARTS = [
    (control_plane_deployment, "control-plane", ControlPlaneSettings),
    (gateway_deployment, "picker", PickerSettings),
    (engine_statefulset, "sidecar", SidecarSettings),
]


def usage(settings: Any, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        options.parse(settings, prog="x", argv=["--help"], environment={})
    return capsys.readouterr().out


@pytest.mark.parametrize(("made", "name", "settings"), PARTS)
def test_each_process_with_metrics_gets_the_token(
    made: Any, name: str, settings: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = pod_spec(made(make_cluster(network={"metricsTokenSecretName": "scraper"})))
    (one,) = (each for each in (*spec["containers"], *spec.get("initContainers", ())) if each["name"] == name)
    file = one["args"][one["args"].index("--metrics-token-file") + 1]
    (mount,) = (each for each in one["volumeMounts"] if f"{each['mountPath']}/token" == file)
    (volume,) = (each for each in spec["volumes"] if each["name"] == mount["name"])
    assert volume["secret"]["secretName"] == "scraper"
    assert "--metrics-token-file" in usage(settings, capsys)
    assert "metrics-token" not in str(pod_spec(made(make_cluster())))
