"""Finds the line of a component's log that says why it ended. Pure.

vLLM is several processes: the one that fails prints its traceback, and its parents print theirs, which end in "see root
cause above". Ours and etcd write JSON lines. The answer is the last error that does not refer to another one.
"""

from __future__ import annotations

import json
import re
import signal

# vLLM's "(EngineCore pid=7) ERROR 11-24 22:23:05 [core.py:1510] ".
_DECORATION = re.compile(r"^(?:\([^)]*pid=\d+\)\s*)?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d (?:\.\.\./)?\[[^\]]*\]\s?)?")
_EXCEPTION = re.compile(r"^(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Failure)\b|^Exception\b")
_PLAIN = re.compile(r"^\S+: error: |^cannot start: |^\S*python[\d.]*: |^Segmentation fault|^Killed")
_WRAPPERS = (
    "see root cause above",
    "see stack trace",
    "initialization failed due to",
    "engine core initialization failed",
)
_LEVELS = ("error", "critical", "fatal", "panic")
_IGNORED = ("level", "ts", "timestamp", "event", "msg", "caller", "stacktrace", "exception", "logger")
MAX_CHARACTERS = 500


def reason_in(log: str) -> str:
    """One line, at most MAX_CHARACTERS; "" for an empty log."""
    lines = [_DECORATION.sub("", line.rstrip()) for line in log.splitlines()]
    lines = [line for line in lines if line.strip()]
    for index in range(len(lines) - 1, -1, -1):
        reason = _reason_at(lines, index)
        if reason:
            return reason[:MAX_CHARACTERS]
    return lines[-1].strip()[:MAX_CHARACTERS] if lines else ""


def _reason_at(lines: list[str], index: int) -> str:
    line = lines[index]
    if line.startswith("{"):
        return _from_json(line)
    if _PLAIN.match(line):
        return line
    if not _EXCEPTION.match(line) or any(word in line.lower() for word in _WRAPPERS):
        return ""
    # Messages of several lines (pydantic's) continue indented.
    more = []
    for following in lines[index + 1 : index + 4]:
        if not following.startswith("  ") or "For further information" in following:
            break
        more.append(following.strip())
    return " ".join([line, *more])


def _from_json(line: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return ""
    if not isinstance(entry, dict) or entry.get("level") not in _LEVELS:
        return ""
    details = ", ".join(f"{key}: {value}" for key, value in entry.items() if key not in _IGNORED and value)
    last = str(entry.get("exception", "")).strip().rsplit("\n", 1)[-1]
    return ": ".join(part for part in (str(entry.get("event") or entry.get("msg") or ""), last, details) if part)


def ending(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "did not come up"
    if code < 0:
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"ended with code {code}"
