"""``python -m agentserving_gateway.smoke URL``: one program makes two calls through a gateway, as `helm test` does.

Uses the standard library only, and no secret but the API key in OPENAI_API_KEY: it sees what an agent sees.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from typing import Any

# A call may queue on a busy cluster.
BOUND_S = 120.0


class SmokeError(RuntimeError):
    """The cluster does not serve; the message contains its answer."""


def _ask(url: str, body: dict[str, Any] | None, headers: dict[str, str]) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    try:
        # The user names the URL.
        with urllib.request.urlopen(request, timeout=BOUND_S) as answer:  # nosec B310
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as error:
        raise SmokeError(f"{url} answered {error.code}: {error.read().decode(errors='replace')[:500]}") from error
    except OSError as error:
        raise SmokeError(f"{url} does not answer: {error}") from error


def smoke(base: str, api_key: str = "") -> list[str]:
    """Makes the calls; gives one line for each step. `base` ends in /v1. SmokeError."""
    credential = {"authorization": f"Bearer {api_key}"} if api_key else {}
    began = time.monotonic()
    models = json.loads(_ask(f"{base}/models", None, credential))["data"]
    if not models:
        raise SmokeError(f"{base}/models lists no model: no engine serves yet")
    program, model = f"smoke-{uuid.uuid4().hex[:12]}", models[0]["id"]
    steps = [f"model {model}, program {program}"]
    asked = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Say something."}]}
    headers = {"x-agentserving-program-id": program, **credential}
    answer = json.loads(_ask(f"{base}/chat/completions", asked, headers))
    steps.append(f"a call gave {answer['usage']['completion_tokens']} tokens")
    stream = _ask(f"{base}/chat/completions", {**asked, "stream": True}, headers)
    events = [line for line in stream.splitlines() if line.startswith("data: ")]
    if not events or events[-1] != "data: [DONE]":
        raise SmokeError(f"a stream ended without [DONE] after {len(events)} events")
    steps.append(f"a stream gave {len(events) - 1} events")
    return [*steps, f"passed in {time.monotonic() - began:.1f} s"]


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m agentserving_gateway.smoke http://gateway/v1", file=sys.stderr)
        return 2
    try:
        print("\n".join(smoke(arguments[0].rstrip("/"), os.environ.get("OPENAI_API_KEY", ""))))
    except SmokeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
