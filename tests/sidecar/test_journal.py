"""The journal: what was appended and not acknowledged is there after any crash, and a full disk loses nothing."""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from agentserving_sidecar.journal import (
    Journal,
    JournalFullError,
    JournalInUseError,
    JournalUnavailableError,
    NewerFormatError,
)
from agentserving_sidecar.journal.reserve import RESERVE_BYTES
from hypothesis import given, settings
from hypothesis import strategies as st
from sidecar.journals import FILE, Opener, after_kill, ids, opener, record, records

__all__ = ["opener"]


# -- crashes -------------------------------------------------------------------------------------------------------


def test_unacknowledged_records_their_boots_and_their_numbers_survive_a_kill(tmp_path: Path, opener: Opener) -> None:
    journal = opener(tmp_path / "j")
    first = journal.append("boot-1", [record("a"), record("b")])
    journal.append("boot-2", [record("c")])
    journal.ack(first[-1].seq)
    again = opener(after_kill(tmp_path / "j"))
    assert [(e.seq, e.boot_id, e.record) for e in again.entries()] == [(3, "boot-2", record("c"))]
    assert again.append("boot-2", [record("d")])[0].seq == 4


def test_numbers_count_up_although_everything_was_acknowledged(tmp_path: Path, opener: Opener) -> None:
    journal = opener(tmp_path / "j")
    last = journal.append("b", records(7))[-1].seq
    journal.ack(last)
    journal.close()
    again = opener(tmp_path / "j")
    assert again.last_unacked == 0
    assert again.append("b", [record("next")])[0].seq == last + 1


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_after_any_sequence_of_appends_acknowledgements_and_kills_the_journal_is_as_confirmed(seed: int) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, ExitStack() as files:
        directory = Path(name) / "j"
        journal = files.enter_context(closing(Journal(directory)))
        confirmed: dict[int, str] = {}
        for number in range(dice.randint(1, 20)):
            for entry in journal.append("b", [record(f"{number}-{i}") for i in range(dice.randint(1, 3))]):
                confirmed[entry.seq] = entry.record.call_id
            if dice.random() < 0.3:
                upto = dice.choice(sorted(confirmed) or [0])
                journal.ack(upto)
                confirmed = {seq: call for seq, call in confirmed.items() if seq > upto}
            if dice.random() < 0.3:
                directory = after_kill(directory)
                journal = files.enter_context(closing(Journal(directory)))
            assert {entry.seq: entry.record.call_id for entry in journal.entries()} == confirmed


def test_a_torn_write_at_the_end_loses_nothing_that_was_confirmed(tmp_path: Path, opener: Opener) -> None:
    opener(tmp_path / "j").append("b", records(3))
    copy = after_kill(tmp_path / "j")
    with (copy / f"{FILE}-wal").open("ab") as wal:
        wal.write(os.urandom(5000))
    again = opener(copy)
    assert ids(again) == ["p.1.0", "p.1.1", "p.1.2"]
    again.append("b", [record("after")])
    assert ids(opener(after_kill(copy)))[-1] == "after"


def test_a_second_journal_on_the_same_directory_is_refused_until_the_first_is_closed(
    tmp_path: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentserving_sidecar.journal.database.LOCK_TIMEOUT_S", 0.1)
    journal = opener(tmp_path / "j")
    journal.append("b", records(1))
    with pytest.raises(JournalInUseError, match="--state-dir"):
        Journal(tmp_path / "j")
    code = "import pathlib, sys; from agentserving_sidecar import journal; journal.Journal(pathlib.Path(sys.argv[1]))"
    other = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "j")], capture_output=True, text=True, timeout=60, check=False
    )
    assert "JournalInUseError" in other.stderr
    journal.close()
    assert ids(opener(tmp_path / "j")) == ["p.1.0"]


# -- damaged files -------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_set_aside_and_the_journal_works(tmp_path: Path, opener: Opener) -> None:
    (tmp_path / FILE).write_bytes(b"no database at all\n" * 1000)
    journal = opener(tmp_path)
    journal.append("b", records(2))
    assert ids(opener(after_kill(tmp_path))) == ["p.1.0", "p.1.1"]
    assert [path.read_bytes()[:11] for path in tmp_path.glob(f"{FILE}.damaged-*")] == [b"no database"]


def test_files_set_aside_are_few(tmp_path: Path) -> None:
    for _ in range(6):
        (tmp_path / FILE).write_bytes(b"no database at all\n" * 1000)
        Journal(tmp_path).close()
    assert len(list(tmp_path.glob(f"{FILE}.damaged-*"))) == 3


def test_what_can_be_read_of_a_damaged_file_is_kept(tmp_path: Path, opener: Opener) -> None:
    journal = opener(tmp_path / "j")
    journal.append("b", records(2000))
    journal.close()
    data = bytearray((tmp_path / "j" / FILE).read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 4096] = bytes(4096)
    (tmp_path / "j" / FILE).write_bytes(data)
    recovered = opener(tmp_path / "j")
    assert 1900 < len(recovered.unacked) < 2000
    assert ids(recovered)[0] == "p.1.0"
    assert ids(recovered)[-1] == "p.1.1999"
    assert recovered.append("b", [record("next")])[0].seq == 2001
    assert ids(opener(after_kill(tmp_path / "j")))[-1] == "next"


def test_a_flipped_bit_in_a_record_is_noticed_and_costs_that_record_alone(tmp_path: Path, opener: Opener) -> None:
    journal = opener(tmp_path / "j")
    journal.append("b", [record("first"), record("second"), record("third")])
    journal.close()
    path = tmp_path / "j" / FILE
    data = bytearray(path.read_bytes())
    data[data.index(b"second")] ^= 0x01
    path.write_bytes(data)
    recovered = opener(tmp_path / "j")
    assert ids(recovered) == ["first", "third"]
    assert recovered.corrupt_records == 1


@pytest.mark.parametrize("use", ["append", "acknowledge"])
def test_a_file_that_is_damaged_while_it_is_open_is_replaced_from_memory(
    tmp_path: Path, opener: Opener, use: str
) -> None:
    journal = opener(tmp_path / "j")
    journal.append("b", records(2000))
    assert journal._db is not None
    journal._db.checkpoint()
    journal._db._db.execute("PRAGMA shrink_memory")
    path = tmp_path / "j" / FILE
    path.write_bytes(path.read_bytes()[:4096] + os.urandom(path.stat().st_size - 4096))
    if use == "append":
        journal.append("b", records(100, 2000))
    else:
        journal.ack(1000)
    assert list(tmp_path.glob(f"j/{FILE}.damaged-*"))
    expected = ids(journal)
    assert len(expected) == (2100 if use == "append" else 1000)
    assert ids(opener(after_kill(tmp_path / "j"))) == expected


# -- limits --------------------------------------------------------------------------------------------------------


def test_a_journal_at_its_limit_refuses_instead_of_forgetting_and_takes_records_after_an_acknowledgement(
    tmp_path: Path, opener: Opener
) -> None:
    journal = opener(tmp_path, limit_bytes=400)
    entries = journal.append("b", records(5))
    with pytest.raises(JournalFullError):
        journal.append("b", [record("more")])
    assert len(journal.unacked) == 5
    journal.ack(entries[-1].seq)
    journal.append("b", [record("more")])
    assert ids(opener(after_kill(tmp_path))) == ["more"]


def test_a_directory_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text("99\n")
    with pytest.raises(NewerFormatError, match="upgrade"):
        Journal(tmp_path)


# -- a full disk ---------------------------------------------------------------------------------------------------


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """Writes beyond this size of a file fail in the middle, as on a disk that becomes full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_write_that_fails_in_the_middle_of_a_batch_leaves_nothing_behind(tmp_path: Path, opener: Opener) -> None:
    journal = opener(tmp_path / "j")
    journal.append("b", records(10))
    size = max(path.stat().st_size for path in (tmp_path / "j").glob("journal*"))
    with file_size_limit(size + 9000), pytest.raises(JournalUnavailableError):
        journal.append("b", records(200, 10))
    assert ids(opener(after_kill(tmp_path / "j"))) == ids(journal) == [f"p.1.{n}" for n in range(10)]
    journal.append("b", records(200, 10))
    journal.append("b", records(10, 210))
    assert ids(opener(after_kill(tmp_path / "j"))) == [f"p.1.{n}" for n in range(220)]


class SmallDisk:
    """A file system of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Another process uses the space that is left, to the last page."""
        file = os.open(self.path / "other", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        try:
            for size in (65536, 4096, 1):
                try:
                    while True:
                        os.write(file, b"x" * size)
                except OSError:
                    continue
        finally:
            os.close(file)

    def free(self) -> None:
        """The other process frees its space."""
        (self.path / "other").unlink()

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "journal-test", str(path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill_with_records(journal: Journal, batch: int = 50) -> list[int]:
    """Appends until the disk is full; gives the numbers that were confirmed."""
    confirmed: list[int] = []
    for number in itertools.count(0, batch):
        try:
            confirmed += [entry.seq for entry in journal.append("b", records(batch, number))]
        except JournalUnavailableError:
            return confirmed
    raise AssertionError("unreachable")


def test_a_disk_full_of_records_keeps_all_of_them_and_acknowledgements_free_its_space(
    tmp_path: Path, disk: SmallDisk, opener: Opener
) -> None:
    journal = opener(disk.path / "j")
    confirmed = fill_with_records(journal)
    disk.fill()
    assert disk.free_bytes == 0
    shutil.copytree(disk.path / "j", tmp_path / "killed")
    assert list(opener(tmp_path / "killed").unacked) == confirmed
    journal.ack(confirmed[len(confirmed) // 2])
    assert disk.free_bytes > 500_000
    more = fill_with_records(journal)
    assert len(more) > 1000
    left = [*confirmed[len(confirmed) // 2 + 1 :], *more]
    shutil.copytree(disk.path / "j", tmp_path / "killed-2")
    assert list(opener(tmp_path / "killed-2").unacked) == list(journal.unacked) == left
    disk.fill()
    journal.ack(left[-1])
    assert not journal.unacked
    assert disk.free_bytes > 1_000_000


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_a_disk_that_others_have_filled_refuses_records_and_takes_acknowledgements(
    disk: SmallDisk, opener: Opener, batch: int
) -> None:
    journal = opener(disk.path / "j")
    first = journal.append("b", records(3000))
    disk.fill()
    confirmed = [entry.seq for entry in first] + fill_with_records(journal, batch)
    journal.ack(confirmed[1500])
    journal.ack(confirmed[-2])
    assert list(journal.unacked) == confirmed[-1:]
    # Room has been made: in the file, and on the disk.
    journal.append("b", records(100, 10_000))
    disk.free()
    assert len(journal.append("b", records(200, 20_000))) == 200


def test_a_journal_is_opened_while_the_disk_is_full(tmp_path: Path, disk: SmallDisk) -> None:
    with closing(Journal(disk.path / "j")) as journal:
        confirmed = fill_with_records(journal)
        shutil.copytree(disk.path / "j", tmp_path / "killed")
    shutil.rmtree(disk.path / "j")
    shutil.copytree(tmp_path / "killed", disk.path / "j")
    disk.fill()
    with closing(Journal(disk.path / "j")) as journal:
        assert list(journal.unacked) == confirmed
        journal.ack(confirmed[-1])
        assert disk.free_bytes > 500_000
        assert journal.append("b", records(10))[0].seq == confirmed[-1] + 1


def test_a_new_journal_on_a_full_disk_waits_for_space(disk: SmallDisk) -> None:
    (disk.path / "j").mkdir()
    disk.fill()
    with closing(Journal(disk.path / "j")) as journal:
        with pytest.raises(JournalUnavailableError):
            journal.append("b", records(1))
        disk.free()
        assert journal.append("b", records(2))[-1].seq == 2


def test_the_reserve_is_more_than_the_largest_write_ahead_log(tmp_path: Path, disk: SmallDisk, opener: Opener) -> None:
    journal = opener(disk.path / "j")
    fill_with_records(journal, batch=200)
    wal = (disk.path / "j" / f"{FILE}-wal").stat().st_size
    assert wal < RESERVE_BYTES == (disk.path / "j" / "reserve").stat().st_size
