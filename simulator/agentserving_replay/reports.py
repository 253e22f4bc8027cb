"""What a virtual engine reports of a call that has ended: what the plugin reports in a real one. Pure."""

from __future__ import annotations

from agentserving.contract.ids import CallId, EngineId, Tenant
from agentserving.contract.phases import PrefixMiss
from agentserving_controlplane.table.reports import CallReport
from agentserving_controlplane.table.rows import ProgramRow
from agentserving_controlplane.table.states import Outcome
from agentserving_simulator.virtual.requests import Ended

TENANT = Tenant("default")


def final_report(engine_id: EngineId, ended: Ended, row: ProgramRow, common_tokens: int, block_size: int) -> CallReport:
    """`common_tokens`: that its prompt has in common with an earlier context of the program on this engine."""
    request, stats = ended.request, ended.stats
    cached = max(0, request.cached)
    evicted = cached < common_tokens - block_size
    return CallReport(
        call_id=CallId(request.key),
        program_id=row.program_id,
        engine_id=engine_id,
        tenant=TENANT,
        root=row.root,
        boot_id="virtual",
        service_us=stats.service_us,
        wait_us=stats.wait_us,
        prompt_tokens=request.prompt,
        cached_tokens=cached,
        output_tokens=request.output,
        preemptions=stats.preemptions,
        level=stats.level,
        outcome=Outcome.COMPLETED,
        common_tokens=common_tokens,
        prefix_miss=int(PrefixMiss.EVICTED if evicted else PrefixMiss.NONE if common_tokens else PrefixMiss.FIRST),
    )
