"""What is wrong with a file that cannot be imported, and where. Pure."""

from __future__ import annotations

from agentserving_replay.traces.file import MAX_SECONDS, MAX_TOKENS


class ImportFailedError(ValueError):
    """A file that describes no possible programs. The message begins with the file and the place in it."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")


def checked_seconds(where: str, field: str, value: float) -> float:
    """A time or duration in seconds. ImportFailedError when it is negative, no number, or more than a year."""
    if not 0 <= value <= MAX_SECONDS:
        raise ImportFailedError(where, f"{field}: must be 0 to {MAX_SECONDS:.0f} seconds, got {value}")
    return value


def checked_tokens(where: str, field: str, value: int, least: int) -> int:
    """A number of tokens. ImportFailedError."""
    if not least <= value <= MAX_TOKENS:
        raise ImportFailedError(where, f"{field}: must be {least} to {MAX_TOKENS}, got {value}")
    return value
