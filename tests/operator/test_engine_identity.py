"""An engine pod gets its own certificate out of those of all engines, whole, and again when it is renewed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from agentserving.transport.connection import Tls
from agentserving_operator.engine_identity import copy, current_files, main, store
from support.eventually import eventually

ME, OTHER = "demo-engine-1", "demo-engine-0"


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "all", tmp_path / "own"
    source.mkdir()
    target.mkdir()
    return source, target


def issue(source: Path, version: str, *engines: str) -> None:
    (source / "ca.crt").write_text(f"ca {version}")
    for each in engines:
        (source / f"{each}.crt").write_text(f"cert {each} {version}")
        (source / f"{each}.key").write_text(f"key {each} {version}")


def test_it_copies_the_engines_own_files_and_no_others(places: tuple[Path, Path]) -> None:
    source, target = places
    issue(source, "1", OTHER, ME)
    assert copy(source, target, ME)
    assert current_files(target) == {
        "ca.crt": b"ca 1", "tls.crt": f"cert {ME} 1".encode(), "tls.key": f"key {ME} 1".encode()
    }  # fmt: skip
    assert OTHER not in "".join(path.read_text() for path in target.rglob("*") if path.is_file())
    assert OTHER not in "".join(path.read_text() for path in (target / "served").iterdir())
    assert not copy(source, target, ME)
    key = target / "current" / "tls.key"
    assert key.stat().st_mode & 0o777 == 0o440


def test_an_engine_that_is_not_in_the_secret_waits_and_one_that_has_left_keeps_its_certificate(
    places: tuple[Path, Path],
) -> None:
    source, target = places
    issue(source, "1", OTHER)
    assert not copy(source, target, ME)
    assert current_files(target) == {}
    issue(source, "2", ME)
    assert copy(source, target, ME)
    (source / f"{ME}.key").unlink()
    assert not copy(source, target, ME)
    assert current_files(target)["ca.crt"] == b"ca 2"


def test_readers_never_see_files_of_two_versions(places: tuple[Path, Path]) -> None:
    source, target = places
    issue(source, "0", ME)
    copy(source, target, ME)
    current = target / "current"
    tls = Tls(ca=current / "ca.crt", cert=current / "tls.crt", key=current / "tls.key")
    # Each version is opened before it is replaced, and read after that.
    for number in range(1, 6):
        opened = [(current / name).open() for name in ("ca.crt", "tls.crt", "tls.key")]
        issue(source, str(number), ME)
        assert copy(source, target, ME)
        assert {each.read().split()[-1] for each in opened} == {str(number - 1)}
        for each in opened:
            each.close()
        pem = tls.read()
        assert [(each or b"").split()[-1] for each in (pem.ca, pem.cert, pem.key)] == [str(number).encode()] * 3
    # Old versions are deleted: the volume is in memory.
    assert len([each for each in target.iterdir() if each.name.isdigit()]) == 2


def test_an_engine_reads_them_in_place_whose_watch_follows_the_files_themselves(places: tuple[Path, Path]) -> None:
    source, target = places
    issue(source, "1 and longer than the next one", ME)
    copy(source, target, ME)
    files = [target / "served" / name for name in ("ca.crt", "tls.crt", "tls.key")]
    before = [each.stat().st_ino for each in files]
    for version in ("2", "3"):
        issue(source, version, ME)
        assert copy(source, target, ME)
        assert {each.read_text().split()[-1] for each in files} == {version}
    assert [each.stat().st_ino for each in files] == before
    assert files[2].stat().st_mode & 0o777 == 0o640
    # What was cut off is written again, even when nothing new has come.
    files[1].write_text("cert")
    assert not copy(source, target, ME)
    assert files[1].read_text() == f"cert {ME} 3"


def test_a_copy_that_broke_off_is_made_again(places: tuple[Path, Path]) -> None:
    source, target = places
    issue(source, "1", ME)
    (target / "1").mkdir()
    (target / "next").symlink_to("1")
    assert copy(source, target, ME)
    assert current_files(target)["ca.crt"] == b"ca 1"
    store(target, {"ca.crt": b"x"})
    assert current_files(target) == {"ca.crt": b"x"}


def test_the_process_follows_renewals_says_what_it_waits_for_and_ends_on_sigterm(places: tuple[Path, Path]) -> None:
    source, target = places
    argv = [
        sys.executable, "-m", "agentserving_operator.engine_identity", "--engine-id", ME, "--source", str(source),
        "--target", str(target), "--every-s", "0.05",
    ]  # fmt: skip
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        assert f"no certificate for {ME}" in process.stderr.readline()
        for version in ("1", "2"):
            issue(source, version, ME)
            eventually(
                lambda v=version: current_files(target).get("tls.key") == f"key {ME} {v}".encode(),  # type: ignore[misc]
                f"version {version} is copied",
            )
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_missing_flag_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--engine-id", ME])
    assert "--source" in capsys.readouterr().err
