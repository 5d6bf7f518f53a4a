"""The page of a run: whole, self-contained, and safe with texts of strangers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paredown.recipes.html import page, visible, write_html

from .full_report import CLASSES, full_report

Make = Callable[..., dict[str, Any]]

VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}
SECTIONS = (
    "quality",
    "cost",
    "exports",
    "differing",
    "data",
    "stages",
    "measured",
    "recipe",
    "environment",
)
HOSTILE = (
    '<script>alert(1)</script><img src=x onerror="alert(2)"></textarea></style>'
    "'\"><svg onload=alert(3)>{{ 7 * 7 }}{% raw %}javascript:alert(4)"
)


class Page(HTMLParser):
    """Collects elements, attributes and text, and checks that elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        # the plots' library takes longer to read than all the rest
        self.feed(re.sub(r"<script>.*?</script>", "<script></script>", text, flags=re.DOTALL))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.elements if "id" in attrs]


def charts_of(text: str) -> dict[str, Any]:
    """The plots that stand in a page."""
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text)
    assert found is not None
    return dict(json.loads(found[1]))


def test_page_has_every_section_and_the_verdict_first(make_report: Make, tmp_path: Path) -> None:
    report = make_report()
    write_html(report, report["differing"], tmp_path / "report.html")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    found = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert set(SECTIONS) <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    for target in [attrs["href"] for tag, attrs in found.elements if tag == "a"]:
        assert (target or "").removeprefix("#") in found.ids
    text = found.text
    assert text.index("Target met") < text.index("The student keeps 98.6 % of") < 200
    for figure in ("0.7231", "97.4 to 99.7 %", "18.1 %", "612 MFLOP", "5.5 times less", "6.10 %"):
        assert figure in text
    for words in ("also in test", "A note.", "embedding_cosine", "torch", "a row", "4 min 51 s"):
        assert words in text
    assert "9,321 of 30,522 tokens were kept" in text


def test_page_needs_nothing_from_outside(make_report: Make) -> None:
    report = make_report()
    text = page(report, report["differing"])
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "http" not in outside.replace("http-equiv", "")
    assert "url(" not in outside
    assert "@import" not in outside
    found = Page(text)
    assert not {"link", "img", "iframe", "object", "base", "form"} & {
        tag for tag, _ in found.elements
    }
    for _, attrs in found.elements:
        assert not {"src", "srcset", "style"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        assert (attrs.get("href") or "#").startswith("#")


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_policy_allows_the_pages_own_style_and_scripts_and_nothing_else(make_report: Make) -> None:
    text = page(make_report(), [])
    found = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert found is not None
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2 and scripts[0].startswith("/**\n* plotly.js (basic - minified)")
    assert found[1] == (
        f"default-src 'none'; style-src '{digest(style[1])}' '{digest('')}'; "
        f"script-src '{digest(scripts[0])}' '{digest(scripts[1])}'; "
        "base-uri 'none'; form-action 'none'"
    )
    assert "unsafe" not in found[1]


def differing(text: str) -> dict[str, Any]:
    shown = dict.fromkeys(("text", "expected", "teacher", "student"), text)
    return {**shown, "teacher_right": False, "student_right": False}


def test_hostile_texts_stay_texts_everywhere(make_report: Make) -> None:
    report = make_report(
        recipe={**make_report()["recipe"], "name": HOSTILE, HOSTILE: HOSTILE},
        command=HOSTILE,
        differing=[differing(HOSTILE)],
        notes=[HOSTILE],
        environment={HOSTILE: HOSTILE},
        data={"rows": {HOSTILE: 1}, "dropped": {HOSTILE: {HOSTILE: 1}}, "source": HOSTILE},
        exports=[{"format": HOSTILE, "retention": 0.9}],
        measurements=[{"side": HOSTILE, "runtime": HOSTILE, "precision": HOSTILE}],
        stages=[{"name": HOSTILE, "fingerprint": HOSTILE}],
        quality={
            **make_report()["quality"],
            "baselines": [
                {
                    "name": HOSTILE,
                    "value": 0.5,
                    "retention": 0.5,
                    "retention_ci95": None,
                    "flops_ratio": 0.2,
                }
            ],
        },
    )
    plain = Page(page(make_report(), [{**report["differing"][0], "text": "x"}]))
    found = Page(page(report, report["differing"]))
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in plain.elements}
    assert not [name for _, attrs in found.elements for name in attrs if name.startswith("on")]
    assert found.text.count("alert(1)") > 15
    assert "{{ 7 * 7 }}" in found.text


@given(st.text(st.characters(codec="utf-8"), max_size=60))
@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_leaves_the_page_whole(make_report: Make, text: str) -> None:
    row = differing(text)
    found = Page(page(make_report(differing=[row]), [row]))
    assert " ".join(visible(text).split()) in found.text


def test_characters_that_rearrange_or_hide_text_are_made_visible() -> None:
    assert visible("a\u202eb\u200bc\x00d\ud800e\n\t") == "a\ufffdb\ufffdc\ufffdd\ufffde\n\t"
    assert visible("Grüße, 世界, שלום") == "Grüße, 世界, שלום"


def test_at_most_two_hundred_rows_are_shown_and_long_ones_are_cut(make_report: Make) -> None:
    rows = [
        {**differing("b"), "text": f"row-{i} " + "x" * 5000, "expected": "a", "teacher_right": True}
        for i in range(230)
    ]
    text = page(make_report(), rows)
    assert "row-199" in text
    assert "row-200" not in text
    assert "x" * 1000 not in text
    assert text.count("✓ as expected") == 200
    assert len(make_report(differing=rows)["differing"]) == 200


def test_missing_figures_are_not_measured_never_zero(bare_report: dict[str, Any]) -> None:
    found = Page(page(bare_report, []))
    assert "Smoke run, not judged" in found.text
    assert "was not measured." in found.text
    assert "0.0000" not in found.text
    assert "0.0 %" not in found.text
    assert "plot-title" not in found.ids
    assert charts_of(page(bare_report, [])) == {}


@pytest.mark.parametrize(
    ("ends", "outcome"),
    [([0.96, 0.99], "Target met"), ([0.94, 0.99], "Undecided"), ([0.5, 0.6], "Target not met")],
)
def test_each_verdict_is_said_in_words(make_report: Make, ends: list[float], outcome: str) -> None:
    quality = {**make_report()["quality"], "retention": sum(ends) / 2, "retention_ci95": ends}
    report = make_report(quality=quality)
    assert Page(page(report, [])).text.startswith(
        f"search_query: {outcome.lower()} · paredown Skip to the figures paredown"
    )
    assert f"</b>{outcome}</p>" in page(report, [])


@pytest.mark.parametrize("retention", [0.0, 0.9999, 1.0, 1.3])
def test_plot_draws_any_retention_inside_its_frame(make_report: Make, retention: float) -> None:
    ends = [retention * 0.99, min(retention * 1.01, 2.0)]
    quality = {**make_report()["quality"], "retention": retention, "retention_ci95": ends}
    text = page(make_report(quality=quality), [])
    Page(text)
    low, high = charts_of(text)["front"]["layout"]["yaxis"]["range"]
    assert low <= ends[0] <= ends[1] <= high
    plot = text[text.index('<svg class="plot"') : text.index("<figcaption>")]
    for y in re.findall(r'<svg x="[^"]*" y="([^"]*)"', plot):
        assert 0 <= float(y) <= 392
    for x in re.findall(r'x="([^"]*)%"', plot):
        assert 0 <= float(x) <= 100


def test_seeds_are_shown_apart_from_the_rows(make_report: Make) -> None:
    quality = {
        **make_report()["quality"],
        "retention_std_seeds": 0.0031,
        "seeds": [{"seed": i, "student": 0.7, "retention": 0.98} for i in range(3)],
    }
    text = Page(page(make_report(quality=quality), [])).text
    assert "Standard deviation over 3 training seeds: 0.31 percentage points." in text
    assert "By training seed" in text


def test_every_key_of_a_report_has_its_section(make_report: Make) -> None:
    report = full_report(make_report)
    text = page(report, report["differing"])
    found = Page(text)
    assert set(SECTIONS) | {"steps", "slices", "calibration", "risk", "ledger", "search"} <= set(
        found.ids
    )
    for words in (
        "95 % interval 97.8 to 99.7 %, 3,080 test rows, mean of 3 training seeds, ",
        "the teacher alone 105",
        "p 0.012",
        "onnx-int8 student 0.9110 −0.0029 −0.0089 to +0.0021 0.41",
        "paid for the run after 380,953 queries",
        "Arriving at random (Server)",
        "Rows/s at most",
        "Energy was not measured",
        "AURC",
        "TF-IDF and logistic regression",
        "The other 3 kinds of rows",
    ):
        assert words in found.text, words
    assert set(charts_of(text)) == {
        "front", "steps", "slices", "reliability", "risk", "outside", "break-even", "trials"
    }  # fmt: skip


def test_the_worst_kind_of_row_comes_first(make_report: Make) -> None:
    report = full_report(make_report)
    text = page(report, [])
    part = text[text.index('id="slices"') : text.index('id="calibration"')]
    places = [part.index(f"</span> {name}<") for name in CLASSES]
    assert places == sorted(places)
    points = charts_of(text)["slices"]["data"][0]
    assert points["x"] == sorted(points["x"]) and len(points["x"]) == 15


@pytest.mark.parametrize(
    "key", ["attribution", "significance", "calibration", "risk_coverage", "ledger", "search"]
)
def test_a_report_without_a_later_key_is_still_a_page(key: str, make_report: Make) -> None:
    report = full_report(make_report)
    del report[key]
    for part in report["quality"]["slices"]:
        for later in ("by", "difference", "difference_ci95", "p"):
            del part[later]
    Page(page(report, report["differing"]))


def test_figures_that_are_null_in_the_later_keys_are_not_measured(make_report: Make) -> None:
    report = full_report(make_report)
    for step in report["attribution"]:
        step.update(dict.fromkeys(set(step) - {"name", "stage", "before"}))
    for part in report["quality"]["slices"]:
        part.update(dict.fromkeys(set(part) - {"by", "name", "rows"}))
    for side in report["risk_coverage"]:
        side.update(threshold=[], coverage=[], risk=[], out_of_scope=None)
    report["ledger"].update(
        total={"name": "total"}, teacher=None, break_even=None, reason="No price is given."
    )
    report["measurements"] = [{"side": "student", "scenario": "server"}]
    found = Page(page(report, []))
    assert "No break-even: No price is given." in found.text
    assert found.text.count("not measured") > 60
    assert not {"steps", "slices", "risk", "break-even"} & set(charts_of(page(report, [])))


def test_who_is_right_can_be_chosen(make_report: Make) -> None:
    report = full_report(make_report)
    found = Page(page(report, report["differing"]))
    rows = [attrs["data-right"] for tag, attrs in found.elements if "data-right" in attrs]
    assert rows == ["teacher", "student", "neither", "teacher", "teacher"]
    options = [attrs["value"] for tag, attrs in found.elements if tag == "option"]
    assert options == ["", "teacher", "student", "neither"]
    assert "the teacher alone (3)" in found.text


def test_a_reader_of_screens_finds_the_way(make_report: Make) -> None:
    report = full_report(make_report)
    found = Page(page(report, report["differing"]))
    tags = [tag for tag, _ in found.elements]
    for landmark in ("header", "nav", "main", "footer"):
        assert tags.count(landmark) == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert tags.count("caption") == tags.count("table")
    for tag, attrs in found.elements:
        if tag == "th":
            assert attrs.get("scope") in ("row", "col")
        if "data-chart" in attrs:
            assert attrs["role"] == "img" and attrs["aria-label"]
        if tag in ("input", "select"):
            assert attrs["id"] in [a.get("for") for t, a in found.elements if t == "label"]
    assert [a["aria-live"] for _, a in found.elements if "aria-live" in a] == ["polite"]


@given(st.text(st.characters(codec="utf-8"), max_size=40))
@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_name_can_stand_among_the_plots(make_report: Make, name: str) -> None:
    report = full_report(make_report)
    report["attribution"][1]["name"] = report["quality"]["baselines"][0]["name"] = name
    report["calibration"][0]["side"] = name
    text = page(report, [])
    Page(text)
    charts = charts_of(text)
    assert "<" not in "".join(charts["steps"]["data"][0]["text"]).replace("<br>", "")
