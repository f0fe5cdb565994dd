"""A hook of mkdocs: what a page links to outside docs/ becomes part of the site, so that no link leads out of it.

Pages link to each other and to the rest of the repository as on a code host, `../benchmarks/comparison.yaml`. A file outside
docs/ lies in the site under `outside/`: Markdown as a page, everything else as it is.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OUTSIDE = "outside"
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
"""Pages outside docs/ that the navigation names."""

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(?=[)#])")


def on_files(files: Any, config: Any) -> Any:
    """Add what the navigation names, and what pages link to, and what those link to in turn."""
    from mkdocs.structure.files import File, InclusionLevel

    seen: set[Path] = set()
    left = [*(ROOT / name for name in PAGES), *(Path(file.abs_src_path) for file in files.documentation_pages())]
    while left:
        source = left.pop()
        inside = source.is_relative_to(DOCS)
        if source in seen:
            continue
        seen.add(source)
        if not inside:
            shown = InclusionLevel.INCLUDED if source.name in PAGES else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, address(source), abs_src_path=str(source), inclusion=shown))
        if source.suffix == ".md":
            text = source.read_text(encoding="utf-8")
            targets = [(source.parent / target).resolve() for target in _LINK.findall(text)]
            left += [target for target in targets if target.is_file() and not target.is_relative_to(DOCS)]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links as the site has them."""
    here = repository_path(page.file.src_uri)

    def relinked(found: re.Match[str]) -> str:
        target = (here.parent / found[1]).resolve()
        return os.path.relpath(address(target), Path(page.file.src_uri).parent) if target.is_file() else found[1]

    return _LINK.sub(relinked, markdown)


def address(file: Path) -> str:
    """Where a file of the repository is in the site."""
    return (
        file.relative_to(DOCS).as_posix()
        if file.is_relative_to(DOCS)
        else f"{OUTSIDE}/{file.relative_to(ROOT).as_posix()}"
    )


def repository_path(address: str) -> Path:
    """The same backwards."""
    return ROOT / address.removeprefix(f"{OUTSIDE}/") if address.startswith(f"{OUTSIDE}/") else DOCS / address
