"""Tables of programs, engines and policies. Pure: values in, rich tables out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from agentserving.client.values import (
    Engine,
    EngineState,
    Overview,
    PauseCause,
    PolicyChoice,
    PolicyVersion,
    Program,
    ProgramState,
)
from agentserving.contract.budgets import in_words
from agentserving.contract.kv_obstacles import meaning
from agentserving.contract.policy import Level, Policy
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from agentserving_cli.top_view import TopView, TreeRow, received, tree_rows

# Narrower screens leave out the columns that matter least.
WIDE = 150


def seconds(us: int) -> str:
    """1.23s, 45.6s, 789s, 34m, 5.1h."""
    value = us / 1e6
    if value < 100:
        return f"{value:.2f}s" if value < 10 else f"{value:.1f}s"
    return f"{value:.0f}s" if value < 1000 else f"{value / 60:.0f}m" if value < 6000 else f"{value / 3600:.1f}h"


def count(value: int) -> str:
    """950, 12.3k, 4.5M."""
    if value < 10_000:
        return str(value)
    return f"{value / 1000:.1f}k" if value < 1_000_000 else f"{value / 1e6:.1f}M"


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def plain_table(columns: Iterable[str], left: Sequence[str]) -> Table:
    """An empty table without lines; titles of `left` columns are at the left."""
    table = Table(box=None, pad_edge=False)
    for title in columns:
        table.add_column(title, justify="left" if title in left else "right", no_wrap=True)
    return table


def cut(text: str, limit: int) -> str:
    """Cuts the middle out of a long id: ids differ most at their ends."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[-tail:] if tail else ''}"


_PROGRAM_COLUMNS = (
    "PROGRAM", "NAME", "STATE", "SERVICE", "LEVEL", "ATTAINED", "WAIT", "RUN", "QUEUED", "DONE", "TOKENS", "CACHED",
    "PREEMPTED", "ENGINE",
)  # fmt: skip
# On narrow screens names stand in the place of most of an id.
_NARROW = ("PROGRAM", "STATE", "LEVEL", "ATTAINED", "WAIT", "RUN", "QUEUED", "TOKENS")

# Width of the other columns and the gaps.
_TAKEN, _NARROW_TAKEN = 135, 58
_NAME, _ENGINE, _TOOL = 16, 20, 12
# A shorter part of an id tells nothing.
_LEAST_ID = 5


def programs_table(programs: Iterable[Program], width: int = 200) -> Table:
    """One line a program, the most urgent first, sub-agents below their parents."""
    return tree_table(tree_rows(programs), width)


def tree_table(rows: Iterable[TreeRow], width: int = 200) -> Table:
    """One line a program, in this order."""
    wide = width >= WIDE
    columns = _PROGRAM_COLUMNS if wide else _NARROW
    room = max(12, width - (_TAKEN if wide else _NARROW_TAKEN))
    table = plain_table(columns, ("PROGRAM", "NAME", "STATE", "SERVICE", "ENGINE"))
    for program, depth in rows:
        cells = _program_cells(program)
        branch = f"{'  ' * min(depth - 1, 4)}└ " if depth else ""
        left = room - len(branch)
        cells["PROGRAM"] = branch + (cut(program.program_id, left) if wide else _named(program, left))
        cells["NAME"], cells["ENGINE"] = cut(cells["NAME"], _NAME), cut(cells["ENGINE"], _ENGINE)
        if not wide:
            cells["STATE"] = "Spent" if program.pause_cause is PauseCause.BUDGET else cells["STATE"][:9]
        table.add_row(*(escape(cells[column]) for column in columns))
    return table


def _named(program: Program, room: int) -> str:
    """The id, for scripts in its place, cut so that the name fits behind it."""
    if program.program_id.startswith(program.name):
        return cut(program.program_id, room)
    left = room - len(program.name) - 1
    return cut(program.name, room) if left < _LEAST_ID else f"{cut(program.program_id, left)} {program.name}"


def _program_state(program: Program) -> str:
    """With the tool that a program waits for, or the word budget when that is why it is paused."""
    words = _words(program.state.name)
    if program.pause_cause is PauseCause.BUDGET:
        return f"{words} budget"
    return f"{words} {cut(program.tool, _TOOL)}" if program.state is ProgramState.TOOL_WAIT and program.tool else words


def _program_cells(program: Program) -> dict[str, str]:
    running = sum(1 for call in program.calls if call.running)
    live = program.calls
    engines = list(dict.fromkeys(call.engine_id for call in live)) or list(program.engine_ids[:1])
    prompt = program.prompt_tokens + sum(call.prompt_tokens for call in live)
    cached = program.cached_tokens + sum(call.cached_tokens for call in live)
    return {
        "PROGRAM": program.program_id,
        "NAME": program.name or "-",
        "STATE": _program_state(program),
        "SERVICE": program.service_class.label or "-",
        "LEVEL": str(program.level),
        "ATTAINED": seconds(received(program)),
        "WAIT": seconds(program.wait_us + sum(call.wait_us for call in live)),
        "RUN": str(running),
        "QUEUED": str(len(live) - running),
        "DONE": count(program.calls_completed),
        "TOKENS": count(program.output_tokens + sum(call.output_tokens for call in live)),
        "CACHED": f"{cached / prompt:.0%}" if prompt else "-",
        "PREEMPTED": str(program.preemptions + sum(call.preemptions for call in live)),
        "ENGINE": ",".join(engines) or "-",
    }


_ENGINE_COLUMNS = ("ENGINE", "STATE", "RUN", "QUEUED", "KV", "STEPS", "PREEMPTED", "POLICY/STEP", "VERSION", "REASON")
_NARROW_ENGINE = ("ENGINE", "STATE", "RUN", "QUEUED", "KV", "PREEMPTED", "VERSION")
_NARROW_ENGINE_WITH_REASON = ("ENGINE", "STATE", "RUN", "QUEUED", "KV", "REASON")
# Width of the columns other than REASON, with the gaps.
_ENGINE_TAKEN, _NARROW_ENGINE_TAKEN = 105, 46


def engines_table(engines: Sequence[Engine], width: int = 200) -> Table:
    """One line an engine. PREEMPTED counts preemptions by our policy + by vLLM for lack of blocks.

    REASON says why an engine that is not ready is in its state; without such an engine there is no column.
    """
    wide, explain = width >= WIDE, any(engine.state_reason for engine in engines)
    columns: tuple[str, ...] = _ENGINE_COLUMNS if wide else _NARROW_ENGINE_WITH_REASON if explain else _NARROW_ENGINE
    if not explain:
        columns = tuple(column for column in columns if column != "REASON")
    room = max(12, width - (_ENGINE_TAKEN if wide else _NARROW_ENGINE_TAKEN))
    table = plain_table(columns, ("ENGINE", "STATE", "VERSION", "REASON"))
    for engine in engines:
        cells = _engine_cells(engine)
        cells["ENGINE"] = cut(cells["ENGINE"], _ENGINE)
        if len(cells["REASON"]) > room:
            cells["REASON"] = f"{cells['REASON'][: room - 1]}…"
        table.add_row(*(cells[column] if column == "STATE" else escape(cells[column]) for column in columns))
    return table


def _engine_cells(engine: Engine) -> dict[str, str]:
    load = engine.load
    used = 1 - load.free_blocks / load.total_blocks if load.total_blocks else 0.0
    state = _words(engine.state.name)
    return {
        "ENGINE": engine.engine_id,
        "STATE": state if engine.state is EngineState.READY else f"[red]{state}[/red]",
        "RUN": str(load.running),
        "QUEUED": str(load.waiting),
        "KV": f"{used:.0%}",
        "STEPS": count(load.steps),
        "PREEMPTED": f"{load.preemptions_proactive}+{load.preemptions_reactive}",
        "POLICY/STEP": f"{load.policy_time_us / load.steps:.0f}us" if load.steps and load.policy_time_us else "-",
        "VERSION": f"{engine.capabilities.engine_kind.lower()} {engine.capabilities.engine_version}".strip() or "-",
        "REASON": " ".join(engine.state_reason.split()),
    }


def headline(overview: Overview) -> str:
    """One line on the cluster, and one more when its store fails."""
    store = "" if overview.store_healthy else f"\n[red]store: {escape(overview.store_message)}[/red]"
    unmanaged = f", {overview.calls_unmanaged} unmanaged" if overview.calls_unmanaged else ""
    return (
        f"policy [bold]{escape(overview.policy.policy.name)}[/bold] v{overview.policy.version}, "
        f"{overview.programs_live} programs, {overview.programs_running} running; "
        f"calls: {overview.calls_running} running, {overview.calls_waiting} queued, "
        f"{overview.calls_completed} done{unmanaged}{_choices(overview.policy_choices)}"
        f"{''.join(_omissions(overview.policy.policy, overview.engines))}{store}"
    )


def _choices(choices: Sequence[PolicyChoice]) -> str:
    """A line on what `auto` has chosen, and why."""
    return "".join(f"\nchosen: {each.chosen}, {escape(each.reason)}" for each in choices if each.application is None)


def _omissions(policy: Policy, engines: Sequence[Engine]) -> Iterator[str]:
    """A line for each part of the policy that engines do not do, and why."""
    for wanted, field, what in (
        (policy.retention_milli and not policy.working_set, "retention_obstacle", "contexts are not retained"),
        (policy.working_set, "working_set_obstacle", "the working set is not bounded"),
    ):
        obstacles = [(getattr(each.capabilities, field), each.engine_id) for each in engines] if wanted else []
        for obstacle in sorted({each for each, _ in obstacles if each}):
            names = ", ".join(engine_id for each, engine_id in obstacles if each == obstacle)
            yield f"\n[yellow]{escape(names)}: {what}: {escape(meaning(obstacle))}[/yellow]"


def _class(choice: PolicyChoice) -> str:
    if choice.application is None:
        return "all programs"
    return escape(choice.application) or "unnamed programs"


def top_screen(
    overview: Overview, programs: Sequence[Program], width: int, height: int, view: TopView | None = None
) -> Group:
    """At most `height` lines; 0 = no limit. With a `view`, the part of it that its user has chosen, and the keys."""
    state = view or TopView()
    rows = tree_rows(programs, state.sort, state.wanted)
    taken = len(overview.engines) + 7 + (view is not None)
    shown = state.shown(rows, max(3, height - taken) if height else len(rows))
    left = len(rows) - len(shown)
    parts: list[RenderableType] = [
        headline(overview), "", engines_table(overview.engines, width), "", tree_table(shown, width),
    ]  # fmt: skip
    if view is None:
        return Group(*parts, *([f"[dim]and {left} more: agentserving ps[/dim]"] if left else []))
    where = f"{state.skipped + 1} to {state.skipped + len(shown)} of {len(rows)} programs   " if left else ""
    return Group(*parts, Text(where + state.help, style="dim", no_wrap=True, overflow="ellipsis"))


def _budget(program: Program) -> str:
    """What its tree has spent of its budget, and what to do about it."""
    state = program.budget
    if state is None:
        return ""
    words = f"{in_words(state)} spent ({state.limit.share(state.spent):.0%})"
    if program.pause_cause is not PauseCause.BUDGET:
        return words
    return f"[red]{words}[/red]; it goes on with: agentserving resume {escape(program.program_id)} --add ..."


def program_screen(program: Program) -> Group:
    """One program: its account, and its calls in flight."""
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="dim")
    facts.add_column()
    cells = _program_cells(program)
    outcome = _words(program.outcome.name) if program.outcome else ""
    for label, value in (
        ("program", escape(cells["PROGRAM"])),
        ("name", escape(cells["NAME"])),
        ("parent", escape(program.parent_program_id)),
        ("state", f"{cells['STATE']}{f' ({outcome.lower()})' if outcome else ''}"),
        ("service", cells["SERVICE"]),
        ("level", cells["LEVEL"]),
        ("attained", f"{cells['ATTAINED']} (all calls together {seconds(program.total_service_us)})"),
        ("wait", cells["WAIT"]),
        ("calls", f"{program.calls_completed} done, {cells['RUN']} running, {cells['QUEUED']} queued"),
        ("budget", _budget(program)),
        ("tokens", f"{program.prompt_tokens} prompt ({cells['CACHED']} cached), {cells['TOKENS']} output"),
        ("preempted", cells["PREEMPTED"]),
        ("engines", escape(", ".join(program.engine_ids)) or "-"),
        ("opened", f"{program.open_time:%Y-%m-%d %H:%M:%S} UTC" if program.open_time else ""),
    ):
        if value:
            facts.add_row(label, value)
    parts: list[RenderableType] = [facts]
    calls = plain_table(("CALL", "ENGINE", "STATE", "LEVEL", "SERVICE", "WAIT", "TOKENS"), ("CALL", "ENGINE", "STATE"))
    for call in program.calls:
        calls.add_row(
            escape(call.call_id), escape(call.engine_id), "Running" if call.running else "Queued", str(call.level),
            seconds(call.service_us), seconds(call.wait_us), count(call.output_tokens),
        )  # fmt: skip
    if program.calls:
        parts += ["", calls]
    return Group(*parts)


def _retention(milli: int) -> str:
    return f"KV, for {milli / 1000:g} times the time to recompute it" if milli else "nothing"


def policy_screen(version: PolicyVersion) -> Group:
    """A policy in words, its levels as a table, and which engines follow it."""
    policy = version.policy
    beta = f"wait / service reaches {policy.beta_milli / 1000:g}" if policy.beta_milli else "never"
    pending = f"; not yet: {', '.join(version.pending_engine_ids)}" if version.pending_engine_ids else ""
    lines = (
        f"[bold]{escape(policy.name)}[/bold], version {version.version}",
        f"account: {_words(policy.accounting.name).lower()}",
        f"levels: {_words(policy.source.name).lower()}",
        f"order inside a level: {_words(policy.order.name).lower()}",
        f"promoted to the best level when {beta}",
        f"preemptions a decision: at most {policy.max_preemptions}, every {policy.decision_interval_steps} steps",
        f"retained during a tool wait: {_retention(policy.retention_milli)}",
        f"working set: {'bounded by the KV' if policy.working_set else 'unbounded'}",
        f"balancer: {_words(version.balancer.name).lower()}",
        f"followed by: {', '.join(version.acknowledged_engine_ids) or 'no engine'}{pending}",
    )
    return Group(*lines, *map(_choice_line, version.choices), "", _levels_table(policy.levels))


def _choice_line(choice: PolicyChoice) -> str:
    since = f" since {choice.since_time:%Y-%m-%d %H:%M:%S} UTC" if choice.since_time else ""
    return f"{_class(choice)}: [bold]{choice.chosen}[/bold]{since}: {escape(choice.reason)}"


def _levels_table(levels: Sequence[Level]) -> Table:
    table = plain_table(("LEVEL", "ATTAINED BELOW", "QUANTUM"), ())
    for index, level in enumerate(levels):
        bound = seconds(level.upper_bound_us) if level.upper_bound_us else "no bound"
        table.add_row(str(index), bound, seconds(level.quantum_us) if level.quantum_us else "no end")
    return table
