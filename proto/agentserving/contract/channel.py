"""Messages between the scheduler plugin in the engine process and the sidecar in the same pod.

One Unix stream socket for each rank (``<directory>/rank<n>.sock``): the plugin listens, one sidecar at a time connects,
and a newer connection replaces an older one. Each frame is a 4-byte big-endian length followed by one msgpack message.
The plugin sends `EngineHello` first, then `EngineReport` after steps that changed something and at least every
`HEARTBEAT_S`. A call's record is cumulative; the terminal record (``outcome`` set) is sent again on every new
connection until the sidecar has acknowledged it with `AckCalls`, so a sidecar may die at any time.

Needs only msgspec: of this project, the engine process imports `agentserving.contract` and its own package.
"""

from __future__ import annotations

from typing import Any

import msgspec

HEARTBEAT_S = 0.5
# How many engine processes the plugin expects to share one HTTP front, and at most. As many devices fit on one node.
RANKS_VARIABLE, MAX_RANKS = "AGENTSERVING_RANKS", 64
MAX_FRAME_BYTES = 8 << 20


class CallRecord(msgspec.Struct, array_like=True, kw_only=True):
    """Counters of one call since its arrival at this engine; times in microseconds."""

    call_id: str
    attempt: int
    program_id: str
    root_program_id: str
    tenant: str
    thread_id: str
    # The program's account when the call arrived.
    attained_service_us: int
    service_us: int = 0
    wait_us: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    level: int = 0
    running: bool = False
    # Empty while the call is open, then "completed", "cancelled" or "failed".
    outcome: str = ""
    # All engines that the ticket names, in order; empty when it names only this one.
    engine_ids: tuple[str, ...] = ()
    # Time in the engine so far, in order (agentserving.contract.phases).
    phases: tuple[tuple[int, int], ...] = ()
    # agentserving.contract.phases.PrefixMiss, and the tokens in common with an earlier context of the program.
    prefix_miss: int = 0
    common_tokens: int = 0
    # When the engine received it, Unix microseconds of its wall clock.
    arrive_unix_us: int = 0


class Load(msgspec.Struct, array_like=True, kw_only=True):
    """How busy the engine is; counters are totals since boot. Fields mean the same as in EngineLoad (types.proto)."""

    running: int = 0
    waiting: int = 0
    free_blocks: int = 0
    total_blocks: int = 0
    steps: int = 0
    last_step_age_us: int = 0
    preemptions_proactive: int = 0
    preemptions_reactive: int = 0
    promotions: int = 0
    demotions: int = 0
    unmanaged_calls: int = 0
    rejected_tickets: int = 0
    policy_time_us: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    hook_errors: int = 0
    # Gauges of the last step in which a call waited although a slot was free: KV blocks retained for programs in a tool
    # wait, and waiting calls deferred because of them.
    kept_blocks: int = 0
    behind_kept: int = 0
    # Moving average of what computing one prompt token adds to a step; 0 = not measured yet.
    prefill_us_per_token: float = 0.0


class EngineHello(msgspec.Struct, tag="hello", kw_only=True):
    """First frame from the plugin on each connection."""

    boot_id: str
    pid: int
    # "VLLM" or "SIMULATOR".
    engine_kind: str
    engine_version: str
    plugin_version: str
    max_num_seqs: int
    max_model_len: int
    block_size: int
    num_blocks: int
    # Ranks of the engine, each with a channel of its own. `max_num_seqs` and `num_blocks` are this rank's.
    data_parallel_size: int
    async_scheduling: bool
    policy_version: int
    # Why KV is not retained, and why a working set is not bounded (`KvObstacle`); "" = the engine does both.
    retention_obstacle: str = ""
    working_set_obstacle: str = ""


class EngineReport(msgspec.Struct, tag="report"):
    """Calls that changed since the last report, and the current load."""

    load: Load
    calls: list[CallRecord]
    policy_version: int


class PolicyResult(msgspec.Struct, tag="policy_result"):
    """Response to SetPolicy: `error` is empty when the policy was accepted."""

    version: int
    error: str


class AckCalls(msgspec.Struct, tag="ack"):
    """(call_id, attempt) of terminal records that the sidecar has stored: the plugin may forget them."""

    calls: list[tuple[str, int]]


class SetPolicy(msgspec.Struct, tag="policy"):
    """The policy to execute from the next step on, as agentserving.contract.policy.to_dict writes it."""

    version: int
    policy: dict[str, Any]


class SetAccounts(msgspec.Struct, tag="accounts"):
    """(tenant, root_program_id, attained_service_us, wait_us) from the process table; the plugin keeps the maximum."""

    accounts: list[tuple[str, str, int, int]]


class SetPaused(msgspec.Struct, tag="paused"):
    """(tenant, root_program_id) of all paused programs: their running calls are preempted, all others resume."""

    programs: list[tuple[str, str]]


class SetShares(msgspec.Struct, tag="shares"):
    """(tenant, weight) of all tenants whose weight is not 1; they replace those known before."""

    weights: list[tuple[str, int]]


class ToolWait(msgspec.Struct, tag="tool_wait", kw_only=True):
    """A program began or ended a tool wait. `expected_us`: the client's estimate of the wait, 0 = unknown.

    An empty `thread_id` means every thread of the program.
    """

    tenant: str
    root_program_id: str
    program_id: str
    thread_id: str
    waiting: bool
    expected_us: int


class ProgramEnded(msgspec.Struct, tag="program_ended"):
    """No call of this root program's tree comes any more, unless it is opened again: its KV need not stay."""

    tenant: str
    root_program_id: str


class Cancel(msgspec.Struct, tag="cancel"):
    """Abort these calls; their clients receive the tokens generated so far."""

    call_ids: list[str]


FromEngine = EngineHello | EngineReport | PolicyResult
ToEngine = AckCalls | SetPolicy | SetAccounts | SetPaused | SetShares | ToolWait | ProgramEnded | Cancel

encoder = msgspec.msgpack.Encoder()
from_engine_decoder = msgspec.msgpack.Decoder(FromEngine)
to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)


def socket_name(rank: int) -> str:
    """Name of the socket of a rank in the shared directory."""
    return f"rank{rank}.sock"


def frame(message: FromEngine | ToEngine) -> bytes:
    """The bytes of a message on the socket."""
    body = encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


class FrameSplitter:
    """Cuts a byte stream into frame bodies. ValueError when a frame is larger than MAX_FRAME_BYTES."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Adds received bytes; returns the bodies completed by them."""
        self._buffer += data
        bodies: list[bytes] = []
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"frame of {size} bytes, the limit is {MAX_FRAME_BYTES}")
            if len(self._buffer) < 4 + size:
                break
            bodies.append(bytes(self._buffer[4 : 4 + size]))
            del self._buffer[: 4 + size]
        return bodies
