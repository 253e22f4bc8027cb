"""Names programs after their client where it sends none: policies learn by class, all programs of one name.

In this order: the title that a client gives itself, the product in its User-Agent unless that is a library, and a
digest of how its instructions begin. Pure; a call without any of them has no name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from agentserving.programs.headers import short_name

# OpenRouter's convention for the name of an application.
TITLE = "x-title"
USER_AGENT = "user-agent"
HEADERS = (TITLE, USER_AGENT)
# Bytes of instructions that are read: what follows is often the date, a directory or the user's name.
INSTRUCTIONS_BYTES = 256
# Hexadecimal digits: two of a thousand applications get the same name once in ten thousand clusters.
_DIGITS = 8

# A User-Agent's first product, as in RFC 9110, section 10.1.5. Longer ones are no names.
_PRODUCT = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}(?=$|[/ ])")
# Products that say which library an application was written with, in lower case.
LIBRARIES = frozenset({
    "agents", "ai", "ai-sdk", "aiohttp", "anthropic", "asyncanthropic", "asyncazureopenai", "asyncopenai", "axios",
    "azureopenai", "bun", "crewai", "curl", "deno", "go-http-client", "got", "java", "java-http-client", "jakarta",
    "langchain", "langgraph", "litellm", "llama-index", "mozilla", "node", "node-fetch", "node.js", "okhttp", "openai",
    "openai-go", "postmanruntime", "pydantic-ai", "python", "python-httpx", "python-requests", "python-urllib",
    "reqwest", "ruby", "smolagents", "undici", "wget",
})  # fmt: skip


def from_headers(headers: Mapping[str, str]) -> str:
    """The name that headers (names in lower case) give; empty for those of a library."""
    title = headers.get(TITLE, "").strip()
    if title:
        return short_name(title)
    product = _PRODUCT.match(headers.get(USER_AGENT, ""))
    return product[0] if product is not None and product[0].lower() not in LIBRARIES else ""


def from_instructions(text: bytes) -> str:
    """The name that follows from the beginning of instructions, the same on every gateway; empty without any."""
    if not text:
        return ""
    return "prompt-" + hashlib.sha256(text[:INSTRUCTIONS_BYTES]).hexdigest()[:_DIGITS]
