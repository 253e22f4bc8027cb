"""Waits for a snapshot of etcd, and makes room for what is restored from it: the init container of a restore's pod.

`kubectl agentserving render restore` prints that pod. The snapshot is copied in while this program runs, and etcd's own
`etcdutl` restores it afterwards, which needs a directory that does not exist.
"""

from __future__ import annotations

import fcntl
import hashlib
import sys
import time
from pathlib import Path

EVERY_S = 1.0
_CHUNK_BYTES = 1 << 20


class EtcdRunsError(Exception):
    """An etcd has the data open."""


def is_whole(snapshot: Path) -> bool:
    """Whether all of it is there: etcd appends the SHA-256 to a database of whole sectors."""
    hashed = hashlib.sha256()
    size = snapshot.stat().st_size if snapshot.exists() else 0
    if size % 512 != hashed.digest_size:
        return False
    with snapshot.open("rb") as file:
        left = size - hashed.digest_size
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            hashed.update(chunk)
            left -= len(chunk)
        return file.read() == hashed.digest()


def move_away(data_dir: Path) -> Path | None:
    """Renames the data of before, which are kept; returns where they are, None if there were none. EtcdRunsError."""
    if not data_dir.exists():
        return None
    database = data_dir / "member" / "snap" / "db"
    if database.exists():
        with database.open("rb+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise EtcdRunsError(f"an etcd is running on {data_dir}: scale its StatefulSet to 0 first") from error
    kept = data_dir.with_name(f"{data_dir.name}.before-{time.time_ns()}")
    data_dir.rename(kept)
    return kept


def main(argv: list[str]) -> int:
    """`received_snapshot SNAPSHOT DATA-DIR`: 0 when the snapshot is there and the directory is not."""
    snapshot, data_dir = map(Path, argv)
    print(f"waiting for the snapshot: copy it to {snapshot}", file=sys.stderr, flush=True)
    while not is_whole(snapshot):
        time.sleep(EVERY_S)
    try:
        kept = move_away(data_dir)
    except EtcdRunsError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"the data of before: {kept or 'none'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
