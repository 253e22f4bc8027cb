"""The cluster's directory: its owner, its format version, and where things are in it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path
from typing import IO, Any

from agentserving.contract.signatures import public_bytes

from agentserving_cli.local.whole_files import write_whole

STATE_VERSION = 1
# sun_path takes 108 bytes with its end; "/picker.sock" follows.
MAX_SOCKET_DIR_BYTES = 90


class StateDirError(RuntimeError):
    """The state directory cannot be used: in use, not writable, or of a newer version."""


class StateDir:
    """`claim` before use, `release` at the end."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self._lock: IO[str] | None = None

    def claim(self) -> None:
        """Takes exclusive ownership. StateDirError says what to do."""
        try:
            self._claim()
        except OSError as error:
            raise StateDirError(
                f"the state directory {self.home} cannot be used: {error.strerror or error}"
                f"{f' ({error.filename})' if error.filename else ''}. Name another one with --state-dir"
            ) from error
        except StateDirError:
            if self._lock is not None:
                self._lock.close()
                self._lock = None
            raise

    def _claim(self) -> None:
        # Logs and journals have ids of programs: for its user alone.
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = (self.home / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = read_addresses(self.home).get("pid")
            raise StateDirError(
                f"{self.home} is in use by another cluster{f' (process {pid})' if pid else ''}: end that one, "
                f"or give this one a --state-dir of its own"
            ) from None
        self._check_version()
        (self.home / "cluster.json").unlink(missing_ok=True)
        (self.home / "logs").mkdir(exist_ok=True, mode=0o700)
        for signer in ("ticket", "gateway"):
            self._ensure_key(self.home / f"{signer}.key")

    @staticmethod
    def _ensure_key(key: Path) -> None:
        """A secret that signs tickets, and the public key by which engines verify them."""
        if not key.exists():
            write_whole(key, secrets.token_bytes(32))
        write_whole(key.with_suffix(".pub"), public_bytes(key.read_bytes()))

    def _check_version(self) -> None:
        path = self.home / "VERSION"
        text = path.read_text().strip() if path.exists() else str(STATE_VERSION)
        if not text.isdigit():
            raise StateDirError(f"{path} holds {text[:20]!r}, not a version: this is not a directory of ours")
        if int(text) > STATE_VERSION:
            raise StateDirError(
                f"{self.home} was written by a newer agentserving (format {text}, this one knows {STATE_VERSION}): "
                f"use the newer one, or another --state-dir"
            )
        write_whole(path, f"{STATE_VERSION}\n".encode())

    def socket_dir(self, component: str) -> Path:
        """Directory of a component's Unix sockets, whose paths must be short. StateDirError: somebody else owns it."""
        path = self.home / component
        if len(os.fsencode(path)) > MAX_SOCKET_DIR_BYTES:
            _own(self._short_home)
            path = self._short_home / component
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    @property
    def _short_home(self) -> Path:
        """For sockets, when the directory's own path is too long."""
        name = hashlib.sha256(os.fsencode(self.home)).hexdigest()[:16]
        parent = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        return Path(parent) / f"agentserving-{os.getuid()}-{name}"

    def write_addresses(self, document: dict[str, Any]) -> None:
        """Writes cluster.json, by which other commands find the cluster."""
        write_whole(self.home / "cluster.json", f"{json.dumps(document, indent=2)}\n".encode())

    def release(self) -> None:
        """Gives up ownership."""
        if self._lock is not None:
            (self.home / "cluster.json").unlink(missing_ok=True)
            shutil.rmtree(self._short_home, ignore_errors=True)
            self._lock.close()
            self._lock = None


def _own(path: Path) -> None:
    """Makes a directory whose name others can guess, in a parent that others may write to. StateDirError: it is there
    and belongs to somebody else, who would stand between the processes of this cluster."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StateDirError(
            f"{path}, where sockets of this cluster would be, is open to other users or belongs to one: remove it, or "
            f"give the cluster a --state-dir with a shorter path"
        )


def read_addresses(home: Path) -> dict[str, Any]:
    """The content of cluster.json; {} when there is none, or none that can be read."""
    try:
        found = json.loads((home / "cluster.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def is_claimed(home: Path) -> bool:
    """True while a running cluster owns the directory."""
    try:
        with (home / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
