"""A gateway that is not ours: a real Envoy with ext_proc filter and override_host pool, as GAIE implementations set up.

It shares control plane, engines and picker core with `gateway_rig.rig`, whose tools (`post`, `until_idle`) it keeps.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentserving_gateway.envoy import names
from agentserving_gateway.envoy.extensions import extension, typed
from agentserving_gateway.envoy_admin import EnvoyAdmin
from agentserving_gateway.ext_proc import messages
from agentserving_gateway.ext_proc.service import Encryption, ExtProc, ExtProcOptions, served
from agentserving_gateway.front import find_envoy
from gateway.gateway_rig import Rig, Script, rig

Json = dict[str, Any]
# As the protocol asks.
DUPLEX = {
    "request_header_mode": "SEND", "response_header_mode": "SEND",
    "request_body_mode": "FULL_DUPLEX_STREAMED", "response_body_mode": "FULL_DUPLEX_STREAMED",
    "request_trailer_mode": "SEND", "response_trailer_mode": "SEND",
}  # fmt: skip
# Gateways that look at heads only, and those that buffer bodies.
HEADS = {"request_header_mode": "SEND", "response_header_mode": "SEND"}
BUFFERED = {**HEADS, "request_body_mode": "BUFFERED"}
# The answer is not shown to the picker at all.
SILENT = {"request_header_mode": "SEND", "response_header_mode": "SKIP"}


def configuration(
    admin: Path, picker_port: int, pool: Sequence[str], mode: Json, *, tls: bool, allow: bool, subset: str, retries: int
) -> Json:
    """Envoy's bootstrap."""
    rewrite = {"num_retries": retries, "retry_on": "connect-failure,reset,retriable-status-codes",
               "retriable_status_codes": [503]}  # fmt: skip
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "pool", "timeout": "0s", "retry_policy": rewrite}}]
    manager = extension(
        "filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="foreign",
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        http_filters=[*_subset(subset), _ext_proc(mode, allow=allow), extension(
            "filters.http.router", "extensions.filters.http.router.v3.Router")],
    )  # fmt: skip
    listener = {"name": "foreign", "address": _address("127.0.0.1:0"), "filter_chains": [{"filters": [manager]}]}
    return {
        "admin": {"address": {"pipe": {"path": str(admin)}}},
        "static_resources": {"listeners": [listener], "clusters": [_picker(picker_port, tls=tls), _pool(pool)]},
    }


def _address(text: str) -> Json:
    host, _, port = text.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _subset(addresses: str) -> list[Json]:
    if not addresses:
        return []
    value = {"metadata_namespace": messages.SUBSET_METADATA, "allow_overwrite": True,
             "value": {messages.SUBSET: addresses.split(",")}}  # fmt: skip
    return [extension("filters.http.set_metadata", "extensions.filters.http.set_metadata.v3.Config", metadata=[value])]


def _ext_proc(mode: Json, *, allow: bool) -> Json:
    return extension(
        "filters.http.ext_proc",
        "extensions.filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": "picker"}},
        processing_mode=mode,
        message_timeout="10s",
        failure_mode_allow=allow,
        metadata_options={
            "forwarding_namespaces": {"untyped": [messages.METADATA, messages.SUBSET_METADATA]},
            "receiving_namespaces": {"untyped": [messages.METADATA]},
        },
    )


def _picker(port: int, *, tls: bool) -> Json:
    http2 = typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}}
    )
    cluster = {
        **_cluster("picker", [f"127.0.0.1:{port}"]),
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
    }
    if tls:
        # Encrypted, not verified: what gateways do with an endpoint picker.
        cluster["transport_socket"] = extension(
            "transport_sockets.tls", "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            common_tls_context={"alpn_protocols": ["h2"]},
        )  # fmt: skip
    return cluster


def _pool(addresses: Sequence[str]) -> Json:
    round_robin = extension(
        "load_balancing_policies.round_robin", "extensions.load_balancing_policies.round_robin.v3.RoundRobin"
    )
    named = extension(
        "load_balancing_policies.override_host",
        "extensions.load_balancing_policies.override_host.v3.OverrideHost",
        override_host_sources=[
            {"metadata": {"key": messages.METADATA, "path": [{"key": names.ENDPOINTS}]}},
            {"header": names.ENDPOINTS},
        ],
        selected_host_key={"key": messages.METADATA, "path": [{"key": messages.SERVED}]},
        fallback_policy={"policies": [{"typed_extension_config": round_robin}]},
    )
    return {**_cluster("pool", addresses), "load_balancing_policy": {"policies": [{"typed_extension_config": named}]}}


def _cluster(name: str, addresses: Sequence[str]) -> Json:
    endpoints = [{"endpoint": {"address": _address(each)}} for each in addresses]
    return {
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }  # fmt: skip


@asynccontextmanager
async def foreign(
    *scripts: Script, mode: Json = DUPLEX, tls: bool = False, allow: bool = False, subset: Sequence[int] = (),
    retries: int = 0, outside: str = "", max_body: int = 64 << 20,
) -> AsyncIterator[tuple[Rig, ExtProc]]:  # fmt: skip
    """A rig whose `port` is the foreign gateway's. `subset`: engines by number, `outside`: addresses that are none."""
    async with rig(*scripts) as made:
        service = ExtProc(
            made.picker.core, ended=made.picker._ended, ready=lambda: made.admission.ready,
            max_body_bytes=max_body,
        )  # fmt: skip
        options = ExtProcOptions(
            ext_proc_listen="127.0.0.1:0", ext_proc_tls=Encryption.SELF_SIGNED if tls else Encryption.NONE
        )
        directory = made.picker.run_dir / "foreign"
        directory.mkdir()
        async with served(service, options):
            document = configuration(
                directory / "admin.sock", service.port, [each.address for each in made.engines], mode,
                tls=tls, allow=allow,
                subset=outside or ",".join(made.engines[number].address for number in subset), retries=retries,
            )  # fmt: skip
            async with _envoy(directory, document) as front_port:
                yield replace(made, port=front_port), service


@asynccontextmanager
async def _envoy(directory: Path, document: Json) -> AsyncIterator[int]:
    (directory / "envoy.json").write_text(json.dumps(document))
    with (directory / "envoy.log").open("a") as log:
        envoy = await asyncio.create_subprocess_exec(
            find_envoy(), "--config-path", str(directory / "envoy.json"), "--disable-hot-restart",
            "--log-level", "warning", "--concurrency", "1", "--use-dynamic-base-id", stdout=log, stderr=log,
        )  # fmt: skip
    try:
        async with EnvoyAdmin(directory / "admin.sock") as admin, asyncio.timeout(30):
            while True:
                if envoy.returncode is not None:
                    raise RuntimeError((directory / "envoy.log").read_text())
                found = json.loads(await admin.ask("GET", "/listeners?format=json") or "{}").get("listener_statuses")
                if found:
                    break
                await asyncio.sleep(0.02)
        yield int(found[0]["local_address"]["socket_address"]["port_value"])
    finally:
        if envoy.returncode is None:
            envoy.kill()
        await envoy.wait()
