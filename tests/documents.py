"""What stands in the pages: fenced blocks, links and headings. Read with regular expressions, as nothing more is needed."""

from __future__ import annotations

import re
import shlex
import unicodedata
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_CODE = re.compile(r"`[^`\n]+`")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    """Of its first line of text, counted from 1."""

    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_shell(self) -> bool:
        """Whether it has commands."""
        return self.language in ("bash", "console")

    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block; of a `console` block those behind a `$`, what they print is left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        parts = [part for line in lines for part in line.split(" && ")]
        return [words for part in parts if (words := shlex.split(part, comments=True))]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start(2)) + 1, found[1], found[2]) for found in _FENCED.finditer(text)
    ]


def prose_of(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def code_in(prose: str) -> list[str]:
    """What stands between single backticks."""
    return [found[1:-1] for found in _CODE.findall(prose)]


def tables_of(page: Path) -> list[list[list[str]]]:
    """The tables of a page: rows of cells, the first row the heads of the columns."""
    tables = re.findall(r"(?:^\|.*\|$\n?)+", prose_of(page), re.MULTILINE)
    rows = [[re.split(r" *\| *", line.strip("| ")) for line in table.splitlines()] for table in tables]
    return [[head, *body] for head, _, *body in rows]  # the second line draws a rule


def links_of(page: Path) -> list[str]:
    """Targets of the links and pictures of a page that are no addresses of the web."""
    return [target for target in _LINK.findall(_CODE.sub("", prose_of(page))) if "://" not in target]


def anchors_of(page: Path) -> set[str]:
    """The headings' anchors, as far as a code host and the site call them alike."""
    titles = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", title) for title in _HEADING.findall(prose_of(page))]
    return {_anchor_on_a_code_host(title) for title in titles} & {_anchor_in_the_site(title) for title in titles}


def _anchor_on_a_code_host(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def _anchor_in_the_site(title: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())
