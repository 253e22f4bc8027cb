"""Certificates that Envoy has, by file (SDS). Pure.

A secret is a file that names the certificate's files. Envoy reads them again when something is renamed into the watched
directory, which is ours: the picker does so (`certificate_files.py`) when the files have changed and fit each other.
A directory of the user's would not do: some tools write in place, or replace links, which Envoy does not notice.
"""

from __future__ import annotations

from pathlib import Path

from agentserving_gateway.envoy.extensions import Json, extension, typed
from agentserving_gateway.envoy.settings import FrontSettings

FRONT = "front"
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


def _by_file(name: str, file: Path) -> Json:
    source = {"path": str(file), "watched_directory": {"path": str(file.parent)}}
    return {"name": name, "sds_config": {"resource_api_version": "V3", "path_config_source": source}}


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
