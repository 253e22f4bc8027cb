"""Journals of the first format are read once, whatever happens meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path

from sidecar.journals import Opener, after_kill, ids, opener, record

__all__ = ["opener"]


OLD = Path(__file__).parent / "journal_format_1"


def test_a_journal_of_the_first_format_is_migrated_once(tmp_path: Path, opener: Opener) -> None:
    shutil.copytree(OLD, tmp_path / "j")
    journal = opener(tmp_path / "j")
    assert [(e.seq, e.boot_id, e.record.call_id) for e in journal.entries()] == [
        (3, "boot-1", "p.1.2"), (4, "boot-2", "p.1.3"), (5, "boot-2", "p.1.4")
    ]  # fmt: skip
    last = journal.entries()[-1].record
    assert (last.service_us, last.level, last.output_tokens, last.outcome) == (4000, 2, 44, "completed")
    journal.ack(4)
    killed = after_kill(tmp_path / "j")
    again = opener(killed)
    assert ids(again) == ["p.1.4"]
    assert again.append("boot-3", [record("next")])[0].seq == 6
    assert not list(killed.glob("*.seg"))
    assert (killed / "FORMAT").read_text() == "2\n"


def test_a_migration_that_was_interrupted_is_finished(tmp_path: Path, opener: Opener) -> None:
    shutil.copytree(OLD, tmp_path / "j")
    opener(tmp_path / "j").close()
    # The copy was complete, but the old files were still there when the process was killed.
    for path in OLD.iterdir():
        shutil.copy(path, tmp_path / "j")
    assert ids(opener(tmp_path / "j")) == ["p.1.2", "p.1.3", "p.1.4"]


def test_damage_in_the_first_format_is_counted(tmp_path: Path, opener: Opener) -> None:
    shutil.copytree(OLD, tmp_path / "j")
    (segment,) = (tmp_path / "j").glob("*.seg")
    data = bytearray(segment.read_bytes())
    data[-5] ^= 0xFF
    segment.write_bytes(data)
    journal = opener(tmp_path / "j")
    assert ids(journal) == ["p.1.2", "p.1.3"]
    assert journal.corrupt_records == 1
