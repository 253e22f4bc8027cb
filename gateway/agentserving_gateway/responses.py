"""Which engine has a stored response (OpenAI's Responses API): its id says so, or else the engines are asked.

Our middleware in the engine makes ids that name the engine. A client may have chosen another id, and an engine may run
without the middleware. Answers do not pass through the picker, so it asks all engines for such an id: that keeps it
stateless, and another one, or this one after a restart, finds the engine as well. What was found is remembered, since
the next turn of a conversation comes soon.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

import aiohttp
from agentserving.contract import response_ids
from agentserving.contract.engine_http import RESPONSES
from agentserving_process.engine_tls import EngineTls

from agentserving_gateway.engines import Engine
from agentserving_gateway.envoy.names import TICKET

ASK_S = 2.0
# Of the responses that were asked for last.
MAX_REMEMBERED = 10_000


class Responses:
    """One per process."""

    def __init__(self, tls: EngineTls | None = None) -> None:
        self._tls = tls or EngineTls()
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ASK_S), trust_env=False)
        self._found: OrderedDict[str, str] = OrderedDict()

    async def close(self) -> None:
        """Ends the connections to engines."""
        await self._session.close()

    async def engine_of(
        self, response_id: str, engines: Sequence[Engine], authorization: str, ticket: Callable[[Engine], str]
    ) -> Engine | None:
        """The engine that has it; None when none says so. `authorization`: the client's credential for engines.

        `ticket` is what an engine must be shown to answer; "" = nothing.
        """
        by_address = {engine.address: engine for engine in engines}
        if len(engines) < 2:
            return engines[0] if engines else None
        named = response_ids.engine_of(response_id)
        for engine in engines if named else ():
            if engine.engine_id == named:
                return engine
        address = self._found.get(response_id)
        if address in by_address:
            self._found.move_to_end(response_id)
            return by_address[address]
        asked = {
            asyncio.create_task(self._has(engine, response_id, authorization, ticket(engine))) for engine in engines
        }
        try:
            for answer in asyncio.as_completed(asked):
                if (address := await answer) is not None:
                    self._remember(response_id, address)
                    return by_address[address]
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return None

    def _remember(self, response_id: str, address: str) -> None:
        self._found[response_id] = address
        if len(self._found) > MAX_REMEMBERED:
            self._found.popitem(last=False)

    async def _has(self, engine: Engine, response_id: str, authorization: str, ticket: str) -> str | None:
        """The address when the engine there has it. Reads no body: the answer may be long."""
        sent = {"authorization": authorization, TICKET: ticket}
        headers = {name: value for name, value in sent.items() if value}
        try:
            url = self._tls.url(engine.address, f"{RESPONSES}/{response_id}")
            async with self._session.get(url, headers=headers, **self._tls.options(engine.engine_id)) as answer:
                return engine.address if answer.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None
