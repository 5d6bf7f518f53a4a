"""Pages opened in a headless Chromium: no errors, no request, plots, filter, phone, dark, print."""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paredown.recipes.charts import plain_text
from paredown.recipes.compare_page import comparison_page
from paredown.recipes.html import page

from .browser import MISSING, Browser, find_chromium
from .full_report import full_report
from .report_searches import trial
from .run_pairs import made_up_comparison

Make = Callable[..., dict[str, Any]]
CHROMIUM = find_chromium()
HOSTILE = '<img src="x" onerror="alert(1)"><script>alert(2)</script><a href="file:///">&amp;</a>'

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(str(CHROMIUM), tmp_path_factory.mktemp("profile")) as found:
        yield found


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def full(tmp_path: Path, make_report: Make) -> Path:
    report = full_report(make_report)
    return written(tmp_path / "report.html", page(report, report["differing"]))


def test_a_page_draws_its_plots_and_asks_for_nothing(full: Path, browser: Browser) -> None:
    browser.open(full)
    assert browser.problems == []
    assert browser.requests == [full.as_uri()]
    names = browser.run("Object.keys(JSON.parse(document.getElementById('charts').textContent))")
    assert set(names) >= {"front", "steps", "slices", "reliability", "risk", "break-even", "trials"}
    marks = browser.run(
        "Object.fromEntries([...document.querySelectorAll('[data-chart]')].map(place => ["
        "place.dataset.chart, place.querySelectorAll('.plot .point, .lines .js-line').length]))"
    )
    assert set(marks) == set(names) and min(marks.values()) >= 1
    assert marks["front"] >= 6 and marks["steps"] == 4


def test_pointing_at_a_mark_tells_its_figures(full: Path, browser: Browser) -> None:
    browser.open(full)
    x, y = browser.run(
        "(() => { const place = document.querySelector('[data-chart=front]');"
        "place.scrollIntoView({block: 'center', behavior: 'instant'});"
        # the int8 export lies over no other mark
        "const box = place.querySelectorAll('.trace')[1].querySelectorAll('.point')[1]"
        ".getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    browser.point_at(x, y)
    said = browser.run("document.querySelector('[data-chart=front] .hoverlayer').textContent")
    assert "98.5 % of the teacher's" in said and "97.5 to 99.4 %" in said


def test_the_filter_finds_rows_and_says_how_many(full: Path, browser: Browser) -> None:
    browser.open(full)
    status = "document.getElementById('shown-rows').textContent"
    shown = "[...document.querySelectorAll('#rows > li')].filter(row => row.offsetHeight).length"
    assert browser.run(status) == "5 of 5 rows shown" and browser.run(shown) == 5
    typed = (
        "(() => {{ const box = document.getElementById('search-rows'); box.value = {0!r};"
        "box.dispatchEvent(new Event('input')); }})()"
    )
    browser.run(typed.format("CARD here"))
    assert browser.run(status) == "1 of 5 rows shown" and browser.run(shown) == 1
    browser.run(typed.format(""))
    browser.run(
        "(() => { const who = document.getElementById('who-is-right'); who.value = 'student';"
        "who.dispatchEvent(new Event('change')); })()"
    )
    assert browser.run(status) == "1 of 5 rows shown"
    assert "ate my card" in browser.run(
        "document.querySelector('#rows > li:not([hidden])').innerText"
    )


def test_the_recipe_can_be_copied(full: Path, browser: Browser) -> None:
    browser.open(full)
    button = "document.querySelector('[data-copy]')"
    assert browser.run(f"{button}.offsetHeight") > 0
    browser.run(f"{button}.click()")
    browser.run("new Promise(done => setTimeout(done, 100))")
    assert browser.run(f"{button}.textContent") in ("Copied", "Marked: copy it")
    assert browser.problems == []


def test_nothing_of_a_phones_width_is_cut_off(
    full: Path, browser: Browser, tmp_path: Path, make_report: Make, bare_report: dict[str, Any]
) -> None:
    old, compared = make_report(), made_up_comparison(make_report)
    pages = [
        full,
        written(tmp_path / "old.html", page(old, old["differing"])),
        written(tmp_path / "bare.html", page(bare_report, [])),
        written(tmp_path / "compare.html", comparison_page(compared)),
    ]
    for one in pages:
        browser.open(one, 360, 740)
        assert browser.problems == [], one.name
        assert browser.run("document.documentElement.scrollWidth") <= 360, one.name
        widths = browser.run(
            "[...document.querySelectorAll('.main-svg')].map(plot => plot.clientWidth)"
        )
        assert all(0 < width <= 360 for width in widths), one.name


def test_plots_follow_the_dark_and_go_light_on_paper(full: Path, browser: Browser) -> None:
    colour = (
        "getComputedStyle(document.querySelector('[data-chart=front] .xtick text')).fill + ' ' + "
        "getComputedStyle(document.body).backgroundColor"
    )
    browser.open(full)
    light = browser.run(colour)
    browser.open(written(full.with_name("dark.html"), full.read_text("utf-8")), dark=True)
    dark = browser.run(colour)
    assert browser.problems == []
    assert all(a != b for a, b in zip(light.split(") "), dark.split(") "), strict=True))
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.run(colour).split(") ")[0] == light.split(") ")[0]
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    widths = browser.run("[...document.querySelectorAll('.main-svg')].map(p => p.clientWidth)")
    assert set(widths) == {640}
    browser.run("window.dispatchEvent(new Event('afterprint'))")
    assert browser.run(colour) == dark
    paper = base64.b64decode(browser.send("Page.printToPDF", printBackground=True)["data"])
    assert paper.startswith(b"%PDF") and len(paper) > 50_000
    assert browser.problems == []


def test_names_of_strangers_stay_names_in_plots(
    browser: Browser, tmp_path: Path, make_report: Make
) -> None:
    report = full_report(make_report)
    report["quality"]["baselines"][0]["name"] = HOSTILE
    report["attribution"][1]["name"] = HOSTILE
    report["calibration"][2]["side"] = report["risk_coverage"][1]["side"] = HOSTILE
    report["quality"]["slices"][-1]["name"] = HOSTILE
    report["search"]["trials"] = [trial(HOSTILE, 0.09, [0.4, 0.6], "flops", True)]
    rows = [{**report["differing"][0], "text": HOSTILE, "teacher": HOSTILE}]
    browser.open(written(tmp_path / "report.html", page(report, rows)))
    assert browser.problems == [] and len(browser.requests) == 1
    assert browser.run("document.querySelectorAll('main img, main script, main svg a').length") == 0
    assert plain_text(HOSTILE).count("&lt;") == HOSTILE.count("<")
    drawn = browser.run("document.querySelector('[data-chart=front]').textContent")
    assert '<img src="x" onerror="alert(1)">' in drawn and "&amp;" in drawn


def test_without_scripts_the_front_is_drawn_all_the_same(full: Path, browser: Browser) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.send("Page.navigate", url=full.as_uri())
        deadline = time.monotonic() + 20
        found: list[int] = []
        while len(found) < 6 and time.monotonic() < deadline:
            # without scripts nothing tells when a page is whole, and its nodes change until then
            with contextlib.suppress(AssertionError):
                root = browser.send("DOM.getDocument", depth=1)["root"]
                asked = {"nodeId": root["nodeId"], "selector": "svg.plot .mark"}
                found = browser.send("DOM.querySelectorAll", **asked)["nodeIds"]
                found = found if root["documentURL"].endswith(full.name) else []
        assert len(found) >= 6
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
