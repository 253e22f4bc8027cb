"""Bounds of one batch service: flags, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from agentserving_process.options import option


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds"""

    # The gateway's bound of bodies is the same.
    max_file_bytes: int = option(64 << 20, "size of a file that is uploaded", least=1)
    # OpenAI's.
    max_lines: int = option(50_000, "lines of a batch", least=1)
    # Results of a long batch are larger than its input.
    tenant_bytes: int = option(2 << 30, "bytes of all files of a tenant; above, no uploads and no new batches", least=1)
    tenant_files: int = option(1000, "files of a tenant; above, no uploads and no new batches", least=1)
    tenant_batches: int = option(50, "batches of a tenant that have not ended", least=1)
    # Results of batches that run must find room.
    min_free_bytes: int = option(1 << 30, "bytes free on the disk; below, no uploads and no new batches", least=0)
    # Enough for several engines with dozens of slots each; engines order the calls.
    tenant_calls: int = option(32, "calls of a tenant's batches at a time", least=1)
    calls: int = option(256, "calls of all batches at a time", least=1)
    # OpenAI's for output files.
    keep_days: float = option(30.0, "days after which files, and batches that have ended, are deleted", above=0)

    @property
    def keep_s(self) -> int:
        return int(self.keep_days * 86400)


# Of one line of an input file. Several are in memory at a time.
MAX_LINE_BYTES = 8 << 20
# Of an engine's answer.
MAX_ANSWER_BYTES = 16 << 20
# Problems of an input file that are reported.
MAX_PROBLEMS = 100
# OpenAI's: pairs, and characters of their keys and values.
MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512
MAX_CUSTOM_ID = 512
MAX_FILE_NAME = 255
# Uploads of a tenant at a time, and of all: each may fill the disk by max_file_bytes before it is counted.
TENANT_UPLOADS, UPLOADS = 4, 32
