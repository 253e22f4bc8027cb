"""The code blocks of the documentation: indented by four columns, as the pages have them. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "decisions" not in path.parts and "results" not in path.parts
)
INDENT = " " * 4
# Before a command of ours: what runs it, and variables that it gets.
OURS = re.compile(r"(?:^|\$\(|\| )(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?((?:kubectl )?agentserving) ([a-z][^#)]*)")


@dataclass(frozen=True)
class Block:
    """Lines of a page without their indentation. `place`: page and line, for messages."""

    place: str
    text: str

    def commands(self) -> Iterator[tuple[str, ...]]:
        """Words of each command of ours in it, such as ("kubectl agentserving", "top"); alternatives one by one."""
        for line in re.sub(r"\\\n\s*", " ", self.text).splitlines():
            for found in OURS.finditer(re.sub(r"\s#.*", "", line)):
                program, rest = found[1], re.sub(r"[\[\]]", "", found[2])
                first, *others = re.split(r" \| ", rest.partition(" > ")[0])
                words = tuple(shlex.split(first))
                yield (program, *words)
                for other in others:
                    # `policy get | set NAME`: the first word may be left out.
                    if re.match(r"kubectl |jq ", other):
                        break
                    yield (program, *shlex.split(other))


def blocks(page: Path) -> list[Block]:
    """All of a page."""
    found, lines, began = list[Block](), list[str](), 0
    for number, line in enumerate([*page.read_text().splitlines(), "end"], 1):
        if line.startswith(INDENT) or (not line and lines):
            began = began if lines else number
            lines.append(line.removeprefix(INDENT))
        elif lines:
            found.append(Block(f"{page.relative_to(ROOT)}:{began}", "\n".join(lines).strip("\n") + "\n"))
            lines = []
    return found


ALL = [block for page in PAGES for block in blocks(page)]
