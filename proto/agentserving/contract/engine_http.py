"""What gateways rely on at the HTTP servers of engines."""

from __future__ import annotations

# An engine closes a connection that was idle for so long. Gateways close theirs after a few seconds: a server that
# closes first, as vLLM's does by default after 5 s, may do so while a request is under way, which then breaks.
KEEP_ALIVE_S = 75
# vLLM's variable for it; seconds.
VLLM_KEEP_ALIVE = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"

# What gateways forward besides calls. POST: reads of a body, which engines with a pooling model also compute.
COUNTED = ("/v1/messages/count_tokens", "/tokenize", "/detokenize")
SCORED = (
    "/v1/embeddings", "/pooling", "/classify", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank",
)  # fmt: skip
# GET.
SHOWN = ("/version", "/tokenizer_info")
MODELS, RESPONSES = "/v1/models", "/v1/responses"

# Header of requests that the sidecar makes for itself, with the secret that only its own pod has (pod_secret.py).
POD_HEADER = "x-agentserving-pod"
