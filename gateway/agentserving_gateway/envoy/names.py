"""Headers between Envoy, the picker and the engines. Pure.

A client's own values of the headers that an engine trusts are removed before the picker is asked. Two are moved first,
because the picker reads them: OpenCode names its session in X-Session-ID, and X-Request-Id goes back to the client.
"""

from __future__ import annotations

from agentserving.contract import grant
from agentserving.programs import headers as ours

from agentserving_gateway import program_names

PROGRAM_ID, CALL_ID, ENGINE = ours.PROGRAM_ID, ours.CALL_ID, "x-agentserving-engine"
# Set by the picker on the request: the engines to try in this order (Gateway API Inference Extension's name).
ENDPOINTS = "x-gateway-destination-endpoint"
TICKET, REQUEST_ID = "x-session-id", "x-request-id"
CLIENT_SESSION, CLIENT_REQUEST_ID = "x-client-session-id", "x-client-request-id"
# The length of the client's body: the request to the picker has a body of its own, or none.
CLIENT_LENGTH = "x-client-content-length"
# Where the client connects from, for the audit log.
CLIENT_ADDRESS = "x-client-address"
# The picker needs the body: Envoy asks again, with it.
LOOK = "x-agentserving-look"
# Who sends a request, for the batch service.
GRANT = grant.HEADER
# Headers in which clients send keys: they never reach an engine where keys are verified.
AUTHORIZATION, API_KEY = "authorization", "x-api-key"
CREDENTIALS = (AUTHORIZATION, API_KEY)
# Who sent the request, as the picker has verified: for the access log and the ends of calls.
TENANT, CREDENTIAL = "x-agentserving-tenant", "x-agentserving-credential"
# Envoy believes a client that is on a private network, and passes engines its own view of a client's address.
ENVOYS_OWN = "x-envoy-"
# What the picker says to clients: of a refusal, and (prefixes of OpenAI and Anthropic) of their rates.
REFUSAL, RATES = ("content-type", "retry-after", "www-authenticate"), ("x-ratelimit-", "anthropic-ratelimit-")
# What remains of a program's budget, when little does.
BUDGET = ours.BUDGET
# Added to what the route retries on: by the picker, or else by Envoy.
RETRY_ON = "x-envoy-retry-on"
RETRY_SERVER_ERRORS, RETRY_NOTHING_ELSE = "retriable-status-codes", "reset"

# Believed by an engine or by Envoy, so never taken from a client.
RESERVED = (
    TICKET, REQUEST_ID, CALL_ID, ENGINE, ENDPOINTS, LOOK, TENANT, CREDENTIAL, CLIENT_SESSION, CLIENT_REQUEST_ID,
    CLIENT_LENGTH, CLIENT_ADDRESS, GRANT, "x-vllm-priority", "x-data-parallel-rank", "proxy-authorization",
)  # fmt: skip

# W3C Trace Context; engines receive it as well.
TRACE_PARENT = "traceparent"

# What the picker reads of a request besides the headers that identify programs, and what it sets.
PICKER_READS = (
    CLIENT_SESSION, CLIENT_LENGTH, CLIENT_ADDRESS, TRACE_PARENT, ours.SERVICE_CLASS, *program_names.HEADERS,
    *CREDENTIALS,
)  # fmt: skip
PICKER_SETS = (ENDPOINTS, TICKET, REQUEST_ID, PROGRAM_ID, CALL_ID, LOOK, RETRY_ON, TENANT, CREDENTIAL, GRANT)
