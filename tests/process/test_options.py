"""Flags and environment variables become typed, checked, frozen values; a mistake is one line that names its place."""

from __future__ import annotations

import enum
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest
from agentserving_process.options import REQUIRED, option, parse


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Serving clients"""

    listen: str = option("127.0.0.1:1", "address")
    drain_s: float = option(30.0, "seconds", least=0)
    workers: int = option(2, "at most 100 %", above=0, most=64)
    fast: bool = option(False, "whether")
    names: tuple[str, ...] = option((), "names")
    colour: Colour = option(Colour.RED, "colour")
    store: str = option("memory", "store", choices=("memory", "etcd"))
    state_dir: Path | None = option(None, "directory")

    def __post_init__(self) -> None:
        if self.store == "etcd" and self.fast:
            raise ValueError("--fast: not with --store etcd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    serving: Serving
    key_file: Path = option(REQUIRED, "file")


def read(*argv: str, **environment: str) -> Settings:
    return parse(Settings, prog="prog", argv=["--key-file", "k", *argv], environment=environment)


def refused(capsys: pytest.CaptureFixture[str], *argv: str, **environment: str) -> str:
    with pytest.raises(SystemExit) as caught:
        read(*argv, **environment)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_defaults_need_neither_flags_nor_environment() -> None:
    settings = read()
    assert settings == Settings(serving=Serving(), key_file=Path("k"))
    with pytest.raises(FrozenInstanceError):
        settings.serving.listen = ""  # type: ignore[misc]


def test_each_type_is_read_from_a_flag() -> None:
    got = read("--drain-s=1.5", "--workers=3", "--fast=yes", "--names=a, b,", "--colour=blue", "--state-dir=/x").serving
    assert got == Serving(drain_s=1.5, workers=3, fast=True, names=("a", "b"), colour=Colour.BLUE, state_dir=Path("/x"))


def test_a_flag_wins_over_the_environment_and_that_over_the_default() -> None:
    assert read(AGENTSERVING_WORKERS="5").serving.workers == 5
    assert read("--workers=6", AGENTSERVING_WORKERS="5").serving.workers == 6


def test_an_empty_variable_counts_as_unset() -> None:
    assert read(AGENTSERVING_WORKERS="").serving.workers == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--drain-s=-1"], "prog: error: --drain-s: -1.0 is less than 0"),
        (["--drain-s=nan"], "prog: error: --drain-s: nan is not a finite number"),
        (["--drain-s=inf"], "prog: error: --drain-s: inf is not a finite number"),
        (["--drain-s=soon"], "prog: error: --drain-s: 'soon' is not a number"),
        (["--workers=0"], "prog: error: --workers: 0 is not greater than 0"),
        (["--workers=65"], "prog: error: --workers: 65 is greater than 64"),
        (["--workers=2.5"], "prog: error: --workers: '2.5' is not a whole number"),
        (["--fast=maybe"], "prog: error: --fast: 'maybe' is neither true nor false"),
        (["--colour=pink"], "prog: error: --colour: 'pink' is not one of red, blue"),
        (["--store=disk"], "prog: error: --store: 'disk' is not one of memory, etcd"),
        (["--store=etcd", "--fast=1"], "prog: error: --fast: not with --store etcd"),
        (["--work=3"], "prog: error: unrecognized arguments: --work=3"),
    ],
)
def test_a_bad_value_is_refused_with_the_flag_s_name(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert refused(capsys, *argv) == message


def test_a_bad_variable_is_refused_with_the_variable_s_name(capsys: pytest.CaptureFixture[str]) -> None:
    """argparse itself checks no default: a bad choice in the environment would pass unseen."""
    assert refused(capsys, AGENTSERVING_STORE="disk").startswith("prog: error: AGENTSERVING_STORE: 'disk' is not one")


def test_a_missing_option_names_flag_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Settings, prog="prog", argv=[], environment={})
    assert "--key-file is required (or the environment variable AGENTSERVING_KEY_FILE)" in capsys.readouterr().err


def test_help_names_variables_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Serving clients" in text
    assert "at most 100 % [AGENTSERVING_WORKERS; default: 2]" in text
    assert "file [AGENTSERVING_KEY_FILE; required]" in text
