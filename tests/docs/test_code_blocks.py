"""Code blocks of the documentation: commands of ours exist with these options, specs are valid, and Python compiles.

What commands do is tried elsewhere: the five-minute start in tests/integration. A real API server accepts what the
operator accepts (e2e/cases), so specs are read by the operator here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
import yaml
from agentserving_cli.kube.main import main as kubectl_main
from agentserving_cli.main import main
from agentserving_operator.spec.cluster import ClusterSpec
from agentserving_operator.spec.parsing import parse as read_spec
from agentserving_operator.spec.tenant import TenantSpec
from docs.code_blocks import ALL, Block
from support.spec_samples import MINIMAL

PROGRAMS = {"agentserving": main, "kubectl agentserving": kubectl_main}
COMMANDS = [(block, words) for block in ALL for words in block.commands() if "..." not in words]
# Files that commands read; each is made before they are parsed.
FILES = ("tuesday.jsonl", "table.db", "FILE")


def parse(command: click.Command, words: Sequence[str], parent: click.Context | None = None) -> None:
    """Reads a command line as it would be run, and runs nothing. click.UsageError says what is wrong."""
    with command.make_context(command.name, list(words), parent=parent, allow_extra_args=True) as context:
        if isinstance(command, click.Group):
            _, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
            assert found is not None
            parse(found, rest, context)
        elif context.args:
            raise click.UsageError(f"unexpected {context.args}")


@pytest.mark.parametrize(("block", "words"), COMMANDS, ids=[f"{block.place} {words[1]}" for block, words in COMMANDS])
def test_a_command_in_a_code_block_exists_with_its_options(
    block: Block, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in FILES:
        (tmp_path / name).touch()
    (tmp_path / "DIR").mkdir()
    try:
        parse(PROGRAMS[words[0]], words[1:])
    except click.UsageError as error:
        pytest.fail(f"{block.place}: {' '.join(words)}: {error.format_message()}")


def test_many_commands_are_found() -> None:
    assert len(COMMANDS) > 50
    assert {words[1] for _, words in COMMANDS} >= {"up", "run", "top", "policy", "key", "tenant", "cost", "replay"}


SPECS = [(block, found[0]) for block in ALL if (found := re.search(r"^spec:\n(?:  .*\n)+", block.text, re.M))]


@pytest.mark.parametrize(("block", "text"), SPECS, ids=[block.place for block, _ in SPECS])
def test_a_spec_in_a_code_block_is_valid(block: Block, text: str) -> None:
    """Of a tenant, or the part of a cluster's spec that the page is about."""
    spec = yaml.safe_load(text)["spec"]
    if "clusterName" in spec:
        read_spec(TenantSpec, spec)
    else:
        read_spec(ClusterSpec, {**MINIMAL, **spec})


def test_specs_are_found() -> None:
    assert len(SPECS) >= 8


@pytest.mark.parametrize(
    "block",
    [block for block in ALL if re.match(r"import \w+\n|from \w+ import", block.text)],
    ids=lambda block: block.place,
)
def test_python_in_a_code_block_compiles(block: Block) -> None:
    ast.parse(block.text, block.place)
