"""The sidecar starts before its engine and ends after it, with a command line that it accepts."""

from __future__ import annotations

from pathlib import Path

from agentserving_operator.manifests.engine_pod import PUBLIC_KEY_FILE
from agentserving_operator.manifests.sidecar import sidecar_container
from agentserving_operator.manifests.ticket_key_secret import files_of
from agentserving_process import options
from agentserving_sidecar.settings import Settings
from support.operator_objects import env_of, make_cluster


def test_its_command_line_is_valid(tmp_path: Path) -> None:
    one = sidecar_container(make_cluster(engine={"drainSeconds": 77, "stuckSeconds": 40}))
    (tmp_path / "public").write_bytes(files_of(b"k" * 32)["public"])
    arguments = [str(tmp_path / "public") if each == PUBLIC_KEY_FILE else each for each in one["args"]]
    assert one["command"] == ["python", "-m", "agentserving_sidecar"]
    given = options.parse(Settings, prog="sidecar", argv=arguments, environment={})
    assert given.leader.control_plane == "demo-control-plane.ns.svc:7070"
    assert (given.engine.engine_address, given.sidecar.listen) == ("$(POD_IP):8000", "$(POD_IP):7071")
    assert (given.probes.http_host, given.probes.http_port) == ("0.0.0.0", 7072)
    assert given.sidecar.ticket_keys is not None, "clients have keys"
    assert (given.engine.drain_s, given.engine.stuck_s) == (77.0, 40.0)
    assert {"POD_NAME", "POD_IP"} <= env_of(one).keys()


def test_it_is_a_native_sidecar_whose_start_does_not_depend_on_the_engine() -> None:
    one = sidecar_container(make_cluster())
    assert one["restartPolicy"] == "Always"
    assert one["startupProbe"]["httpGet"]["path"] == "/healthz"
    assert one["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_its_resources_have_defaults_that_the_user_overrides() -> None:
    default = sidecar_container(make_cluster())["resources"]
    assert {"cpu", "memory"} == default["requests"].keys() == default["limits"].keys()
    given = {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    assert sidecar_container(make_cluster(engine={"sidecarResources": given}))["resources"] == given
