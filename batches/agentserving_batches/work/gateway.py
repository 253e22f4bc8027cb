"""The gateway, as a client of it: the only module that makes calls.

Each call names its batch as its program, so accounts, budgets and traces show it, and asks for the class of service
`batch`. Its credential is the batch's grant.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from agentserving.contract.engine_http import MODELS
from agentserving.contract.service_class import ServiceClass
from agentserving.programs.headers import CALL_ID, FINAL, headers_of
from aiohttp import AddrInfoType

from agentserving_batches.limits import MAX_ANSWER_BYTES
from agentserving_batches.outcomes import Answer
from agentserving_batches.values import Batch

# A call itself may take hours: batch gives way to the other classes. A gateway that is gone is found by TCP's probes.
CONNECT_S = 10.0
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 30, 10, 3
# Of the list of models.
LIST_S = 15.0
_PROGRAM_NAME = "batch"
# A list that clients would not see either.
_MAX_LIST_BYTES = 4 << 20


class Gateway:
    """`async with` opens and closes its connections. `url`: without /v1."""

    def __init__(self, url: str, certificate: Path | None = None) -> None:
        """`certificate`: a PEM file with the gateway's certificate, or the CA that has signed it; None = the system's
        CAs. OSError when it cannot be read."""
        self._url = url.rstrip("/").removesuffix("/v1")
        self._certificate = certificate
        self._tls = _trusting(certificate)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            # Bounded by who calls.
            connector=aiohttp.TCPConnector(limit=0, socket_factory=_probed_socket),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, batch: Batch, body: bytes, *, is_final: bool = False) -> Answer:
        """One call of a batch; after a final one its program ends. A cancelled one is cancelled at the gateway, too."""
        headers = {
            **_credential(batch.grant),
            **headers_of(batch.batch_id, name=_PROGRAM_NAME, service_class=ServiceClass.BATCH.label),
            **({FINAL: "true"} if is_final else {}),
            "content-type": "application/json",
        }
        assert self._session is not None
        try:
            async with self._session.post(
                self._url + batch.endpoint, data=body, headers=headers, ssl=self._tls
            ) as response:
                content = await _limited(response, MAX_ANSWER_BYTES)
                if content is None:
                    return Answer(reason=f"the answer has more than {MAX_ANSWER_BYTES} bytes", is_final=True)
                return Answer(
                    status=response.status,
                    body=content,
                    request_id=response.headers.get(CALL_ID, ""),
                    retry_after_s=_seconds(response.headers),
                )
        except aiohttp.ClientConnectorCertificateError as error:
            self._read_certificate()
            return Answer(reason=f"the gateway's certificate is not trusted: {error}", was_sent=False)
        except aiohttp.ClientConnectorError as error:
            return Answer(reason=f"the gateway cannot be reached: {error}", was_sent=False)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return Answer(reason=f"the connection to the gateway broke: {type(error).__name__}: {error}")

    def _read_certificate(self) -> None:
        """It may have been replaced; one that cannot be read now is read again when it is needed again."""
        with contextlib.suppress(OSError):
            self._tls = _trusting(self._certificate)

    async def models(self, grant: str) -> frozenset[str] | None:
        """What engines serve now; None when that cannot be learned."""
        assert self._session is not None
        try:
            async with (
                asyncio.timeout(LIST_S),
                self._session.get(self._url + MODELS, headers=_credential(grant), ssl=self._tls) as answer,
            ):
                content = await _limited(answer, _MAX_LIST_BYTES)
                if answer.status != 200 or content is None:
                    return None
                return frozenset(str(model["id"]) for model in json.loads(content)["data"])
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError):
            return None


def _probed_socket(address: AddrInfoType) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
    ):
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _trusting(certificate: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate) if certificate is not None else None)
    if certificate is not None:
        # The address of a gateway inside a cluster is seldom a name in its certificate for clients.
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _credential(grant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {grant}"} if grant else {}


def _seconds(headers: Mapping[str, str]) -> float:
    """Of Retry-After; 0 without, and for a date, which no part of ours sends."""
    text = headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


async def _limited(response: aiohttp.ClientResponse, most: int) -> bytes | None:
    """The body; None when it has more bytes."""
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > most:
            return None
        pieces.append(piece)
    return b"".join(pieces)
