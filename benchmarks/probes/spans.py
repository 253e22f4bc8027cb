"""Probe: CPU that spans add to a call in the control plane, rounds with and without them in turn.

Calls are admitted to a control plane in this process and ended by reports with four phases. Rounds with spans include
sending them to a receiver, which is a process of its own. CPU is this process's; the interval is of the median of the
differences between neighbouring rounds, by bootstrap.

    python -m benchmarks.probes.spans
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from agentserving.contract.ids import EngineId, ProgramId, Tenant
from agentserving.contract.phases import PhaseKind
from agentserving.contract.signatures import signing_key
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.engine_sessions import EngineHello, EngineReport
from agentserving_controlplane.settings import PlaneSettings, TelemetryOptions
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.table.admission_plan import AdmissionRequest
from agentserving_controlplane.table.reports import CallReport
from agentserving_controlplane.table.states import Outcome
from agentserving_controlplane.telemetry import wiring

ROUNDS, CALLS = 25, 1000
RECEIVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
PHASES = ((PhaseKind.QUEUE, 900), (PhaseKind.PREFILL, 2_000), (PhaseKind.DECODE, 50_000), (PhaseKind.PREEMPTED, 500))


async def _round(plane: ControlPlane, report: Callable[[EngineReport], object], sent: Callable[[], int]) -> float:
    """CPU a call of one round, microseconds; until as many endings as `sent` must reach are sent."""
    began = time.process_time()
    for number in range(CALLS):
        request = AdmissionRequest(tenant=Tenant("t"), program_id=ProgramId(f"p{number % 50}"), implicit=True)
        call = plane.calls.admit(request)
        ended = CallReport(
            call_id=call.call_id, program_id=call.program_id, engine_id=call.engine_id, tenant=Tenant("t"),
            root=call.program_id, boot_id="b", service_us=52_000, wait_us=1_400, prompt_tokens=900, output_tokens=50,
            outcome=Outcome.COMPLETED, phases=PHASES,
        )  # fmt: skip
        await report(EngineReport(calls=(ended,), boot_id="b"))  # type: ignore[misc]
    while sent():
        await asyncio.sleep(0.05)
    return (time.process_time() - began) / CALLS * 1e6


async def measure(url: str) -> list[tuple[float, float]]:
    """(without, with) of each pair of rounds, microseconds a call."""
    settings = PlaneSettings(ticket_keys=lambda: (signing_key(b"0123456789abcdef"),))
    store = MemoryStore()
    plane = ControlPlane(settings, store, await store.acquire("probe"), lambda error: None)
    await plane.recover(store)
    session = plane.new_session()
    await session.hello(EngineHello(engine_id=EngineId("e"), boot_id="b", address="h:1", sidecar_address=""))
    send = wiring.sender(TelemetryOptions(otlp_endpoint=url), plane)
    assert send is not None
    feed, task = plane.endings.on_ending, asyncio.create_task(send())
    pairs = []
    for _ in range(ROUNDS + 1):
        plane.endings.on_ending = None
        without = await _round(plane, session.report, lambda: 0)
        plane.endings.on_ending = feed
        goal = plane.span_counts["sent"] + CALLS
        with_spans = await _round(plane, session.report, lambda goal=goal: goal - plane.span_counts["sent"])  # type: ignore[misc]
        pairs.append((without, with_spans))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await plane.commits.close(1)
    assert not plane.span_counts["dropped"]
    # The first is a warm-up.
    return pairs[1:]


def main() -> None:
    """Prints the figures as JSON."""
    with subprocess.Popen([sys.executable, "-c", RECEIVER], stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdout is not None
        try:
            pairs = asyncio.run(measure(f"http://127.0.0.1:{int(receiver.stdout.readline())}/v1/traces"))
        finally:
            receiver.terminate()
    added = [with_spans - without for without, with_spans in pairs]
    draws = sorted(statistics.median(random.choices(added, k=len(added))) for _ in range(2000))
    figures = {
        "without_us": statistics.median(without for without, _ in pairs),
        "added_us": statistics.median(added),
        "added_us_95": [draws[50], draws[1949]],
    }
    print(json.dumps({name: figures[name] for name in figures}, indent=2))


if __name__ == "__main__":
    main()
