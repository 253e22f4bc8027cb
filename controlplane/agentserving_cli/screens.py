"""Tables of programs and engines. Pure: messages in, rich tables out."""

from __future__ import annotations

from agentserving.v1 import admin_service_pb2, types_pb2
from rich.table import Table


def seconds(us: int) -> str:
    """1.23s, 45.6s, 789s."""
    value = us / 1e6
    return f"{value:.2f}s" if value < 10 else f"{value:.1f}s" if value < 100 else f"{value:.0f}s"


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).replace("_", " ").capitalize()


def programs_table(programs: list[types_pb2.Program]) -> Table:
    """A row a program, those that run first, by level."""
    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("PROGRAM", "left"), ("NAME", "left"), ("STATE", "left"), ("LEVEL", "right"), ("ATTAINED", "right"),
        ("WAIT", "right"), ("RUN/QUEUED", "right"), ("CALLS", "right"), ("TOKENS", "right"), ("PREEMPT", "right"),
        ("ENGINE", "left"),
    ):  # fmt: skip
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for program in sorted(programs, key=lambda p: (not p.calls, p.level, p.program_id)):
        running = sum(1 for call in program.calls if call.running)
        live_service = sum(call.service_us for call in program.calls)
        table.add_row(
            program.program_id,
            program.name or "-",
            _word(types_pb2.ProgramState.Name(program.state), "PROGRAM_STATE_"),
            str(program.level),
            seconds(program.attained_service_us + live_service),
            seconds(program.wait_us + sum(call.wait_us for call in program.calls)),
            f"{running}/{len(program.calls) - running}",
            str(program.calls_completed),
            str(program.output_tokens + sum(call.output_tokens for call in program.calls)),
            str(program.preemptions),
            ",".join(program.engine_ids[:2]) or "-",
        )
    return table


def engines_table(engines: list[types_pb2.Engine]) -> Table:
    """A row an engine."""
    table = Table(box=None, pad_edge=False)
    for title in ("ENGINE", "STATE", "RUNNING", "QUEUED", "KV", "STEPS", "PREEMPTIONS", "POLICY/STEP", "VERSION"):
        table.add_column(title, justify="left" if title in ("ENGINE", "STATE", "VERSION") else "right")
    for engine in engines:
        load = engine.load
        used = 1 - load.free_blocks / load.total_blocks if load.total_blocks else 0.0
        table.add_row(
            engine.engine_id,
            _word(types_pb2.EngineState.Name(engine.state), "ENGINE_STATE_"),
            str(load.running),
            str(load.waiting),
            f"{used:.0%}",
            str(load.steps),
            f"{load.preemptions_proactive}+{load.preemptions_reactive}",
            f"{load.policy_time_us / load.steps:.0f}us" if load.steps else "-",
            f"{engine.capabilities.engine_kind.lower()} {engine.capabilities.engine_version}",
        )
    return table


def headline(overview: admin_service_pb2.GetOverviewResponse) -> str:
    """One line on the cluster."""
    store = "" if overview.store_healthy else f"  [red]store: {overview.store_message}[/red]"
    return (
        f"policy [bold]{overview.policy.policy.name}[/bold] v{overview.policy.version}  "
        f"programs {overview.programs_live} ({overview.programs_running} running)  "
        f"calls {overview.calls_running} running, {overview.calls_waiting} queued, "
        f"{overview.calls_completed} done{store}"
    )
