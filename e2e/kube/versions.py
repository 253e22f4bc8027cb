"""Charts of different commits, each with its image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RELEASE, OPERATOR_NAMESPACE = "agentserving", "agentserving"


@dataclass(frozen=True)
class Version:
    """A chart, and the image that it is to install."""

    chart: Path
    image: str

    @property
    def values(self) -> tuple[str, ...]:
        """Of helm."""
        repository, _, tag = self.image.partition(":")
        return ("--set", f"image.repository={repository}", "--set", f"image.tag={tag}")
