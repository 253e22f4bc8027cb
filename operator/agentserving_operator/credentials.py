"""How the operator logs in to the API server: in a pod by its service account, elsewhere by a kubeconfig.

`handlers` passes what is found here to kopf, `api_server` uses it itself. Both follow a token that is renewed: kopf
logs in again when a token is refused, and `Credentials` reads it again every REFRESH_S.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import kopf
import structlog
import yaml

log = structlog.get_logger()

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# The kubelet renews a token when a fifth of its life is left, which is an hour by default. client-go reads it as often.
REFRESH_S = 60.0


class NoCredentialsError(Exception):
    """There is neither a service account nor a kubeconfig, or what was found cannot be used."""


def login(kubeconfig: str = "", service_account: Path = SERVICE_ACCOUNT) -> kopf.ConnectionInfo:
    """Uses the kubeconfig if given, else the pod's service account, else the user's kubeconfig.

    Raises NoCredentialsError.
    """
    try:
        found = None if kubeconfig else _of_pod(service_account, os.environ)
        return found or _of_kubeconfig(kubeconfig)
    except KeyError as error:
        raise NoCredentialsError(f"the kubeconfig has no {error}") from error
    except (AttributeError, TypeError) as error:
        raise NoCredentialsError(f"the kubeconfig is malformed: {error}") from error
    except (kopf.LoginError, OSError, ValueError, yaml.YAMLError) as error:
        raise NoCredentialsError(str(error)) from error


def _of_pod(directory: Path, environment: Mapping[str, str]) -> kopf.ConnectionInfo | None:
    # Not `kopf.login_with_service_account`: it takes the API server's name, so every request needs the cluster's DNS.
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
    if not host or not port or not (directory / "token").exists():
        return None
    token = (directory / "token").read_text().strip()
    if not token:
        raise ValueError(f"{directory / 'token'} is empty")
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return kopf.ConnectionInfo(server=server, ca_path=directory / "ca.crt", token=token)


def _of_kubeconfig(path: str) -> kopf.ConnectionInfo:
    # kopf knows no other way to name the file. Set once: the environment must not change while other threads read it.
    if path and os.environ.get("KUBECONFIG") != path:
        os.environ["KUBECONFIG"] = path
    found = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    if found is None or not found.server:
        raise ValueError("neither a service account nor a kubeconfig with a server")
    return found


class Credentials:
    """What `login` found, and a token that is at most REFRESH_S old."""

    def __init__(self, login: Callable[[], kopf.ConnectionInfo], clock: Callable[[], float] = time.monotonic) -> None:
        self._login, self._clock = login, clock
        self.info = login()
        self._headers, self._read_at = self.info.as_http_headers(), clock()

    def headers(self) -> dict[str, str]:
        """The header of HTTP that authorizes a request. The last one that could be read is used when none can."""
        if self._clock() - self._read_at >= REFRESH_S:
            self._read_at = self._clock()
            try:
                self._headers = self._login().as_http_headers()
            except NoCredentialsError as error:
                log.warning("credentials could not be read again", error=str(error))
        return self._headers
