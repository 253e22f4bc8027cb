"""Downloads a model from S3 into the cache's volume: the init container `model` of engine pods with model.source.s3.

A URI names one version of a model. Its files are in a directory of their own, which gets its name when all of them are
there: engines that start again connect to no server, and of engines that share a volume one downloads while the others
wait for its lock. After an interruption complete files stay, and the others are fetched again.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from agentserving_operator.model_path import directory_of

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

# A file is fetched in parts, so many in parallel: 256 MiB of memory. Each part is tried again by the library.
PARALLEL, PART_BYTES = 16, 16 << 20
# For a part, and without a byte. A model of 100 GB must arrive over 10 Mbit/s, too; the library's 30 s are for more.
PART_TIMEOUT, READ_TIMEOUT = timedelta(minutes=10), timedelta(minutes=1)
# Of a file that is not complete.
PARTIAL = ".partial"


class DownloadError(Exception):
    """The model cannot be downloaded."""


class Remote(NamedTuple):
    """An object: its key in the bucket and its length in bytes."""

    key: str
    size: int


def objects_below(store: S3Store, prefix: str) -> dict[PurePosixPath, Remote]:
    """The objects by the files that they become, below the model's directory. Raises DownloadError without any.

    The library refuses keys that would lead out of the directory.
    """
    found = {}
    for page in obstore.list(store, prefix or None):
        for each in page:
            if each["path"] != prefix:
                path = PurePosixPath(each["path"].removeprefix(f"{prefix}/"))
                found[path] = Remote(each["path"], each["size"])
    # Consoles create directories as empty objects, which other objects lie below.
    for directory in {parent for path in found for parent in path.parents}:
        found.pop(directory, None)
    if not found:
        raise DownloadError("there are no objects")
    return found


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other engine that shares the volume downloads the same version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another engine downloads the model: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove_others(place: Path, wanted: Mapping[PurePosixPath, Remote]) -> int:
    """Deletes what an interrupted download has left and is not a complete file; the bytes that stay."""
    stay = 0
    for path in [each for each in place.rglob("*") if each.is_file()]:
        remote = wanted.get(PurePosixPath(path.relative_to(place)))
        if remote is None or path.stat().st_size != remote.size:
            path.unlink()
        else:
            stay += remote.size
    return stay


def fetch_file(store: S3Store, remote: Remote, path: Path) -> None:
    """Writes the object into the file. It gets its name when it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)

    def part(start: int) -> None:
        length = min(PART_BYTES, remote.size - start)
        data = memoryview(obstore.get_range(store, remote.key, start=start, length=length))
        if len(data) != length:
            raise DownloadError(f"{remote.key}: {len(data)} bytes came instead of {length}")
        while data:
            written = os.pwrite(file, data, start)
            data, start = data[written:], start + written

    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    try:
        # Also after an error, no part is written once the file is closed.
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(part, range(0, remote.size, PART_BYTES)))
        os.fsync(file)
    finally:
        os.close(file)
    partial.rename(path)


def fetch(store: S3Store, prefix: str, place: Path) -> None:
    """Downloads all objects below the prefix into `place`. Raises DownloadError, OSError, BaseError (the library's)."""
    objects = objects_below(store, prefix)
    place.mkdir(parents=True, exist_ok=True)
    needed = sum(remote.size for remote in objects.values()) - remove_others(place, objects)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise DownloadError(f"{_gb(needed)} are needed, and the volume has {_gb(free)} left: see model.cache.size")
    for number, (name, remote) in enumerate(sorted(objects.items()), 1):
        if not (place / name).exists():
            _say(f"{name}, {_gb(remote.size)} ({number} of {len(objects)})")
            fetch_file(store, remote, place / name)


def download(store: S3Store, prefix: str, target: Path) -> bool:
    """Makes `target` the directory with the model's files; False if it was there. Raises as `fetch` does."""
    with locked(target.with_name(f"{target.name}.lock")):
        if target.exists():
            return False
        place = target.with_name(target.name + PARTIAL)
        fetch(store, prefix, place)
        place.rename(target)
    return True


def connect(bucket: str, endpoint: str, region: str) -> S3Store:
    """Credentials come from the environment, as platforms hand them out to pods. Raises BaseError, ValueError."""
    config: S3Config = {}
    if endpoint:
        config["endpoint"] = endpoint
    if region:
        config["region"] = region
    options: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "timeout": PART_TIMEOUT,
        "read_timeout": READ_TIMEOUT,
    }
    return S3Store(bucket, config=config, client_options=options)


def reason_of(error: Exception) -> str:
    """One line. Of what the library adds for its developers, only why there is no connection: that is said nowhere
    else."""
    text, _, details = str(error).partition("Debug source")
    cause = details.rpartition("client::legacy::Error(")[2] if "client::legacy::Error(" in details else ""
    return " ".join(f"{text} {cause}".split()).rstrip(" ,(){}")


def main(argv: Sequence[str]) -> int:
    """Returns 0 when the files are there. The last line says why not: the container's status quotes it."""
    parser = argparse.ArgumentParser(prog="model_download", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--uri", required=True, help="s3://bucket/prefix")
    parser.add_argument("--endpoint", default="", help="URL of a server that is not AWS's")
    parser.add_argument("--region", default="", help="the bucket's region")
    parser.add_argument("--root", required=True, help="directory of the cache's volume")
    given = parser.parse_args(argv)
    # Process 1 of a container ignores signals without a handler. The next attempt completes what was begun.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: os._exit(128 + received))
    address = urlsplit(given.uri)
    try:
        store = connect(address.netloc, given.endpoint, given.region)
        target = Path(directory_of(given.root, given.uri, given.endpoint))
        _say("complete" if download(store, address.path.strip("/"), target) else "the files are there")
    except (DownloadError, OSError, ValueError, BaseError) as error:
        _say(f"cannot download {given.uri}: {reason_of(error)}")
        return 1
    return 0


def _gb(size: int) -> str:
    return f"{size / 1e9:.3f} GB"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
