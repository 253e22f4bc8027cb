"""Keys are read again when their files change, and kept while the files cannot be read."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from agentserving.contract import ticket_keys
from agentserving.contract.signatures import public_bytes, signing_key
from agentserving.contract.ticket_keys import TicketKeys, signing_keys, verifying_keys

A, B, C = (letter * 16 for letter in (b"a", b"b", b"c"))


def long_enough(content: bytes) -> bytes:
    signing_key(content)
    return content


def secrets(path: Path) -> TicketKeys[bytes]:
    return TicketKeys(path, long_enough)


def eventually(keys: TicketKeys[bytes], wanted: tuple[bytes, ...]) -> None:
    deadline = time.monotonic() + 10
    while keys() != wanted:
        assert time.monotonic() < deadline, keys()
        time.sleep(0.01)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at each time."""
    monkeypatch.setattr(ticket_keys, "LOOK_EVERY_S", 0.0)


def test_a_file_by_itself_is_one_key(tmp_path: Path) -> None:
    (tmp_path / "ticket.key").write_bytes(A)
    (tmp_path / "next").write_bytes(B)
    assert secrets(tmp_path / "ticket.key")() == (A,)


def test_the_next_and_the_previous_one_verify(tmp_path: Path) -> None:
    for name, key in (("key", A), ("key.next", B), ("key.previous", C)):
        (tmp_path / name).write_bytes(key)
    assert secrets(tmp_path / "key")() == (A, B, C)


def test_files_that_change_are_read_in_a_moment(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(A)
    keys = secrets(tmp_path / "key")
    (tmp_path / "key.next").write_bytes(B)
    assert keys() == (A,)
    eventually(keys, (A, B))


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.unlink(), lambda path: path.write_bytes(b"short"), lambda path: path.write_bytes(b"")],
)
def test_what_cannot_be_read_stays_as_it_was(at_once: None, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "key"
    path.write_bytes(A)
    keys = secrets(path)
    spoil(path)
    assert keys() == (A,)
    path.write_bytes(B)
    assert keys() == (B,)


def test_a_key_that_is_missing_or_short_is_refused_at_the_start(tmp_path: Path) -> None:
    for read in (signing_keys, verifying_keys):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "key")
    (tmp_path / "key").write_bytes(b"short")
    with pytest.raises(ValueError, match="needs at least 16 bytes, has 5"):
        signing_keys(tmp_path / "key")
    with pytest.raises(ValueError, match="has 32 bytes, this has 5"):
        verifying_keys(tmp_path / "key")


def test_engines_read_the_public_keys_of_those_who_sign(tmp_path: Path) -> None:
    for name, content in (("key", A), ("key.next", B)):
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"public{name.removeprefix('key')}").write_bytes(public_bytes(content))
    signing, verifying = signing_keys(tmp_path / "key")(), verifying_keys(tmp_path / "public")()
    assert tuple(key.public_key() for key in signing) == verifying
