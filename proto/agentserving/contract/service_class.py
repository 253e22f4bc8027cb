"""Classes of service: which calls of a tenant give way to which. Pure.

A program has one for its whole tree. It comes from what its client asks for, what the client's credential permits, and
the default of the cluster. A *class* of programs (the root's name) is something else: policies learn from it.
"""

from __future__ import annotations

from enum import IntEnum


class ServiceClass(IntEnum):
    """Numbers as on the wire; a lower one goes first. UNSPECIFIED: nothing was said, or a newer value."""

    UNSPECIFIED = 0
    INTERACTIVE = 1
    STANDARD = 2
    BATCH = 3

    @classmethod
    def _missing_(cls, value: object) -> ServiceClass:
        return cls.UNSPECIFIED

    @property
    def label(self) -> str:
        """The word in headers, commands, metrics and custom resources; empty for UNSPECIFIED."""
        return self.name.lower() if self else ""


# Those that a program can have, the one that goes first first.
SERVICE_CLASSES = (ServiceClass.INTERACTIVE, ServiceClass.STANDARD, ServiceClass.BATCH)
SERVICE_WORDS = tuple(each.label for each in SERVICE_CLASSES)


def read_service_class(word: str) -> ServiceClass:
    """The class that a word names, in any case; UNSPECIFIED for "". ValueError lists the words."""
    word = word.strip().lower()
    if not word:
        return ServiceClass.UNSPECIFIED
    if word not in SERVICE_WORDS:
        raise ValueError(f"{word!r} is no class of service: use {', '.join(SERVICE_WORDS[:-1])} or {SERVICE_WORDS[-1]}")
    return ServiceClass[word.upper()]


def exceeds(asked: ServiceClass, limit: ServiceClass) -> bool:
    """Whether a client asks for a better class than `limit`, the best that it may use (UNSPECIFIED: any)."""
    return ServiceClass.UNSPECIFIED < asked < limit


def granted(asked: ServiceClass, limit: ServiceClass, default: ServiceClass) -> ServiceClass:
    """The class of a new program. A client with a limit that asks for nothing gets the limit: it is its key's class."""
    return max(asked, limit) if asked else limit or default
