"""The journal: what was appended and not acknowledged is there after any crash."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from agentserving.contract.channel import CallRecord, Load
from agentserving_sidecar.journal import Journal, JournalFullError, NewerFormatError
from agentserving_sidecar.progress_probe import Progress
from hypothesis import given, settings
from hypothesis import strategies as st

Opener = Callable[..., Journal]


@pytest.fixture
def opener() -> Iterator[Opener]:
    """Opens journals as restarts after a kill do (nothing of the one before is asked), and closes their files."""
    with ExitStack() as files:
        yield lambda *args, **kwargs: files.enter_context(closing(Journal(*args, **kwargs)))


def record(name: str) -> CallRecord:
    return CallRecord(
        call_id=name, attempt=1, program_id="p", root_program_id="p", tenant="default", thread_id="",
        attained_service_us=0, service_us=5, outcome="completed",
    )  # fmt: skip


def ids(journal: Journal) -> list[str]:
    return [entry.record.call_id for entry in journal.unacked.values()]


def test_unacknowledged_records_and_their_numbers_survive(tmp_path: Path, opener: Opener) -> None:
    journal = opener(tmp_path)
    first = journal.append("boot", [record("a"), record("b")])
    journal.append("boot", [record("c")])
    journal.ack(first[-1].seq)
    again = opener(tmp_path)
    assert ids(again) == ["c"]
    assert again.append("boot", [record("d")])[0].seq > journal.unacked.popitem()[0]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_a_torn_tail_loses_only_what_was_never_confirmed(seed: int) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as name, ExitStack() as files:
        directory = Path(name)
        journal = files.enter_context(closing(Journal(directory)))
        confirmed: dict[int, str] = {}
        for number in range(dice.randint(1, 20)):
            for entry in journal.append("b", [record(f"{number}-{i}") for i in range(dice.randint(1, 3))]):
                confirmed[entry.seq] = entry.record.call_id
            if dice.random() < 0.3:
                upto = dice.choice(sorted(confirmed) or [0])
                journal.ack(upto)
                confirmed = {seq: call for seq, call in confirmed.items() if seq > upto}
            if dice.random() < 0.2:
                journal.close()
                journal = files.enter_context(closing(Journal(directory)))
        with journal._path.open("ab") as torn:
            torn.write(bytes(dice.randrange(256) for _ in range(dice.randint(0, 12))))
        recovered = files.enter_context(closing(Journal(directory)))
        assert {seq: e.record.call_id for seq, e in recovered.unacked.items()} == confirmed


def test_what_follows_a_torn_first_record_is_not_lost(tmp_path: Path, opener: Opener) -> None:
    with opener(tmp_path)._path.open("ab") as torn:
        torn.write(b"\0\0\0\x40half")
    opener(tmp_path).append("b", [record("after")])
    assert ids(opener(tmp_path)) == ["after"]


def test_a_corrupt_record_is_counted_and_ends_its_segment(tmp_path: Path, opener: Opener) -> None:
    journal = opener(tmp_path)
    journal.append("b", [record("a")])
    size = journal._path.stat().st_size
    journal.append("b", [record("x")])
    data = bytearray(journal._path.read_bytes())
    data[size + 10] ^= 0xFF
    journal._path.write_bytes(data)
    recovered = opener(tmp_path)
    assert ids(recovered) == ["a"]
    assert recovered.corrupt_frames == 1


def test_a_full_journal_refuses_instead_of_forgetting(tmp_path: Path, opener: Opener) -> None:
    journal = opener(tmp_path, limit_bytes=100)
    journal.append("b", [record(f"{i}") for i in range(5)])
    with pytest.raises(JournalFullError):
        journal.append("b", [record("more")])
    assert len(journal.unacked) == 5


def test_a_directory_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text("99\n")
    with pytest.raises(NewerFormatError, match="upgrade"):
        Journal(tmp_path)


@pytest.mark.parametrize(
    ("load", "stuck"),
    [
        (None, False),
        (Load(running=1, last_step_age_us=6_000_000), True),
        (Load(running=0, waiting=3, last_step_age_us=6_000_000), False),
        (Load(running=1, last_step_age_us=1_000_000), False),
    ],
)
def test_an_engine_is_stuck_when_calls_run_and_no_step_ends(load: Load | None, stuck: bool) -> None:
    assert Progress().is_stuck(load) is stuck
