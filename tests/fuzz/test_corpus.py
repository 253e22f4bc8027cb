"""Hostile bytes that were found once, at every door: no process ends, and no answer is an internal error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fuzz.targets import CORPUS, METHODS, TARGETS, Rpcs

FILES = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.fixture(scope="module", autouse=True)
def _clusters() -> Iterator[None]:
    yield
    rpcs = TARGETS["rpc"]
    assert isinstance(rpcs, Rpcs)
    rpcs.close()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_input_of_the_corpus_is_borne(name: str) -> None:
    inputs = [path for path in FILES if path.parent.name == name]
    assert inputs, f"no corpus of {name}"
    for path in inputs:
        try:
            TARGETS[name](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.relative_to(CORPUS)}: {error!r}") from error


def test_the_corpus_is_of_known_targets_and_small() -> None:
    assert {path.parent.name for path in FILES} == set(TARGETS)
    assert sum(path.stat().st_size for path in FILES) < 1 << 20
    assert max(path.stat().st_size for path in FILES) <= 8192


def test_the_corpus_has_every_method() -> None:
    first = {path.read_bytes()[0] % len(METHODS) for path in FILES if path.parent.name == "rpc" and path.stat().st_size}
    assert first == set(range(len(METHODS)))
