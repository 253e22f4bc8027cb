"""The engine container: vLLM with our scheduler, or the simulator. Pure.

vLLM's image is made for root. It runs as our user on a read-only root file system all the same, because everything
that it, PyTorch, Triton and CUDA write is below $HOME, which is a volume.
"""

from __future__ import annotations

import ssl

from agentserving.contract.channel import RANKS_VARIABLE
from agentserving.contract.engine_http import KEEP_ALIVE_S, VLLM_KEEP_ALIVE

from agentserving_operator.manifests.common import (
    PYTHON_ENV,
    AgentServingCluster,
    Manifest,
    Port,
    any_host,
    container,
    http_probe,
    keys_are_needed,
    listening,
    port,
    python,
    resources_of,
)
from agentserving_operator.manifests.model_source import MODELS_DIR, model_path, source_mounts
from agentserving_operator.manifests.tls import ENGINE_DIR, ENGINE_SERVED_DIR, flags
from agentserving_operator.spec.cluster import EngineType, PrefixCache
from agentserving_operator.spec.nodes import parallel_sizes

SCHEDULER = "agentserving_engine.scheduler.ProgramScheduler"
MIDDLEWARE = "agentserving_engine.http.middleware.EngineMiddleware"
CHANNEL_DIR, KEY_DIR = "/run/agentserving", "/etc/agentserving/ticket"
KEY_FILE = f"{KEY_DIR}/key"
# Of the control plane's keys, the public ones: engines verify tickets and make none.
PUBLIC_KEY_FILE, GATEWAY_PUBLIC_KEY_FILE = f"{KEY_DIR}/public", f"{KEY_DIR}/gateway-public"
PUBLIC_KEYS = tuple(f"{name}{suffix}" for name in ("public", "gateway-public") for suffix in ("", ".next", ".previous"))
# Where huggingface_hub reads the token: as a variable, every child process and crash report would have it.
MODEL_TOKEN_DIR, MODEL_TOKEN_FILE = "/etc/agentserving/model-token", "token"
TEMPLATE_DIR, TEMPLATE_FILE = "/etc/agentserving/chat-template", "template.jinja"
# Compiled kernels and whatever else a library puts below the home directory.
HOME_VOLUME, HOME_DIR, USER_NAME = "home", "/var/lib/agentserving/home", "agentserving"
PROBE_EVERY_S = 10
# Returns when the engine has no calls left, or after the sidecar's --drain-s. The sidecar answers on a socket in the
# directory that it shares with this container alone. Both images have Python, not curl.
DRAIN = (
    f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{CHANNEL_DIR}/drain.sock'); "
    "s.sendall(b'GET /drain HTTP/1.0\\r\\n\\r\\n'); s.recv(4096)"
)
# Whether an engine answers that asks for certificates: kubelet has none to show. As with kubelet's own probes, the
# engine's is not verified.
IS_ALIVE = (
    "import socket, ssl, sys; c = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); c.check_hostname = False; "
    f"c.verify_mode = ssl.CERT_NONE; c.load_cert_chain('{ENGINE_SERVED_DIR}/tls.crt', '{ENGINE_SERVED_DIR}/tls.key'); "
    f"s = c.wrap_socket(socket.create_connection(('127.0.0.1', {Port.ENGINE}), 5)); "
    "s.sendall(b'GET /health HTTP/1.0\\r\\n\\r\\n'); sys.exit(b' 200 ' not in s.recv(64))"
)


def engine_container(cluster: AgentServingCluster) -> Manifest:
    """The container that runs vLLM or the simulator, as `spec.engine` says."""
    engine = cluster.spec.engine
    simulated = engine.type is EngineType.SIMULATOR
    resources = engine_resources(cluster)
    started: Manifest = {
        "ports": [port("https" if cluster.spec.tls.engines else "http", Port.ENGINE)],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "volumeMounts": [
            {"name": "channel", "mountPath": CHANNEL_DIR},
            {"name": "ticket-key", "mountPath": KEY_DIR, "readOnly": True},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
            *_tls_mount(cluster),
        ],
        **_probes(cluster),
        "lifecycle": {"preStop": {"exec": {"command": ["python" if simulated else "python3", "-c", DRAIN]}}},
    }
    if simulated:
        started |= python("agentserving_simulator", *_simulator_arguments(cluster))
        started["env"] += PYTHON_ENV
        return container(cluster, "engine", engine.image or cluster.images.agentserving, resources, **started)
    started |= {"command": ["python3", "-m", "vllm.entrypoints.openai.api_server"], "args": _vllm_arguments(cluster)}
    started["env"] += _vllm_env(cluster)
    started["volumeMounts"] += model_mounts(cluster)
    if cluster.spec.model.chat_template is not None:
        started["volumeMounts"].append({"name": "chat-template", "mountPath": TEMPLATE_DIR, "readOnly": True})
    return container(cluster, "engine", engine.image or cluster.images.vllm, resources, **started)


def _tls_mount(cluster: AgentServingCluster) -> list[Manifest]:
    mount = {"name": "engine-tls", "mountPath": ENGINE_DIR, "readOnly": True}
    return [mount] if cluster.spec.tls.engines else []


def _probes(cluster: AgentServingCluster) -> Manifest:
    """Liveness is probed only after the model was loaded; after that, a minute without a response restarts it.

    With `tls.engines` readiness is what the sidecar says, which asks /health all the time: each command costs a start
    of Python. It must not restart the engine, so the others ask the engine itself.
    """
    failures = -(-cluster.spec.engine.startup_seconds // PROBE_EVERY_S)
    ask = ready = http_probe(Port.ENGINE, "/health")
    if cluster.spec.tls.engines:
        name = "python" if cluster.spec.engine.type is EngineType.SIMULATOR else "python3"
        ask = {"exec": {"command": [name, "-S", "-c", IS_ALIVE]}}
        ready = http_probe(Port.SIDECAR_HTTP, "/readyz")
    return {
        "startupProbe": {**ask, "periodSeconds": PROBE_EVERY_S, "timeoutSeconds": 5, "failureThreshold": failures},
        "readinessProbe": {**ready, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**ask, "periodSeconds": PROBE_EVERY_S, "timeoutSeconds": 10, "failureThreshold": 6}
        # A hung engine has no calls that are worth waiting for.
        | {"terminationGracePeriodSeconds": 30},
    }


def served_name(cluster: AgentServingCluster) -> str:
    """The name of the model that clients use."""
    return cluster.spec.model.served_name or cluster.spec.model.name


def _limits(cluster: AgentServingCluster) -> list[str]:
    found = []
    if cluster.spec.model.max_length is not None:
        found += ["--max-model-len", str(cluster.spec.model.max_length)]
    if cluster.spec.engine.max_sequences is not None:
        found += ["--max-num-seqs", str(cluster.spec.engine.max_sequences)]
    return found


def _simulator_arguments(cluster: AgentServingCluster) -> list[str]:
    simulator = cluster.spec.engine.simulator
    settings: list[str] = []
    if simulator is not None:
        whole, hundredths = divmod(simulator.speed_percent, 100)
        settings = ["--speed", f"{whole}.{hundredths:02d}", "--num-blocks", str(simulator.num_blocks)]
    return [
        "--listen", listening(cluster, Port.ENGINE), "--engine-id", "$(POD_NAME)", "--channel-dir", CHANNEL_DIR,
        "--ticket-key-file", PUBLIC_KEY_FILE, *_simulator_access(cluster), "--model", served_name(cluster),
        "--sse-keep-alive-s", str(cluster.spec.engine.sse_keep_alive_seconds),
        *(flags(ENGINE_SERVED_DIR) if cluster.spec.tls.engines else []),
        *settings, *_limits(cluster), *cluster.spec.engine.extra_args,
    ]  # fmt: skip


def _simulator_access(cluster: AgentServingCluster) -> list[str]:
    """As `_vllm_access`. Flags are given only where they are needed: images may be older than the operator."""
    found = []
    if keys_are_needed(cluster):
        found += ["--gateway-key-file", GATEWAY_PUBLIC_KEY_FILE, "--unticketed", "refuse"]
    if cluster.spec.engine.prefix_cache is PrefixCache.SHARED:
        found += ["--tenant-cache", "shared"]
    return found


def _vllm_access(cluster: AgentServingCluster) -> list[Manifest]:
    """With keys, calls without a ticket are refused; gateways sign tickets while there is no control plane."""
    found = []
    if keys_are_needed(cluster):
        found += [
            {"name": "AGENTSERVING_GATEWAY_KEY_FILE", "value": GATEWAY_PUBLIC_KEY_FILE},
            {"name": "AGENTSERVING_UNTICKETED", "value": "refuse"},
        ]
    if cluster.spec.engine.prefix_cache is PrefixCache.SHARED:
        found.append({"name": "AGENTSERVING_TENANT_CACHE", "value": "shared"})
    return found


def _vllm_arguments(cluster: AgentServingCluster) -> list[str]:
    found = [
        "--model", model_path(cluster),
        "--served-model-name", served_name(cluster), *cluster.spec.model.also_served_as,
        "--host", any_host(cluster), "--port", str(Port.ENGINE),
        "--scheduler-cls", SCHEDULER, "--middleware", MIDDLEWARE,
    ]  # fmt: skip
    if cluster.spec.tls.engines:
        found += [
            "--ssl-ca-certs", f"{ENGINE_SERVED_DIR}/ca.crt", "--ssl-certfile", f"{ENGINE_SERVED_DIR}/tls.crt",
            "--ssl-keyfile", f"{ENGINE_SERVED_DIR}/tls.key", "--ssl-cert-reqs", str(ssl.CERT_REQUIRED.value),
            "--enable-ssl-refresh",
        ]  # fmt: skip
    nodes = node_arguments(cluster, "0", "$(POD_IP)") if cluster.spans_nodes else []
    return [
        *found, *nodes, *loading_arguments(cluster), *_tool_arguments(cluster), *_front_arguments(cluster),
        *shared_arguments(cluster),
    ]  # fmt: skip


def node_arguments(cluster: AgentServingCluster, rank: str, leader: str) -> list[str]:
    """How vLLM finds the other nodes of an engine. `rank`: of this pod in its group; `leader`: the first pod's host."""
    return [
        "--nnodes", str(cluster.spec.engine.nodes), "--node-rank", rank,
        "--master-addr", leader, "--master-port", str(Port.ENGINE_GROUP), "--distributed-executor-backend", "mp",
    ]  # fmt: skip


def loading_arguments(cluster: AgentServingCluster) -> list[str]:
    """How the model is loaded, and split over devices: the same on all nodes of an engine."""
    engine = cluster.spec.engine
    found = ["--load-format", cluster.spec.model.load_format]
    if cluster.spec.model.trust_remote_code:
        found.append("--trust-remote-code")
    tensor, pipeline = parallel_sizes(engine.accelerator, engine.nodes)
    if tensor > 1:
        found += ["--tensor-parallel-size", str(tensor)]
    if pipeline > 1:
        found += ["--pipeline-parallel-size", str(pipeline)]
    if (ranks := engine.accelerator.data_parallel_size) > 1:
        found += ["--data-parallel-size", str(ranks)]
    if engine.kv_offload_gib:
        found += ["--kv-offloading-size", str(engine.kv_offload_gib)]
    return found


def shared_arguments(cluster: AgentServingCluster) -> list[str]:
    """What else decides what a step computes: the same on all nodes of an engine. The user's come last, so they win."""
    return [*_adapter_arguments(cluster), *_limits(cluster), *cluster.spec.engine.extra_args]


def _tool_arguments(cluster: AgentServingCluster) -> list[str]:
    """vLLM refuses `tools` in chat completions unless both are given."""
    model = cluster.spec.model
    if model.tool_parser is None:
        return []
    automatic = ["--enable-auto-tool-choice"] if model.enable_auto_tool_choice else []
    return ["--tool-call-parser", model.tool_parser, *automatic]


def _front_arguments(cluster: AgentServingCluster) -> list[str]:
    model = cluster.spec.model
    found = [] if model.reasoning_parser is None else ["--reasoning-parser", model.reasoning_parser]
    if model.chat_template is not None:
        found += ["--chat-template", f"{TEMPLATE_DIR}/{TEMPLATE_FILE}"]
    return found


def _adapter_arguments(cluster: AgentServingCluster) -> list[str]:
    model, found = cluster.spec.model, list[str]()
    if model.lora_adapters:
        found += ["--enable-lora", "--max-lora-rank", str(model.max_lora_rank)]
        found += [] if model.max_loras is None else ["--max-loras", str(model.max_loras)]
        found += [] if model.max_cpu_loras is None else ["--max-cpu-loras", str(model.max_cpu_loras)]
        found += ["--lora-modules", *(f"{each.name}={each.source}" for each in model.lora_adapters)]
    return found


def _vllm_env(cluster: AgentServingCluster) -> list[Manifest]:
    found: list[Manifest] = [
        {"name": "AGENTSERVING_ENGINE_ID", "value": "$(POD_NAME)"},
        {"name": "AGENTSERVING_CHANNEL_DIR", "value": CHANNEL_DIR},
        {"name": "AGENTSERVING_TICKET_KEY_FILE", "value": PUBLIC_KEY_FILE},
        {"name": "AGENTSERVING_SSE_KEEP_ALIVE_S", "value": str(cluster.spec.engine.sse_keep_alive_seconds)},
        *_vllm_access(cluster),
        *process_env(cluster),
        {"name": VLLM_KEEP_ALIVE, "value": str(KEEP_ALIVE_S)},
    ]
    if (ranks := cluster.spec.engine.accelerator.data_parallel_size) > 1:
        found.append({"name": RANKS_VARIABLE, "value": str(ranks)})
    return found


def process_env(cluster: AgentServingCluster) -> list[Manifest]:
    """What vLLM's processes need on every node."""
    found: list[Manifest] = [
        {"name": "HF_HOME", "value": MODELS_DIR},
        {"name": "HOME", "value": HOME_DIR},
        # PyTorch asks for the user's name when it is imported and fails for a uid that /etc/passwd does not have.
        {"name": "USER", "value": USER_NAME},
        {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
    ]
    if cluster.spec.model.token is not None:
        found.append({"name": "HF_TOKEN_PATH", "value": f"{MODEL_TOKEN_DIR}/{MODEL_TOKEN_FILE}"})
    if cluster.spans_nodes:
        # vLLM would look for the address by which the machine reaches the internet.
        found += [
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "VLLM_HOST_IP", "value": "$(POD_IP)"},
        ]
    return found


def model_mounts(cluster: AgentServingCluster) -> list[Manifest]:
    """Of what vLLM reads and writes on every node."""
    found: list[Manifest] = [
        {"name": "model-cache", "mountPath": MODELS_DIR},
        {"name": HOME_VOLUME, "mountPath": HOME_DIR},
        *source_mounts(cluster),
    ]
    if cluster.spec.model.token is not None:
        found.append({"name": "model-token", "mountPath": MODEL_TOKEN_DIR, "readOnly": True})
    return found


def engine_resources(cluster: AgentServingCluster) -> Manifest:
    """Of the container of an engine, on each of its nodes, with its devices."""
    engine = cluster.spec.engine
    if engine.type is EngineType.SIMULATOR:
        return resources_of(engine.resources, requests={"cpu": "250m", "memory": "256Mi"})
    found = resources_of(engine.resources, requests={"cpu": "4", "memory": "16Gi"})
    if engine.accelerator.count:
        devices = {engine.accelerator.resource_name: str(engine.accelerator.count)}
        found["limits"] = {**found.get("limits", {}), **devices}
    return found
