"""Certificates that Envoy has, by file (SDS). Pure.

A secret is a file that names the certificate's files. Envoy reads them again when something is renamed into the watched
directory, which is ours: the picker does so (`certificate_files.py`) when the files have changed and fit each other.
A directory of the user's would not do: some tools write in place, or replace links, which Envoy does not notice.
"""

from __future__ import annotations

from pathlib import Path

from agentserving.contract.names import ENGINE_NAME

from agentserving_gateway.envoy.extensions import Json, extension, typed
from agentserving_gateway.envoy.settings import FrontSettings

FRONT, ENGINES = "front", "engines"
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
    """The transport socket of connections to engines that speak TLS."""
    return extension(
        "transport_sockets.tls",
        f"{_TLS}.UpstreamTlsContext",
        sni=ENGINE_NAME,
        common_tls_context={
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "validation_context_sds_secret_config": _by_file(ENGINES, settings.engines_secret),
        },
    )


def _by_file(name: str, file: Path) -> Json:
    source = {"path": str(file), "watched_directory": {"path": str(file.parent)}}
    return {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": source}}


def engines_secret(settings: FrontSettings) -> Json:
    """What the file of the engines' secret contains: their CA, and the name that only their certificates have."""
    name = {"san_type": "DNS", "matcher": {"exact": ENGINE_NAME}}
    return {
        "resources": [
            typed(
                f"{_TLS}.Secret",
                name=ENGINES,
                validation_context={
                    "trusted_ca": {"filename": str(settings.engine_ca)},
                    "watched_directory": {"path": str(settings.engines_secret.parent)},
                    "match_typed_subject_alt_names": [name],
                },
            )
        ]
    }


def front_secret(settings: FrontSettings) -> Json:
    """What the file of the front's secret contains: a DiscoveryResponse. Only for a front that has a certificate."""
    assert settings.front_cert is not None
    assert settings.front_key is not None
    return {
        "resources": [
            typed(
                f"{_TLS}.Secret",
                name=FRONT,
                tls_certificate={
                    "certificate_chain": {"filename": str(settings.front_cert)},
                    "private_key": {"filename": str(settings.front_key)},
                    "watched_directory": {"path": str(settings.front_secret.parent)},
                },
            )
        ]
    }
