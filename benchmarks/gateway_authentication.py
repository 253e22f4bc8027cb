"""What a verified key costs the picker a request. Run: python -m benchmarks.gateway_authentication

Two pickers in one process, one with 10,000 keys and one without; both get the same bytes, as ext_authz sends them
for a request that needs no leader (POST /tokenize), and answer them completely. Batches alternate between the two. The
figure is the median of the paired differences of the process's CPU time, with a 95 % bootstrap interval.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import cast

import uvloop
from agentserving.contract.identity import Role
from agentserving.contract.ids import EngineId
from agentserving.contract.keys import KeySet, new_key
from agentserving.transport.leader_channel import LeaderChannel
from agentserving_gateway.admission import Admission
from agentserving_gateway.authz import Conversation
from agentserving_gateway.credentials import Authenticator
from agentserving_gateway.engines import Engine
from agentserving_gateway.engines_file import EnginesFile
from agentserving_gateway.picker import Picker
from agentserving_gateway.responses import Responses

BATCH, PAIRS, RESAMPLES, KEYS = 100, 400, 2000, 10_000


class _Sink:
    """The part of a transport that a conversation uses."""

    def __init__(self) -> None:
        self.written = asyncio.Event()
        self.last = b""

    def write(self, data: bytes) -> None:
        self.last = data
        self.written.set()


async def main() -> None:
    """Prints the figure in microseconds a request."""
    now = time.time()
    keys = [new_key(Role.CLIENT, "default", now_unix_s=now, lifetime_s=3600) for _ in range(KEYS)]
    known = KeySet(key.row for key in keys)
    request = (
        "POST /head/tokenize HTTP/1.1\r\nhost: picker\r\ncontent-length: 0\r\nx-client-content-length: 300\r\n"
        f"authorization: Bearer {keys[KEYS // 2].text}\r\nx-agentserving-program-id: p\r\n\r\n"
    ).encode()
    with tempfile.TemporaryDirectory() as directory:
        admission = Admission(LeaderChannel("127.0.0.1:1"), EnginesFile(Path(directory) / "e" / "eds.json"), _known)
        admission.engines([Engine(EngineId("e0"), "127.0.0.1:2"), Engine(EngineId("e1"), "127.0.0.1:3")])
        responses = Responses()
        talks = [_talk(Picker(admission, responses, each)) for each in (Authenticator(), Authenticator(lambda: known))]
        for talk, sink in talks:
            await _batch(talk, sink, request)
            assert sink.last.startswith(b"HTTP/1.1 200"), sink.last
        pairs = []
        for _ in range(PAIRS):
            order = random.sample((0, 1), 2)
            spent = {which: await _batch(*talks[which], request) for which in order}
            pairs.append(spent[1] - spent[0])
        low, high = _interval(pairs)
        print(f"a key at the gateway: {statistics.median(pairs):.1f} us [{low:.1f}, {high:.1f}], {PAIRS} pairs")
        await responses.close()


async def _known(address: str) -> bool:
    return True


def _talk(picker: Picker) -> tuple[Conversation, _Sink]:
    sink = _Sink()
    talk = Conversation(picker)
    talk.connection_made(cast(asyncio.BaseTransport, sink))
    return talk, sink


async def _batch(talk: Conversation, sink: _Sink, request: bytes) -> float:
    """CPU time of this process for one request, microseconds."""
    began = time.process_time()
    for _ in range(BATCH):
        sink.written.clear()
        talk.data_received(request)
        await sink.written.wait()
    return (time.process_time() - began) / BATCH * 1e6


def _interval(differences: list[float]) -> tuple[float, float]:
    drawn = random.Random(1)
    medians = sorted(statistics.median(drawn.choices(differences, k=len(differences))) for _ in range(RESAMPLES))
    return medians[int(RESAMPLES * 0.025)], medians[int(RESAMPLES * 0.975)]


if __name__ == "__main__":
    uvloop.run(main())
