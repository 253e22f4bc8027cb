"""What the control plane, the gateway, the sidecar and the operator do alike, written once. It knows no component.

| module | what it does |
|---|---|
| `options` | flags and environment variables for frozen dataclasses, one dataclass a topic |
| `logs` | one JSON line per event on stderr, for structlog and for the libraries' own loggers |
| `supervision` | runs the process: signals, supervised tasks, exit codes |
| `probes` | the HTTP server of /healthz, /readyz and /metrics |
| `tls` | flags for certificates |
| `certificate_expiry` | when certificates end, as metrics |
| `engine_tls` | how engines' HTTP is reached |
| `web_tokens` | JWTs of clients |
| `addresses` | host:port |
| `listening` | ports of gRPC servers, and why one cannot be opened |
| `leader_stream` | one reconnecting bidirectional stream to the leading control plane |
| `backoff` | how long to wait before another attempt |

A main looks like this:

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        serving: Serving                  # a topic: a frozen dataclass whose fields are `option(default, "help")`
        probes: ProbeOptions
        leader: LeaderOptions

    async def serve(settings: Settings, supervisor: Supervisor) -> None:
        admission = Admission(LeaderChannel(settings.leader.control_plane, settings.leader.client_settings()))
        supervisor.start("admissions", admission.run)      # runs until the process ends; if it fails, the process ends
        supervisor.start("models", models.refresh, restart=Backoff(first_s=0.5, max_s=30))   # may fail and is restarted
        async with probes.served(probes.application(ready=admission.readiness), settings.probes):
            await supervisor.stop_requested()              # SIGTERM or SIGINT
            await connections.drain(settings.serving.drain_s)

    def main() -> None:
        settings = options.parse(Settings, prog="agentserving-gateway", description=__doc__)
        logs.configure()
        sys.exit(supervision.run(lambda supervisor: serve(settings, supervisor)))

Raise `CannotStartError("what, and why")` for what a user can repair: it is logged as one line, without a traceback.
"""

import os
import sys

# Before any metric exists: the `_created` series doubles the number of series and serves no query. Not every process
# that starts here has metrics, and importing prometheus_client takes a third of the start of one that has none.
os.environ.setdefault("PROMETHEUS_DISABLE_CREATED_SERIES", "true")
# structlog draws tracebacks with rich where that is installed. We log JSON, and rich is half of structlog's import.
_without_rich = "rich" not in sys.modules
if _without_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog  # noqa: F401
finally:
    if _without_rich:
        del sys.modules["rich"]
