"""Gives an engine pod its own certificate out of those of all engines: the container `identity` of each engine pod.

All pods of a StatefulSet mount the same Secret. The containers that a stranger can reach, the sidecar and the engine,
must not see the keys of other engines; so this one alone mounts it, opens no port, and copies one certificate to a
volume in memory. It runs as long as the pod, because certificates are renewed meanwhile.

Three files belong together, so a new version has a directory of its own, to which `current` is switched. vLLM would
miss that: its watch follows a file's inode, and sees the first replacement only. For an engine that serves by TLS the
same files are in `served`, written in place. Standard library only, to be small: it runs next to every engine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

CURRENT, SERVED = "current", "served"
EVERY_S, SOON_S = 10.0, 1.0
CA, CERT, KEY = "ca.crt", "tls.crt", "tls.key"


def own_files(source: Path, engine_id: str) -> dict[str, bytes] | None:
    """The files of one engine; None while one is missing, as when an engine is new. OSError when one is unreadable."""
    places = {CA: source / CA, CERT: source / f"{engine_id}.crt", KEY: source / f"{engine_id}.key"}
    try:
        return {name: place.read_bytes() for name, place in places.items()}
    except FileNotFoundError:
        return None


def current_files(target: Path) -> dict[str, bytes]:
    """What `store` has stored last; empty at first."""
    place = target / CURRENT
    return {each.name: each.read_bytes() for each in place.iterdir()} if place.exists() else {}


def store(target: Path, files: Mapping[str, bytes]) -> None:
    """Replaces all files in one step, and deletes the version before last: readers may have opened the last one."""
    versions = sorted(int(each.name) for each in target.iterdir() if each.name.isdigit())
    number = versions[-1] + 1 if versions else 1
    new, link = target / str(number), target / "next"
    new.mkdir(mode=0o750)
    for name, data in files.items():
        with os.fdopen(os.open(new / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o440), "wb") as file:
            file.write(data)
    link.unlink(missing_ok=True)
    link.symlink_to(str(number))
    os.replace(link, target / CURRENT)
    for old in versions[:-1]:
        shutil.rmtree(target / str(old))


def write_in_place(place: Path, files: Mapping[str, bytes]) -> None:
    """Writes those that differ, each by one call, so that a reader hardly ever sees part of one. For a moment they may
    not fit each other: vLLM then logs an error, goes on with the former ones, and reads again after the next write."""
    place.mkdir(mode=0o750, exist_ok=True)
    for name, data in files.items():
        where = place / name
        if where.exists() and where.read_bytes() == data:
            continue
        with os.fdopen(os.open(where, os.O_WRONLY | os.O_CREAT, 0o640), "wb", buffering=0) as file:
            file.write(data)
            file.truncate(len(data))


def copy(source: Path, target: Path, engine_id: str) -> bool:
    """Copies the engine's files if they differ; True if it did. An engine that is gone from the Secret keeps its own:
    it may be draining."""
    # Twice: kubelet replaces the files of a Secret together, but we read them one by one.
    found = own_files(source, engine_id)
    if found is None or found != own_files(source, engine_id):
        return False
    write_in_place(target / SERVED, found)
    if found == current_files(target):
        return False
    store(target, found)
    return True


def main(argv: Sequence[str]) -> int:
    """Copies now and every EVERY_S seconds until SIGTERM. An error is printed and tried again."""
    parser = argparse.ArgumentParser(prog="engine_identity", description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--engine-id", required=True, help="name of the engine, as in the Secret")
    parser.add_argument("--source", required=True, type=Path, help="directory with all engines' certificates")
    parser.add_argument("--target", required=True, type=Path, help="directory for this engine's")
    parser.add_argument("--every-s", type=float, default=EVERY_S, help="seconds between looks")
    given = parser.parse_args(argv)
    stop = threading.Event()
    # Process 1 of a container ignores signals without a handler.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    said = ""
    while True:
        said, waits = _look(given, said)
        if stop.wait(min(SOON_S, given.every_s) if waits else given.every_s):
            return 0


def _look(given: argparse.Namespace, said: str) -> tuple[str, bool]:
    """Copies once. Returns the line that was printed last, and whether there is something to wait for."""
    try:
        copied = copy(given.source, given.target, given.engine_id)
        waits = not (given.target / CURRENT).exists()
        line = f"no certificate for {given.engine_id} in {given.source} yet: the operator writes it" if waits else ""
        line = f"the certificate of {given.engine_id} was copied" if copied else line
    except OSError as error:
        waits, line = True, f"cannot copy the certificate of {given.engine_id}: {error}"
    if line and line != said:
        print(line, file=sys.stderr, flush=True)
    return line, waits


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
