"""The keys of a one-machine cluster: those of its user, made once; tokens of its parts and certificates of its etcd,
new at each start.

All texts are in files that only the user may read, under `keys/` in the state directory; the control plane gets their
hashes (`bootstrap.json`). `agentserving` reads the administrator's key from there.
"""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from agentserving.contract.identity import Role
from agentserving.contract.keys import KeyRow, decode_rows, encode_rows, hash_of, new_key, parse

from agentserving_cli.local.etcd_certificates import EtcdCertificates
from agentserving_cli.local.whole_files import write_whole

# The tenant of this machine's user; administrators' commands show it by default.
TENANT = "default"
_DIRECTORY, _ROWS, _ETCD = "keys", "bootstrap.json", "etcd"
_USERS = {"client": (Role.CLIENT, TENANT), "admin": (Role.ADMIN, "")}
_PARTS = {"gateway": (Role.GATEWAY, ""), "sidecar": (Role.SIDECAR, "")}


class Credentials:
    """Files of one state directory. `make` first."""

    def __init__(self, home: Path) -> None:
        self._home = home / _DIRECTORY

    @property
    def bootstrap_file(self) -> Path:
        """Rows for --bootstrap-keys."""
        return self._home / _ROWS

    @property
    def metrics_token(self) -> Path:
        """What readers of metrics send as a bearer token."""
        return self._home / "metrics.token"

    @property
    def etcd(self) -> EtcdCertificates:
        """Of etcd and of the control planes, its only clients."""
        return EtcdCertificates(self._home / _ETCD)

    def file(self, name: str) -> Path:
        """The key of `client` or `admin`, the token of `gateway` or `sidecar`."""
        return self._home / f"{name}.key"

    def read(self, name: str) -> str:
        """A key's text. OSError."""
        return self.file(name).read_text().strip()

    def make(self, now_unix_s: Callable[[], float] = time.time) -> None:
        """Creates missing keys, and new tokens of parts at each start. OSError."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = self._known()
        rows = [known.get(name) or self._new(name, *of, now_unix_s()) for name, of in _USERS.items()]
        rows += [self._new(name, *of, now_unix_s()) for name, of in _PARTS.items()]
        write_whole(self.bootstrap_file, encode_rows(rows))
        if not self.metrics_token.exists():
            write_whole(self.metrics_token, f"{secrets.token_urlsafe(32)}\n".encode())
        self.etcd.make(write_whole, datetime.datetime.fromtimestamp(now_unix_s(), datetime.UTC))

    def _known(self) -> dict[str, KeyRow]:
        """The user's keys whose text and row fit together. A user who deletes a file gets a new key."""
        try:
            rows = {row.key_id: row for row in decode_rows(self.bootstrap_file.read_bytes())}
        except (OSError, ValueError):
            return {}
        found = {}
        for name, (role, _) in _USERS.items():
            text = self.read(name) if self.file(name).exists() else ""
            row = rows.get(parse(text) or "")
            if row is not None and row.role is role and row.sha256 == hash_of(text):
                found[name] = row
        return found

    def _new(self, name: str, role: Role, tenant: str, now_unix_s: float) -> KeyRow:
        made = new_key(role, tenant, f"agentserving up: {name}" if role in (Role.CLIENT, Role.ADMIN) else "",
                       now_unix_s=now_unix_s)  # fmt: skip
        write_whole(self.file(name), f"{made.text}\n".encode())
        return made.row
