"""Where hostile bytes come in, each as a function of bytes that raises when something is wrong.

Expected refusals are caught here; everything else that escapes is a finding. `tests/fuzz/corpus/<name>` has inputs of
each, `test_corpus.py` replays them, and `grow.py` looks for more, guided by coverage.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import msgspec
import structlog
from agentserving.contract import channel, keys, ticket
from agentserving.contract.ids import Tenant
from agentserving.contract.signatures import signing_key
from agentserving_controlplane.__main__ import MAX_REQUEST_BYTES
from agentserving_controlplane.control_plane import ControlPlane
from agentserving_controlplane.store.memory import MemoryStore
from agentserving_controlplane.table.rows import NewerSchemaError
from agentserving_gateway.body import read_body
from agentserving_gateway.content import Runs
from agentserving_gateway.errors import HttpError
from agentserving_gateway.identity import from_body, from_head
from agentserving_gateway.routes import route_of, split_program
from agentserving_process.frames import codec
from controlplane.guarded_plane import bearer
from controlplane.table_builders import check_invariants
from fuzz.api_client import ADMIN, Api
from support.reading import program_of
from support.served_plane import SETTINGS

CORPUS = Path(__file__).parent / "corpus"
# Unary methods of the control plane; the first byte of an input chooses.
METHODS = (
    "ProgramService/OpenProgram", "ProgramService/GetProgram", "ProgramService/ListPrograms",
    "ProgramService/CloseProgram", "ProgramService/CancelProgram", "ProgramService/PauseProgram",
    "ProgramService/ResumeProgram", "CallService/AdmitCall", "CallService/EndCall", "AdminService/ApplyPolicy",
    "AdminService/GetPolicy", "AdminService/ListEngines", "AdminService/DrainEngine", "AdminService/UndrainEngine",
    "AdminService/GetOverview", "KeyService/CreateKey", "KeyService/ListKeys", "KeyService/RevokeKey",
    "TenantService/SetTenant", "TenantService/ListTenants", "TenantService/RemoveTenant",
)  # fmt: skip
NEVER = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED)
PREFIXES = ("programs/", "chunks/", "late/", "keys/", "tenants/", "tokens/", "engines/", "policy", "nonsense/")
# A cluster serves so many inputs before another one takes its place, so that its table stays small.
INPUTS_PER_CLUSTER = 500
_KEYS = ticket.IssuerKeys([signing_key(b"0123456789abcdef").public_key()])


class Rpcs:
    """The gRPC doors of a control plane, as an administrator."""

    def __init__(self) -> None:
        self._api: Api | None = None
        self._count = 0

    def __call__(self, data: bytes) -> None:
        if self._api is None or self._count >= INPUTS_PER_CLUSTER:
            self.close()
            self._api, self._count = Api(), 0
        self._count += 1
        method = METHODS[data[0] % len(METHODS)] if data else METHODS[0]
        code = self._api.run(self._ask(self._api, method, data[1:]))
        assert code not in NEVER, (method, code)
        check_invariants(self._api.plane.table)

    @staticmethod
    async def _ask(api: Api, method: str, request: bytes) -> grpc.StatusCode:
        ask: Any = api.channel.unary_unary(f"/agentserving.v1.{method}")
        try:
            await ask(request, metadata=bearer(ADMIN.text), timeout=30)
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    def close(self) -> None:
        """Ends the cluster."""
        if self._api is not None:
            self._api.close()
            self._api = None


def frames(data: bytes) -> None:
    """The port of framed streams, however its bytes are cut."""
    found = []
    for step in (len(data) or 1, 1, 7):
        decoder, seen = codec.Decoder(MAX_REQUEST_BYTES, max_opening_bytes=4096), list[codec.Frame]()
        # Bytes that are no frame are noticed at the latest when they would complete one, so cuts matter for those.
        with contextlib.suppress(codec.BrokenFrameError):
            for at in range(0, len(data), step):
                seen += decoder.feed(data[at : at + step])
            found.append(seen)
    assert all(each == found[0] for each in found), "cuts change nothing"


def http(data: bytes) -> None:
    """What the picker reads of a request: path, headers, body; the first two lines are a path and a header."""
    path, _, rest = data.decode("latin-1").partition("\n")
    line, _, _ = rest.partition("\n")
    name, _, value = line.partition(":")
    program, inner = split_program(path)
    route_of("POST", inner)
    headers = {name.lower(): value}
    from_head(headers, program)
    with contextlib.suppress(HttpError):
        body = read_body(data[len(path) + len(line) + 2 :])
        from_body(body)
        program_of(Runs(), Tenant("t"), body)
        body.model_name.encode()


def rows(data: bytes) -> None:
    """A row of the store, as a new leader reads it: it is read, or left alone and counted."""
    prefix = PREFIXES[data[0] % len(PREFIXES)] if data else PREFIXES[0]
    name, _, value = data[1:].partition(b"\xff")
    asyncio.run(_recover(prefix + name.decode("latin-1"), value))


async def _recover(key: str, value: bytes) -> None:
    store = MemoryStore()
    store._items[key] = value
    plane = ControlPlane(SETTINGS, store, await store.acquire("t"), lambda error: None)
    try:
        await plane.recover(store)
        check_invariants(plane.table)
        assert plane.unreadable_rows <= 1
    except NewerSchemaError:
        pass
    finally:
        await plane.commits.close(1)


def engine_channel(data: bytes) -> None:
    """The socket between an engine and its sidecar."""
    with contextlib.suppress(ValueError):
        for body in channel.FrameSplitter().feed(data):
            for decoder in (channel.from_engine_decoder, channel.to_engine_decoder):
                with contextlib.suppress(msgspec.MsgspecError):
                    decoder.decode(body)


def credentials(data: bytes) -> None:
    """Tickets and keys, as texts that anyone can send."""
    text = data.decode("latin-1")
    keys.parse(text)
    with contextlib.suppress(keys.KeyRefusedError):
        keys.KeySet([ADMIN.row]).verify(text, 0)
    with contextlib.suppress(ticket.InvalidTicketError):
        ticket.verify(text, _KEYS, engine_id="e", now_unix_s=0)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "rpc": Rpcs(), "frames": frames, "http": http, "rows": rows, "channel": engine_channel,
    "credentials": credentials,
}  # fmt: skip


def quiet() -> None:
    """Refused input is logged, and there is a lot of it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
