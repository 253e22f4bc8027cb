"""How an exchange ended, and what that says of its call and its engines. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving_gateway.calls import Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request for a call, after its end.

    `status` 0: no answer was begun. `engine_failed`, `client_left`: who broke it off. `addresses`: the engines that
    were named for it, of which `attempts` were tried; `last` is the one that was tried last.
    """

    call_id: str
    tenant: str = ""
    status: int
    engine_failed: bool
    client_left: bool
    was_sent: bool
    addresses: tuple[str, ...] = ()
    last: str = ""
    attempts: int = 1


def ending_of(exchange: Exchange) -> Ending | None:
    """How the call ends; None when the engine that was chosen has answered it."""
    if exchange.client_left:
        return Ending.CANCELLED
    if exchange.engine_failed or exchange.status >= 500 or not exchange.status:
        return Ending.FAILED
    if exchange.status >= 300:
        return Ending.REJECTED
    return Ending.COMPLETED if exchange.attempts > 1 else None


def failed_engines(exchange: Exchange) -> tuple[str, ...]:
    """Addresses of the engines that broke the exchange."""
    retried = exchange.addresses[: exchange.attempts - 1] if exchange.attempts > 1 else ()
    failed = [address for address in retried if address != exchange.last]
    if exchange.engine_failed and exchange.last:
        failed.append(exchange.last)
    return tuple(failed)
