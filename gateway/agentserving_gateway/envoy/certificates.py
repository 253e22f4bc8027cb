"""Certificates that Envoy has, by file (SDS). Pure.

A secret is a file that names the certificate's files. Envoy reads them again when something is renamed into the watched
directory, which is ours: the picker does so (`certificate_files.py`) when the files have changed and fit each other.
A directory of the user's would not do: some tools write in place, or replace links, which Envoy does not notice.
"""

from __future__ import annotations

from pathlib import Path

from agentserving_gateway.envoy.extensions import Json, extension, typed
from agentserving_gateway.envoy.settings import FrontSettings

FRONT, ENGINES, ENGINE_CLIENT = "front", "engines", "engine-client"
_TLS = "extensions.transport_sockets.tls.v3"


def downstream(settings: FrontSettings) -> Json:
    """The listener's transport socket, for a front that has a certificate."""
    return extension(
        "transport_sockets.tls",
        f"{_TLS}.DownstreamTlsContext",
        common_tls_context={
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "tls_certificate_sds_secret_configs": [_by_file(FRONT, settings.front_secret)],
        },
    )


def upstream(settings: FrontSettings) -> Json:
    """The transport socket of connections to engines that speak TLS. Each must have its own name, which EDS gives."""
    own = {}
    if settings.engine_cert is not None:
        own["tls_certificate_sds_secret_configs"] = [_by_file(ENGINE_CLIENT, settings.engine_client_secret)]
    return extension(
        "transport_sockets.tls",
        f"{_TLS}.UpstreamTlsContext",
        auto_host_sni=True,
        auto_sni_san_validation=True,
        common_tls_context={
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "validation_context_sds_secret_config": _by_file(ENGINES, settings.engines_secret),
            **own,
        },
    )


def _by_file(name: str, file: Path) -> Json:
    source = {"path": str(file), "watched_directory": {"path": str(file.parent)}}
    return {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": source}}


def engines_secret(settings: FrontSettings) -> Json:
    """What the file of the engines' secret contains: their CA."""
    return {
        "resources": [
            typed(
                f"{_TLS}.Secret",
                name=ENGINES,
                validation_context={
                    "trusted_ca": {"filename": str(settings.engine_ca)},
                    "watched_directory": {"path": str(settings.engines_secret.parent)},
                },
            )
        ]
    }


def front_secret(settings: FrontSettings) -> Json:
    """What the file of the front's secret contains: a DiscoveryResponse. Only for a front that has a certificate."""
    assert settings.front_cert is not None
    assert settings.front_key is not None
    return _pair_secret(FRONT, settings.front_cert, settings.front_key, settings.front_secret)


def engine_client_secret(settings: FrontSettings) -> Json:
    """The same of the certificate that engines see."""
    assert settings.engine_cert is not None
    assert settings.engine_key is not None
    return _pair_secret(ENGINE_CLIENT, settings.engine_cert, settings.engine_key, settings.engine_client_secret)


def _pair_secret(name: str, cert: Path, key: Path, secret: Path) -> Json:
    return {
        "resources": [
            typed(
                f"{_TLS}.Secret",
                name=name,
                tls_certificate={
                    "certificate_chain": {"filename": str(cert)},
                    "private_key": {"filename": str(key)},
                    "watched_directory": {"path": str(secret.parent)},
                },
            )
        ]
    }
