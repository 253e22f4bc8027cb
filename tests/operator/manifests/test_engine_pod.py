"""The engine container has a valid command line of vLLM, or of the simulator."""

from __future__ import annotations

import ast
from pathlib import Path

import agentserving_engine
import pytest
from agentserving.contract.engine_http import VLLM_KEEP_ALIVE
from agentserving.contract.signatures import public_bytes
from agentserving_engine.calls import Unticketed
from agentserving_engine.http.middleware import EngineMiddleware
from agentserving_engine.settings import HttpSettings, PluginSettings
from agentserving_gateway.envoy.clusters import ENGINE_IDLE_S
from agentserving_operator.manifests import desired
from agentserving_operator.manifests.engine_pod import MIDDLEWARE, SCHEDULER, engine_container
from agentserving_operator.manifests.engine_statefulset import engine_statefulset
from agentserving_simulator import __main__ as simulator
from support.operator_objects import env_of, make_cluster, pod_spec, value_after

SIMULATED = {"type": "Simulator", "simulator": {"speedPercent": 250, "numBlocks": 500}, "maxSequences": 9}


def test_the_simulators_command_line_is_valid() -> None:
    one = engine_container(make_cluster(engine=SIMULATED, model={"name": "m", "servedName": "tiny", "maxLength": 4096}))
    assert one["command"] == ["python", "-m", "agentserving_simulator"]
    given = simulator._arguments(one["args"])
    assert (given.model, given.speed, given.num_blocks) == ("tiny", 2.5, 500)
    assert (given.max_num_seqs, given.max_model_len, given.listen) == (9, 4096, "0.0.0.0:8000")


def test_a_slow_simulator_is_not_rounded_to_zero() -> None:
    one = engine_container(make_cluster(engine={"type": "Simulator", "simulator": {"speedPercent": 1}}))
    assert simulator._arguments(one["args"]).speed == 0.01


def test_vllm_gets_our_scheduler_which_exists() -> None:
    arguments = engine_container(make_cluster())["args"]
    assert value_after(arguments, "--scheduler-cls") == SCHEDULER
    module, _, name = SCHEDULER.rpartition(".")
    source = Path(agentserving_engine.__path__[0]) / f"{module.rpartition('.')[2]}.py"
    # Read, not imported: vLLM is not in this environment. It is a function that chooses one of two classes.
    made = (ast.ClassDef, ast.FunctionDef)
    assert name in [node.name for node in ast.parse(source.read_text()).body if isinstance(node, made)]


def test_vllm_gets_our_middleware_which_exists() -> None:
    arguments = engine_container(make_cluster())["args"]
    assert value_after(arguments, "--middleware") == MIDDLEWARE
    assert f"{EngineMiddleware.__module__}.{EngineMiddleware.__qualname__}" == MIDDLEWARE


def test_the_longest_silence_of_a_stream_is_a_field_of_the_spec_for_both_kinds_of_engine() -> None:
    for seconds in (0, 15, 40):
        given = {} if seconds == 15 else {"sseKeepAliveSeconds": seconds}
        env = {name: str(value) for name, value in env_of(engine_container(make_cluster(engine=given))).items()}
        assert HttpSettings.from_env(env).sse_keep_alive_s == seconds
        simulated = engine_container(make_cluster(engine={**SIMULATED, **given}))
        assert simulator._arguments(simulated["args"]).sse_keep_alive_s == seconds


def test_vllm_closes_idle_connections_long_after_gateways_do() -> None:
    assert int(env_of(engine_container(make_cluster()))[VLLM_KEEP_ALIVE]) > 10 * ENGINE_IDLE_S


def test_the_plugin_finds_its_settings(tmp_path: Path) -> None:
    env = env_of(engine_container(make_cluster()))
    (tmp_path / "public").write_bytes(public_bytes(b"0123456789abcdef"))
    given = {name: str(value) for name, value in env.items()}
    files = {"AGENTSERVING_TICKET_KEY_FILE", "AGENTSERVING_GATEWAY_KEY_FILE"}
    given |= {"AGENTSERVING_CHANNEL_DIR": str(tmp_path), **dict.fromkeys(files, str(tmp_path / "public"))}
    assert {"AGENTSERVING_CHANNEL_DIR", *files} <= env.keys()
    found = PluginSettings.from_env(given)
    assert (found.engine_id, found.unticketed, found.separate_caches) == ("$(POD_NAME)", Unticketed.REFUSE, True)
    # Kubernetes expands only variables that are defined earlier.
    assert list(env).index("POD_NAME") < list(env).index("AGENTSERVING_ENGINE_ID")


@pytest.mark.parametrize("engine", ["VLLM", "Simulator"])
def test_an_engine_serves_calls_without_tickets_only_in_a_cluster_without_keys(engine: str) -> None:
    for clients, cache, expected in (
        ("Keys", "PerTenant", ("refuse", None)), ("Keys", "Shared", ("refuse", "shared")),
        ("None", "PerTenant", (None, None)), ("None", "Shared", (None, "shared")),
    ):  # fmt: skip
        spec = {"auth": {"clients": clients}, "engine": {"type": engine, "prefixCache": cache}}
        one = engine_container(make_cluster(**spec))
        env = env_of(one)
        pairs = dict(zip(one["args"], [*one["args"][1:], ""], strict=True))
        names = ("--unticketed", "--tenant-cache") if engine == "Simulator" else tuple(
            f"AGENTSERVING_{name}" for name in ("UNTICKETED", "TENANT_CACHE")
        )  # fmt: skip
        assert tuple((pairs if engine == "Simulator" else env).get(name) for name in names) == expected
        assert ("gateway-public" in str(one)) == (clients == "Keys")


def test_what_vllm_writes_is_in_volumes() -> None:
    """Its image is made for root, and the root file system is read-only."""
    cluster = make_cluster()
    one, spec = engine_container(cluster), pod_spec(engine_statefulset(cluster))
    env, mounts = env_of(one), {each["mountPath"]: each for each in one["volumeMounts"]}
    for place in (env["HOME"], env["HF_HOME"], "/tmp", "/dev/shm"):
        assert not mounts[place].get("readOnly")
    assert env["USER"], "PyTorch cannot be imported by a uid without a name"
    # Kubernetes leaves a volume's files alone if its top directory has the group; older versions wrote as root.
    assert spec["securityContext"]["fsGroupChangePolicy"] == "Always"


def test_a_template_gives_vllm_another_user() -> None:
    security = {"runAsUser": 0, "runAsNonRoot": False, "readOnlyRootFilesystem": False}
    template = {"spec": {"containers": [{"name": "engine", "securityContext": security}]}}
    (made,) = [
        each
        for each in desired(make_cluster(engine={"template": template}))
        if (each["kind"], each["metadata"]["name"]) == ("StatefulSet", "demo-engine")
    ]
    spec = pod_spec(made)
    assert {**spec["containers"][0]["securityContext"], **security} == spec["containers"][0]["securityContext"]
    assert spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["securityContext"]["runAsNonRoot"] is True, "the sidecar's"


def test_weights_are_data_unless_the_spec_says_otherwise() -> None:
    """Pickled weights and a model's own code run as the engine."""
    arguments = engine_container(make_cluster())["args"]
    assert value_after(arguments, "--load-format") == "safetensors"
    assert "--trust-remote-code" not in arguments
    model = {"name": "m", "loadFormat": "auto", "trustRemoteCode": True}
    arguments = engine_container(make_cluster(model=model))["args"]
    assert value_after(arguments, "--load-format") == "auto"
    assert "--trust-remote-code" in arguments


def test_vllms_arguments_follow_the_spec() -> None:
    arguments = engine_container(
        make_cluster(
            model={"name": "org/m", "servedName": "m", "maxLength": 8192},
            engine={
                "accelerator": {"count": 4}, "kvOffloadGiB": 64, "maxSequences": 128, "extraArgs": ["--enforce-eager"],
            },
        )
    )["args"]  # fmt: skip
    assert value_after(arguments, "--model") == "org/m"
    assert value_after(arguments, "--served-model-name") == "m"
    assert value_after(arguments, "--tensor-parallel-size") == "4"
    assert value_after(arguments, "--kv-offloading-size") == "64"
    assert value_after(arguments, "--max-num-seqs") == "128"
    assert value_after(arguments, "--max-model-len") == "8192"
    assert arguments[-1] == "--enforce-eager"


def test_one_device_needs_no_tensor_parallelism() -> None:
    assert "--tensor-parallel-size" not in engine_container(make_cluster())["args"]


def environment(accelerator: dict[str, int]) -> dict[str, str]:
    made = engine_container(make_cluster(engine={"accelerator": accelerator}))
    return {each["name"]: each.get("value", "") for each in made["env"]}


@pytest.mark.parametrize(
    ("accelerator", "tensor", "data"),
    [
        ({"count": 8, "dataParallelSize": 2, "tensorParallelSize": 4}, "4", "2"),
        ({"count": 4, "dataParallelSize": 4}, None, "4"),
        ({"count": 0, "dataParallelSize": 2}, None, "2"),
        ({"count": 4}, "4", None),
    ],
)
def test_ranks_share_the_devices_and_every_process_knows_how_many_there_are(
    accelerator: dict[str, int], tensor: str | None, data: str | None
) -> None:
    arguments = engine_container(make_cluster(engine={"accelerator": accelerator}))["args"]
    for flag, value in (("--tensor-parallel-size", tensor), ("--data-parallel-size", data)):
        assert (value_after(arguments, flag) if flag in arguments else None) == value
    assert environment(accelerator).get("AGENTSERVING_RANKS") == data


def test_devices_are_added_to_the_users_limits() -> None:
    given = {"resources": {"limits": {"memory": "64Gi", "ephemeralStorage": "1Gi"}, "requests": {"cpu": "8"}}}
    resources = engine_container(make_cluster(engine=given))["resources"]
    assert resources["limits"] == {"memory": "64Gi", "ephemeral-storage": "1Gi", "nvidia.com/gpu": "1"}
    assert resources["requests"] == {"cpu": "8"}


def test_an_engine_on_cpu_requests_no_device() -> None:
    resources = engine_container(make_cluster(engine={"accelerator": {"count": 0}}))["resources"]
    assert "limits" not in resources


def test_a_token_is_a_file_that_only_vllm_sees() -> None:
    cluster = make_cluster(model={"name": "m", "token": {"secretName": "hf", "key": "read"}})
    one, spec = engine_container(cluster), pod_spec(engine_statefulset(cluster))
    (volume,) = [each for each in spec["volumes"] if each["name"] == "model-token"]
    assert volume["secret"]["secretName"] == "hf"
    (item,) = volume["secret"]["items"]
    (mount,) = [each for each in one["volumeMounts"] if each["name"] == "model-token"]
    assert (env_of(one)["HF_TOKEN_PATH"], item["key"]) == (f"{mount['mountPath']}/{item['path']}", "read")
    assert "secretKeyRef" not in str(spec)
    assert "model-token" not in str(spec["initContainers"])
    assert "model-token" not in str(pod_spec(engine_statefulset(make_cluster())))


def test_the_spec_limits_how_long_a_model_may_load() -> None:
    probe = engine_container(make_cluster(engine={"startupSeconds": 1805}))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1810


def test_leaving_waits_for_the_drain() -> None:
    command = engine_container(make_cluster())["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:2] == ["python3", "-c"]
    compile(command[2], "hook", "exec")
    assert "/run/agentserving/drain.sock" in command[2]


def test_a_tool_parser_lets_agents_call_tools() -> None:
    model = {"name": "m", "toolParser": "llama3_json"}
    arguments = engine_container(make_cluster(model=model))["args"]
    assert value_after(arguments, "--tool-call-parser") == "llama3_json"
    assert "--enable-auto-tool-choice" in arguments
    only_named = engine_container(make_cluster(model={**model, "enableAutoToolChoice": False}))["args"]
    assert "--enable-auto-tool-choice" not in only_named
    without = engine_container(make_cluster())["args"]
    assert not {"--tool-call-parser", "--enable-auto-tool-choice"} & set(without)
