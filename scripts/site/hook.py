"""Hook of MkDocs: takes pages outside docs/ into the site, generates the references, and translates links between them.

Pages keep the links that work in the repository. In the site a link leads to the page made of its target; a link to a
file that is no page, such as a source file, becomes the file's name.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))
import references  # noqa: E402

# Repository path -> path in the site, of pages that are not below docs/.
OUTSIDE = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "ARCHITECTURE.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "SECURITY.md": "SECURITY.md",
    "charts/agentserving/README.md": "chart.md",
    "benchmarks/results/README.md": "overheads.md",
}
GENERATED = {
    "reference/commands.md": references.commands,
    "reference/python.md": references.python,
    "reference/grpc.md": references.grpc,
}
_REPOSITORY_PATH = {site: repository for repository, site in OUTSIDE.items()}
# [text](target#fragment) and ![text](target); neither in code.
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages of OUTSIDE and GENERATED, and the pictures that the former show."""
    for repository, site in OUTSIDE.items():
        files.append(File.generated(config, site, abs_src_path=str(ROOT / repository)))
    for site, make in GENERATED.items():
        files.append(File.generated(config, site, content=make()))
    for picture in sorted((ROOT / "benchmarks" / "results").glob("*.svg")):
        files.append(File.generated(config, f"benchmarks/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """The page with its links translated."""
    site = page.file.src_uri
    if site in GENERATED:
        return markdown
    base = posixpath.dirname(_REPOSITORY_PATH.get(site, f"docs/{site}"))
    here = posixpath.dirname(site)

    def translated(match: re.Match[str]) -> str:
        picture, text, target, fragment = match[1], match[2], match[3], match[4] or ""
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(base, target))
        found = _in_site(path, files)
        if found is None:
            return text if text.strip("`") == path else f"{text} (`{path}`)"
        return f"{picture}[{text}]({os.path.relpath(found, here or '.')}{fragment})"

    return "\n".join(line if line.startswith("    ") else _LINK.sub(translated, line) for line in _joined(markdown))


def _joined(markdown: str) -> list[str]:
    """Lines, with links that are broken between two lines put on one."""
    return re.sub(r"\[([^\[\]`]*)\n([^\[\]`]*)\]\(", r"[\1 \2](", markdown).split("\n")


def _in_site(path: str, files: Files) -> str | None:
    if path in OUTSIDE:
        return OUTSIDE[path]
    if path.startswith("benchmarks/results/"):
        path = "docs/benchmarks/" + posixpath.basename(path)
    site = path.removeprefix("docs/")
    for candidate in (site, f"{site}/README.md"):
        if path.startswith("docs") and files.get_file_from_path(candidate) is not None:
            return candidate
    return None
