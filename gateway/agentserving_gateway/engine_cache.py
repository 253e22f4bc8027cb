"""The last known engines, on disk: a gateway that starts while the control plane is away serves with these."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import structlog
from agentserving.contract.ids import EngineId

from agentserving_gateway.engines import Engine

log = structlog.get_logger()

FILE = "engines.json"


class EngineCache:
    """Ids and addresses only; `directory` None disables the cache. Errors are logged; requests are not affected."""

    def __init__(self, directory: Path | None) -> None:
        self._path = directory / FILE if directory is not None else None
        self._written: list[tuple[str, str]] = []

    def load(self) -> list[Engine]:
        """[] when there is no file, or none that can be read."""
        if self._path is None or not self._path.exists():
            return []
        try:
            pairs = [(str(engine_id), str(address)) for engine_id, address in json.loads(self._path.read_text())]
        except (OSError, ValueError, TypeError) as error:
            log.warning("cannot read the engine cache", path=str(self._path), error=str(error))
            return []
        self._written = pairs
        return [Engine(EngineId(engine_id), address) for engine_id, address in pairs]

    def save(self, engines: Sequence[Engine]) -> None:
        """Writes the set when it differs from the last one; an empty set does not replace it."""
        pairs: list[tuple[str, str]] = [(engine.engine_id, engine.address) for engine in engines]
        if self._path is None or not pairs or pairs == self._written:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._path.with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps(pairs))
            scratch.replace(self._path)
            self._written = pairs
        except OSError as error:
            log.warning("cannot write the engine cache", path=str(self._path), error=str(error))
