"""The plugin's settings, read from the environment once, when the engine starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentserving.contract.channel import MAX_RANKS, RANKS_VARIABLE
from agentserving.contract.signatures import VerifyingKey
from agentserving.contract.ticket import IssuerKeys
from agentserving.contract.ticket_keys import TicketKeys, verifying_keys

from agentserving_engine.calls.tickets import TicketCheck, Unticketed


class PluginConfigError(ValueError):
    """The plugin cannot start: the message names the variable and what to set."""


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """`channel_dir` is shared with the sidecar; None = no sidecar: the plugin works with tickets alone."""

    engine_id: str
    channel_dir: Path | None
    # Public keys of the control plane and of gateways; None = there are no tickets.
    ticket_keys: Callable[[], IssuerKeys] | None
    # What becomes of calls without a valid ticket.
    unticketed: Unticketed = Unticketed.LAST
    # One tenant's prompts are not found in the prefix cache by another's.
    separate_caches: bool = True
    # Engine processes that share this engine's HTTP front (--data-parallel-size): vLLM does not say it to all of them.
    ranks: int = 1

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> PluginSettings:
        """Reads AGENTSERVING_ENGINE_ID, _CHANNEL_DIR, _TICKET_KEY_FILE, _GATEWAY_KEY_FILE, _UNTICKETED, _TENANT_CACHE,
        _RANKS.

        Raises PluginConfigError.
        """
        engine_id = env.get("AGENTSERVING_ENGINE_ID", "")
        if not engine_id:
            raise PluginConfigError("AGENTSERVING_ENGINE_ID is not set: set it to the engine's name")
        directory = env.get("AGENTSERVING_CHANNEL_DIR", "")
        if directory and not Path(directory).is_dir():
            raise PluginConfigError(f"AGENTSERVING_CHANNEL_DIR={directory} is not a directory")
        keys = _keys(env)
        unticketed = Unticketed(_choice(env, "AGENTSERVING_UNTICKETED", [each.value for each in Unticketed], "last"))
        if unticketed is Unticketed.REFUSE and keys is None:
            raise PluginConfigError("AGENTSERVING_UNTICKETED=refuse needs AGENTSERVING_TICKET_KEY_FILE")
        return cls(
            engine_id,
            Path(directory) if directory else None,
            keys,
            unticketed,
            _choice(env, "AGENTSERVING_TENANT_CACHE", ["separate", "shared"], "separate") == "separate",
            _ranks(env),
        )

    def ticket_check(self, boot_id: str) -> TicketCheck:
        """Which tickets this boot of the engine takes."""
        return TicketCheck(engine_id=self.engine_id, keys=self.ticket_keys, unticketed=self.unticketed, boot_id=boot_id)


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


def _ranks(env: Mapping[str, str]) -> int:
    text = env.get(RANKS_VARIABLE, "") or "1"
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= MAX_RANKS:
        raise PluginConfigError(f"{RANKS_VARIABLE}={text}: give vLLM's --data-parallel-size, 1 to {MAX_RANKS}")
    return int(text)


def _choice(env: Mapping[str, str], name: str, choices: Sequence[str], default: str) -> str:
    found = env.get(name, "") or default
    if found not in choices:
        raise PluginConfigError(f"{name}={found}: must be {' or '.join(choices)}")
    return found


def _keys(env: Mapping[str, str]) -> Callable[[], IssuerKeys] | None:
    control_plane = _public_keys(env, "AGENTSERVING_TICKET_KEY_FILE")
    if control_plane is None:
        return None
    gateway = _public_keys(env, "AGENTSERVING_GATEWAY_KEY_FILE")
    return lambda: IssuerKeys(control_plane(), gateway() if gateway is not None else ())


def _public_keys(env: Mapping[str, str], variable: str) -> TicketKeys[VerifyingKey] | None:
    name = env.get(variable, "")
    if not name:
        return None
    try:
        return verifying_keys(Path(name))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PluginConfigError(f"{variable}={name}: {reason}") from error
