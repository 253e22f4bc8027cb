"""The engine's HTTP front: the only module that speaks HTTP to the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import aiohttp
from agentserving.contract.engine_http import POD_HEADER
from agentserving.contract.pod_secret import read_pod_secret
from agentserving_process.engine_tls import EngineTls

from agentserving_sidecar.health import FrontState

# A stopped process accepts connections and answers nothing. With the pause between two requests, this keeps the time
# until it is noticed below two seconds.
HEALTH_TIMEOUT_S = 1.0
MODELS_TIMEOUT_S = 10.0
# Prometheus waits ten seconds by default.
METRICS_TIMEOUT_S = 8.0


class ModelsUnknownError(Exception):
    """The engine did not list its models. `is_unauthorized`: it wants an API key, or another one."""

    def __init__(self, message: str, *, is_unauthorized: bool = False) -> None:
        super().__init__(message)
        self.is_unauthorized = is_unauthorized


class EngineHttp:
    """A client of one engine. Use as an async context manager."""

    def __init__(
        self, address: str, api_key_file: Path | None = None, tls: EngineTls | None = None,
        pod_dir: Path | None = None, *, engine_id: str = "",
    ) -> None:  # fmt: skip
        """`engine_id`: by TLS, whose certificate is expected. `pod_dir`: shared with the engine, which keeps the secret
        there that opens its metrics and models."""
        self.address, self.engine_id, self._pod_dir = address, engine_id, pod_dir
        self._tls = tls or EngineTls()
        self._api_key_file = api_key_file
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        """Open between entering and leaving the context."""
        assert self._session is not None, "used outside of its context"
        return self._session

    def _authorization(self) -> dict[str, str]:
        """The key is read for each request, so that a mounted secret may change. OSError when it cannot be read."""
        if self._api_key_file is None:
            return {}
        return {"authorization": f"Bearer {self._api_key_file.read_text().strip()}"}

    def _as_pod(self) -> dict[str, str]:
        secret = read_pod_secret(self._pod_dir) if self._pod_dir is not None else ""
        return {POD_HEADER: secret} if secret else {}

    async def front(self) -> tuple[FrontState, str]:
        """GET /health, on a connection of its own: one that is kept alive may be closed just then."""
        timeout = aiohttp.ClientTimeout(HEALTH_TIMEOUT_S)
        try:
            async with self.session.get(
                self._tls.url(self.address, "/health"),
                timeout=timeout,
                headers={"connection": "close"},
                **self._tls.options(self.engine_id),
            ) as response:
                if response.status == 200:
                    return FrontState.HEALTHY, ""
                return FrontState.UNHEALTHY, f"/health: HTTP {response.status}"
        except TimeoutError:
            return FrontState.SILENT, f"/health: nothing within {HEALTH_TIMEOUT_S:g} s"
        except aiohttp.ClientConnectorError as error:
            return FrontState.REFUSED, error.strerror or str(error)
        except aiohttp.ClientError as error:
            return FrontState.UNHEALTHY, f"/health: {error}"

    async def metrics(self) -> tuple[int, bytes]:
        """GET /metrics: HTTP status and body; 502 when the engine does not answer."""
        try:
            async with self.session.get(
                self._tls.url(self.address, "/metrics"),
                timeout=aiohttp.ClientTimeout(METRICS_TIMEOUT_S),
                headers=self._as_pod(),
                **self._tls.options(self.engine_id),
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            return 502, f"the engine's /metrics: {error or type(error).__name__}\n".encode()

    async def models(self) -> tuple[str, ...]:
        """Names of the models and adapters that the engine serves. ModelsUnknownError."""
        try:
            async with self.session.get(
                self._tls.url(self.address, "/v1/models"),
                timeout=aiohttp.ClientTimeout(MODELS_TIMEOUT_S),
                headers={**self._authorization(), **self._as_pod()},
                **self._tls.options(self.engine_id),
            ) as response:
                if response.status in (401, 403):
                    raise ModelsUnknownError(f"/v1/models: HTTP {response.status}", is_unauthorized=True)
                if response.status != 200:
                    raise ModelsUnknownError(f"/v1/models: HTTP {response.status}")
                listed = await response.json(content_type=None)
                return tuple(str(model["id"]) for model in listed["data"])
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ModelsUnknownError(f"/v1/models: {str(error) or 'no answer in time'}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ModelsUnknownError(f"/v1/models: the response is no list of models ({error!r})") from error

    @asynccontextmanager
    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """One call. aiohttp.ClientError when the engine cannot be reached."""
        async with self.session.post(
            self._tls.url(self.address, path),
            data=body,
            headers={"content-type": "application/json", **self._authorization(), **self._as_pod(), **headers},
            allow_redirects=False,
            **self._tls.options(self.engine_id),
        ) as response:
            yield response
