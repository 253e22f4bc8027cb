"""The batch service's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

BATCHES = Gauge("agentserving_batches", "Batches that are stored", ["status"])
LINES = Counter("agentserving_batch_lines_total", "Lines of batches with a result", ["result"])
RETRIES = Counter(
    "agentserving_batch_retries_total", "Calls of batches made again, by status; 0 = no answer", ["status"]
)
CALLS = Gauge("agentserving_batch_calls", "Calls of batches in progress, those that wait for another try included")
FILES = Gauge("agentserving_batch_files", "Files that are stored")
FILE_BYTES = Gauge("agentserving_batch_file_bytes", "Bytes of the files that are stored")
FREE_BYTES = Gauge("agentserving_batch_disk_free_bytes", "Bytes free on the disk of files")
REFUSED = Counter("agentserving_batch_refused_requests_total", "Requests for files and batches refused", ["code"])
