"""What the plugin is told by its environment; read once, when the engine starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MIN_KEY_BYTES = 16


class PluginConfigError(ValueError):
    """The plugin cannot start: the message names the variable and what to set."""


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """`channel_dir` is shared with the sidecar; None = no sidecar (then the plugin works on tickets alone)."""

    engine_id: str
    channel_dir: Path | None
    ticket_key: bytes | None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> PluginSettings:
        """Reads AGENTSERVING_ENGINE_ID, _CHANNEL_DIR and _TICKET_KEY_FILE. PluginConfigError when one is unusable."""
        engine_id = env.get("AGENTSERVING_ENGINE_ID", "")
        if not engine_id:
            raise PluginConfigError("AGENTSERVING_ENGINE_ID is not set: give the engine a name")
        directory = env.get("AGENTSERVING_CHANNEL_DIR", "")
        if directory and not Path(directory).is_dir():
            raise PluginConfigError(f"AGENTSERVING_CHANNEL_DIR={directory} is not a directory")
        return cls(engine_id, Path(directory) if directory else None, _read_key(env))


def _read_key(env: Mapping[str, str]) -> bytes | None:
    name = env.get("AGENTSERVING_TICKET_KEY_FILE", "")
    if not name:
        return None
    try:
        key = Path(name).read_bytes()
    except OSError as error:
        raise PluginConfigError(f"AGENTSERVING_TICKET_KEY_FILE={name}: {error.strerror}") from error
    if len(key) < MIN_KEY_BYTES:
        raise PluginConfigError(f"AGENTSERVING_TICKET_KEY_FILE={name}: needs {MIN_KEY_BYTES} bytes, has {len(key)}")
    return key
