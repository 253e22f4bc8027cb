"""Where in the cache's volume a model from S3 is: what the download and the engine must agree about. Pure."""

from __future__ import annotations

import hashlib


def directory_of(root: str, uri: str, endpoint: str) -> str:
    """Each version of a model, which its URI names, has a directory of its own below the volume's `root`."""
    version = hashlib.sha256(f"{endpoint.rstrip('/')}\n{uri.rstrip('/')}".encode()).hexdigest()[:16]
    return f"{root}/s3/{version}"
