"""The engines known last, on disk: a gateway that starts while the control plane is away serves with these."""

from __future__ import annotations

import json
import os
from pathlib import Path

import structlog
from agentserving.v1 import types_pb2

log = structlog.get_logger()

FILE = "engines.json"


class KnownEngines:
    """`directory` None = nothing is kept."""

    def __init__(self, directory: Path | None) -> None:
        self._path = directory / FILE if directory is not None else None
        self._written: list[tuple[str, str]] = []

    def load(self) -> list[types_pb2.Engine]:
        """What was kept; [] when there is nothing, or nothing that can be read."""
        if self._path is None or not self._path.exists():
            return []
        try:
            kept = [(str(engine_id), str(address)) for engine_id, address in json.loads(self._path.read_text())]
        except (OSError, ValueError, TypeError) as error:
            log.warning("known engines cannot be read", path=str(self._path), error=str(error))
            return []
        self._written = kept
        return [types_pb2.Engine(engine_id=engine_id, address=address) for engine_id, address in kept]

    def keep(self, engines: list[types_pb2.Engine]) -> None:
        """Writes them when they are others than before; a disk that is full costs no call."""
        wanted = [(engine.engine_id, engine.address) for engine in engines]
        if self._path is None or not wanted or wanted == self._written:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._path.with_suffix(f".{os.getpid()}")
            scratch.write_text(json.dumps(wanted))
            scratch.replace(self._path)
            self._written = wanted
        except OSError as error:
            log.warning("known engines cannot be kept", path=str(self._path), error=str(error))
