"""/v1/files and /v1/batches: `server` (who asks, errors), `files` and `batches` (the requests), `upload` (a body)."""
