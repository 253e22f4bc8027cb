"""A policy goes from `policy get -o json` back into `policy set`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from agentserving.client import operations
from agentserving.client.values import Balancer
from agentserving.contract.policy import PRESETS, Level, Policy
from agentserving.contract.policy_message import policy_to
from agentserving.v1 import admin_service_pb2, types_pb2
from agentserving_cli.main import main
from agentserving_cli.output import as_data
from agentserving_cli.policy_files import policy_in, policy_of
from click.testing import CliRunner, Result
from support.served_plane import ServedPlane

OWN = Policy(name="mine", levels=(Level(250_000, 250_000), Level()), classes=(("a", (Level(),)),), beta_milli=5000)


@pytest.mark.parametrize("policy", [*PRESETS.values(), OWN], ids=lambda policy: policy.name)
def test_what_get_prints_is_the_policy_that_it_was_printed_of(policy: Policy, tmp_path: Path) -> None:
    version = types_pb2.PolicyVersion(version=7, policy=policy_to(policy), balancer=types_pb2.BALANCER_LEAST_USED)
    answer = admin_service_pb2.GetPolicyResponse(policy=version, pending_engine_ids=["e1"])
    printed = as_data(operations.get_policy()).read(answer)
    path = tmp_path / "policy"
    path.write_text(json.dumps(printed))
    assert policy_of(str(path)) == policy_in(str(path)) == (policy, Balancer.LEAST_USED)
    path.write_text(json.dumps(printed["policy"]["policy"]))
    assert policy_in(str(path)) == (policy, Balancer.UNSPECIFIED)


async def test_a_policy_read_from_standard_input_is_put_in_force_with_its_balancer() -> None:
    async with ServedPlane() as plane:
        where = ("--control-plane", f"127.0.0.1:{plane.port}")

        def command(*arguments: str, given: str = "") -> Result:
            done = CliRunner().invoke(main, ["policy", *arguments, *where], input=given)
            assert done.exit_code == 0, done.output
            return done

        await asyncio.to_thread(command, "set", "gittins")
        printed = (await asyncio.to_thread(command, "get", "-o", "json")).output
        document = json.loads(printed)
        document["policy"]["policy"].update(name="mine", beta_milli=7000)
        document["policy"]["balancer"] = "BALANCER_ROUND_ROBIN"
        done = await asyncio.to_thread(lambda: command("set", "-f", "-", given=json.dumps(document)))
        assert "policy mine is version 3" in done.output
        in_force = plane.plane.policy
        assert (in_force.policy.name, in_force.policy.beta_milli) == ("mine", 7000)
        assert in_force.policy.levels == PRESETS["gittins"].levels
        assert in_force.balancer.value == "round_robin"


@pytest.mark.parametrize("arguments", [[], ["fcfs", "-f", "-"]])
def test_set_wants_one_policy(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, ["policy", "set", *arguments, "--control-plane", "127.0.0.1:1"])
    assert done.exit_code == 2
    assert "name a policy or a file" in done.output
