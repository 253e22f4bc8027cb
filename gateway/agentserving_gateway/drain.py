"""``python -m agentserving_gateway.drain``: returns when the Envoy of a run directory serves nothing any more.

The preStop hook of Envoy's container: a SIGTERM alone would cut its streams. With ``--until-gone`` it is the picker's:
until Envoy has ended, a client may send one more request on a connection that it has kept, and it needs the picker.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import agentserving
import uvloop
from agentserving_process import logs, options
from agentserving_process.options import option

from agentserving_gateway.envoy import FrontSettings
from agentserving_gateway.envoy_admin import EnvoyAdmin

# Until the last node knows that the pod is leaving.
SETTLE_S = 5.0
# From the end of a drain to that of Envoy, after its SIGTERM.
GONE_AFTER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Drain"""

    run_dir: Path = option(Path("run"), "directory that Envoy and the picker share")
    drain_s: float = option(300.0, "seconds that requests may go on", least=0)
    until_gone: bool = option(False, "wait until Envoy has ended, and drain nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings of the command, by topic."""

    drain: Drain


async def drained(run_dir: Path, drain_s: float, *, until_gone: bool = False) -> None:
    """Drains the Envoy of a run directory, or waits for its end, at most that long."""
    socket = FrontSettings(listen=":0", run_dir=run_dir.absolute()).admin_socket
    async with EnvoyAdmin(Path(socket)) as admin:
        if until_gone:
            await admin.until_gone(drain_s + GONE_AFTER_S)
        else:
            await admin.drain(SETTLE_S, drain_s)


def main() -> None:
    """Entry point."""
    settings = options.parse(Settings, prog="agentserving-drain", description=__doc__, version=agentserving.__version__)
    logs.configure()
    asked = settings.drain
    uvloop.run(drained(asked.run_dir, asked.drain_s, until_gone=asked.until_gone))


if __name__ == "__main__":
    main()
