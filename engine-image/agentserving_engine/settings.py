"""The plugin's settings, read from the environment once, when the engine starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agentserving.contract.ticket_keys import TicketKeys


class PluginConfigError(ValueError):
    """The plugin cannot start: the message names the variable and what to set."""


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """`channel_dir` is shared with the sidecar; None = no sidecar: the plugin works with tickets alone."""

    engine_id: str
    channel_dir: Path | None
    ticket_keys: TicketKeys | None

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> PluginSettings:
        """Reads AGENTSERVING_ENGINE_ID, _CHANNEL_DIR and _TICKET_KEY_FILE. Raises PluginConfigError."""
        engine_id = env.get("AGENTSERVING_ENGINE_ID", "")
        if not engine_id:
            raise PluginConfigError("AGENTSERVING_ENGINE_ID is not set: set it to the engine's name")
        directory = env.get("AGENTSERVING_CHANNEL_DIR", "")
        if directory and not Path(directory).is_dir():
            raise PluginConfigError(f"AGENTSERVING_CHANNEL_DIR={directory} is not a directory")
        return cls(engine_id, Path(directory) if directory else None, _keys(env))


# Proxies give up on a silent connection after 60 s (nginx, AWS ALB, HAProxy's examples) or earlier (30 s: Heroku).
SSE_KEEP_ALIVE_S = 15.0


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """`sse_keep_alive_s`: the longest silence of an event stream, seconds; 0 = no limit. `engine_id` may be empty."""

    sse_keep_alive_s: float = SSE_KEEP_ALIVE_S
    engine_id: str = ""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> HttpSettings:
        """Reads AGENTSERVING_SSE_KEEP_ALIVE_S and _ENGINE_ID. Raises PluginConfigError."""
        text, engine_id = env.get("AGENTSERVING_SSE_KEEP_ALIVE_S", ""), env.get("AGENTSERVING_ENGINE_ID", "")
        try:
            return cls(keep_alive_seconds(text) if text else SSE_KEEP_ALIVE_S, engine_id)
        except ValueError:
            raise PluginConfigError(
                f"AGENTSERVING_SSE_KEEP_ALIVE_S={text}: give seconds, or 0 for no keep-alive comments"
            ) from None


def keep_alive_seconds(text: str) -> float:
    """Raises ValueError for what is no finite number of seconds from 0 on."""
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{text} is no number of seconds")
    return seconds


def _keys(env: Mapping[str, str]) -> TicketKeys | None:
    name = env.get("AGENTSERVING_TICKET_KEY_FILE", "")
    if not name:
        return None
    try:
        return TicketKeys(Path(name))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PluginConfigError(f"AGENTSERVING_TICKET_KEY_FILE={name}: {reason}") from error
