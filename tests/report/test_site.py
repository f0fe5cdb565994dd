"""The documentation site in a browser, as its readers have it: built anew, and held to axe-core's rules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from audit import AXE, findings, views
from browser import CHROMIUM, browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"),
    pytest.mark.skipif(AXE is None, reason="needs axe-core: pip install axe-core-python, or AXE=axe.min.js of npm's"),
]

PROJECT = Path(__file__).parents[2]
PAGES = ["index", "choosing", "methods/elder", "reference"]  # prose and code; wide tables; formulas; signatures
PAGES += ["speed"]  # it has a heading that a section of the navigation could be named like


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(place)]
    subprocess.run(words, cwd=PROJECT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    return place


def test_axe_has_no_finding_and_nothing_is_asked_of_another_server(site: Path) -> None:
    assert AXE is not None
    axe = AXE.read_text(encoding="utf-8")
    with browser() as tab:
        for name in PAGES:
            for view in views(tab, site / f"{name}.html"):
                assert findings(tab, axe) == [], f"{name}, {view}"
                assert not [address for address in tab.requested if address.startswith("http")], name
