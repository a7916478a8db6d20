"""The page in a real browser: no console error, no horizontal scroll on a phone, keys and themes.

The page is opened from ``file://``, and again inside a frame whose document clicks, presses keys
and writes down what it sees.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from blockwright.report import render
from blockwright.types.report import Report
from tests.report import examples
from tests.report.page_reader import read_page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROBE = """
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  const colour = () => view.getComputedStyle(page.body).backgroundColor;
  const press = (key) => page.activeElement.dispatchEvent(
    new view.KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const seen = { width: root.scrollWidth, window: view.innerWidth };
  seen.fetched = view.performance.getEntriesByType("resource").length;
  seen.before = colour();
  page.querySelector("button.theme").click();
  seen.after = colour();
  seen.offered = page.querySelector("button.theme").textContent;
  const cells = page.querySelectorAll(".map td[data-detail]");
  seen.stops = [...cells].filter((cell) => cell.tabIndex === 0).length;
  cells[0].focus();
  seen.told = [page.querySelector(".told").textContent];
  for (const key of ["ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"]) {
    press(key);
    seen.told.push(page.querySelector(".told").textContent);
  }
  document.querySelector("pre").textContent = JSON.stringify(seen);
});
frame.srcdoc = JSON.parse(document.querySelector("#page").textContent);
"""


@dataclass
class Browser:
    """Headless Chromium."""

    program: str
    folder: Path

    def open(self, file: Path) -> tuple[str, list[str]]:
        """The page's document after its script ran, and what the console said."""
        command = [
            *(self.program, "--headless=new", "--disable-gpu", "--disable-background-networking"),
            *("--no-first-run", "--virtual-time-budget=4000", "--enable-logging=stderr", "--v=0"),
            *(f"--user-data-dir={self.folder / 'profile'}", "--dump-dom", file.as_uri()),
        ]
        if os.geteuid() == 0:
            command.insert(1, "--no-sandbox")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return done.stdout, console


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    found = [path for path in map(shutil.which, NAMES) if path]
    if not found:
        pytest.skip(f"no browser on PATH (looked for {', '.join(NAMES)})")
    return Browser(found[0], tmp_path_factory.mktemp("browser"))


def test_the_console_is_heard(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "broken.html"
    file.write_text("<p>x</p><script>missing()</script>", encoding="utf-8")
    assert any("missing is not defined" in line for line in browser.open(file)[1])


@pytest.mark.parametrize(
    "make",
    [examples.make_report, examples.encoder_report, examples.plan_file_report],
    ids=["small", "encoder", "plan file"],
)
def test_the_page_opens_without_a_console_error(
    make: Callable[[], Report], browser: Browser, tmp_path: Path
) -> None:
    file, report = tmp_path / "report.html", make()
    file.write_text(render(report), encoding="utf-8")
    document, console = browser.open(file)
    assert console == []
    page = read_page(re.sub(r"^<!doctype[^>]*>", "", document, flags=re.I))
    assert f"{report.verdict.bits_per_weight:.2f}" in page.by_id("headline").text
    rows = page.all("table", "map")[0].rows()
    assert len(rows) == report.blocks
    details = [e.attributes["data-detail"] for e in page.all("td") if "data-detail" in e.attributes]
    assert len(details) == sum(len(row.cells) for row in report.map.rows)
    assert "hidden" not in page.all("button", "theme")[0].attributes


def probe(browser: Browser, html: str, folder: Path, width: int) -> dict[str, Any]:
    """What the framing document saw."""
    data = json.dumps(html).replace("<", "\\u003c")
    file = folder / "probe.html"
    file.write_text(
        f'<iframe width="{width}" height="800" style="border:0"></iframe><pre></pre>'
        f'<script type="application/json" id="page">{data}</script><script>{PROBE}</script>',
        encoding="utf-8",
    )
    document, console = browser.open(file)
    assert console == []
    written = re.search(r"<pre>(.*?)</pre>", document, re.S)
    assert written is not None
    seen: dict[str, Any] = json.loads(unescape(written[1]))
    return seen


@pytest.mark.parametrize(
    "make",
    [
        lambda: examples.make_report(blocks=60, drops=True, bits=3.3),
        examples.experts_report,
        examples.encoder_report,
        examples.plan_file_report,
    ],
    ids=["long", "experts", "encoder", "plan file"],
)
def test_a_phone_never_scrolls_sideways(
    make: Callable[[], Report], browser: Browser, tmp_path: Path
) -> None:
    seen = probe(browser, render(make()), tmp_path, 360)
    assert seen["window"] == 360
    assert seen["width"] <= 360
    assert seen["fetched"] == 0


def test_keys_move_over_the_map_and_the_theme_is_toggled(browser: Browser, tmp_path: Path) -> None:
    report = examples.make_report(blocks=3)
    seen = probe(browser, render(report), tmp_path, 1280)
    names = [column.name for column in report.map.columns]
    places = [(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)]
    assert [told.partition(":")[0] for told in seen["told"]] == [
        f"block {block}, {names[column]}" for block, column in places
    ]
    assert seen["stops"] == 1
    assert seen["before"] != seen["after"]
    assert seen["offered"] in ("Light theme", "Dark theme")


def test_long_names_do_not_widen_a_phone(browser: Browser, tmp_path: Path) -> None:
    long = "a-very-long-name-without-a-break" * 12
    report = examples.make_report(blocks=2, model=long, notes=(escape(long),))
    assert probe(browser, render(report), tmp_path, 360)["width"] <= 360
