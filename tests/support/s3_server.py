"""A real S3 server on this machine: moto's, in an environment of its own, because its packages exclude some of ours."""

from __future__ import annotations

import http.client
import ssl
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from agentserving_cli.local.ports import free_ports
from agentserving_cli.local.vllm_env import cache_dir, only_one, run_uv
from obstore.store import S3Store
from support.eventually import eventually

if TYPE_CHECKING:
    from obstore.store import ClientConfig

MOTO = "5.2.5"
BUCKET = "models"
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


def _moto() -> Path:
    home = cache_dir() / f"moto-{MOTO}"
    with only_one(cache_dir() / "moto.lock"):
        if not (home / ".complete").exists():
            run_uv("venv", "--quiet", "--allow-existing", "--python", "3.11", str(home))
            run_uv("pip", "install", "--quiet", "--python", str(home / "bin" / "python"), f"moto[s3,server]=={MOTO}")
            (home / ".complete").touch()
    return home / "bin" / "moto_server"


def _answers(port: int, ca: Path | None) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    if ca is not None:
        trusting = ssl.create_default_context(cafile=str(ca))
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=trusting)
    try:
        connection.request("PUT", f"/{BUCKET}")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def s3_server(log: Path, objects: Mapping[str, bytes], files: Mapping[str, Path] | None = None) -> Iterator[str]:
    """Its URL; `objects` are in BUCKET, `log` has a line for each request. https with `files`: `ca`, `cert`, `key`."""
    (port,) = free_ports(1)
    tls = ["-c", str(files["cert"]), "-k", str(files["key"])] if files else []
    ca = files["ca"] if files else None
    with log.open("wb") as out:
        process = subprocess.Popen([_moto(), "-H", "127.0.0.1", "-p", str(port), *tls], stdout=out, stderr=out)
        try:
            eventually(lambda: _answers(port, ca), "moto answers", 120)
            url = f"{'https' if files else 'http'}://127.0.0.1:{port}"
            options: ClientConfig = {"allow_http": True, "allow_invalid_certificates": ca is not None}
            store = S3Store(BUCKET, endpoint=url, access_key_id="a", secret_access_key="b", client_options=options)
            for key, data in objects.items():
                obstore.put(store, key, data)
            yield url
        finally:
            process.terminate()
            process.wait(60)
