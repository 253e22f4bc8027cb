"""What gateways rely on at the HTTP servers of engines."""

from __future__ import annotations

# An engine closes a connection that was idle for so long. Gateways close theirs after a few seconds: a server that
# closes first, as vLLM's does by default after 5 s, may do so while a request is under way, which then breaks.
KEEP_ALIVE_S = 75
# vLLM's variable for it; seconds.
VLLM_KEEP_ALIVE = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"
