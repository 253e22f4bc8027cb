"""Which vLLM request belongs to which call, and what each call has received.

`CallBook` is the entry: tickets in, records out. It owns the open calls; `Accounts`, `EndedCalls`, `Outbox` and
`Rejections` are its bounded memories. All of it belongs to the scheduler's thread, except the `Outbox`, which the
channel's thread reads under its lock.
"""

from agentserving_engine.calls.book import CallBook, OpenCall
from agentserving_engine.calls.outbox import Outbox
from agentserving_engine.calls.tickets import TicketCheck, Unticketed

__all__ = ["CallBook", "OpenCall", "Outbox", "TicketCheck", "Unticketed"]
