"""Random bytes from clients: each is answered with HTTP or closed, and the front keeps serving."""

from __future__ import annotations

import asyncio

from gateway.gateway_rig import answer_json, rig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
WHOLE = POST + b"content-length: 2\r\n\r\n{}"

_TOKENS = [
    b"POST ", b"GET ", b"/v1/completions", b"/v1/models", b" HTTP/1.1", b" HTTP/1.0", b"\r\n", b"\n", b"\r",
    b"\r\n\r\n",
    b"host: x", b"content-length: ", b"transfer-encoding: chunked", b"expect: 100-continue", b"connection: close",
    b"x-agentserving-program-id: p", b"0", b"1", b"5\r\nhello\r\n", b"{}", b'{"stream":true}', b": ", b"\x00", b"\xff",
    b" ", b"\t", b"upgrade: h2c", b"-1", b"ffffffffffffffff",
]  # fmt: skip
_FUZZ = st.lists(st.one_of(st.sampled_from(_TOKENS), st.binary(max_size=8)), max_size=24).map(b"".join)


def test_the_front_keeps_serving_whatever_bytes_it_receives() -> None:
    """One front, many clients: each is answered with HTTP or closed, without an error in the log."""
    loop = asyncio.new_event_loop()
    context = rig(answer_json, head_s=1.0, request_s=1.0)
    made = loop.run_until_complete(context.__aenter__())

    async def throw(parts: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        try:
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
            writer.write_eof()
            async with asyncio.timeout(5):
                answer = await reader.read()
            assert not answer or answer.startswith(b"HTTP/1.")
        except ConnectionError:
            pass
        finally:
            writer.close()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.one_of(_FUZZ, _FUZZ.map(lambda tail: POST + tail)), max_size=4))
    def fuzz(parts: list[bytes]) -> None:
        loop.run_until_complete(throw(parts))

    async def serves() -> None:
        assert made.envoy.returncode is None
        assert (await made.send(WHOLE)).startswith(b"HTTP/1.1 200")

    try:
        fuzz()
        loop.run_until_complete(serves())
    finally:
        loop.run_until_complete(context.__aexit__(None, None, None))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
