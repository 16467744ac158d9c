"""The page: self-contained, bounded, safe against hostile names, accessible to screen readers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise

import pytest
from reports import HOSTILE, LAYERS, bare, make_comparison, make_frontier, make_layer, make_plan, make_report

from trp_export.report.document import Report
from trp_export.report.page.page import make_page
from trp_export.runtime.distance import Distance
from trp_export.verify import CalibrationAgreement
from trp_export.verify.layers import LayerProof
from trp_export.verify.whole import WholeProof

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Outline(HTMLParser):
    """The tags with attributes and the texts by innermost tag, as a browser finds them; asserts that tags balance."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def page() -> str:
    return make_page(make_report(LAYERS), LAYERS)


def test_the_page_loads_nothing(page: str) -> None:
    assert not re.search(r"https?:|url\(|@import|<script|<link|<img|<iframe", page)
    outline = Outline(page)
    assert all(not attributes.keys() & {"src", "srcset", "xlink:href"} for _, attributes in outline.tags)
    targets = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    assert {str(link["href"]) for link in outline.named("a")} == {f"#{target}" for target in targets}


def test_the_page_names_no_local_folder(page: str) -> None:
    assert "someone" not in page
    assert "/tmp" not in page


def test_the_page_begins_with_the_outcome(page: str) -> None:
    lead = next(text for tag, text in Outline(page).texts if tag == "p")
    assert lead.startswith("net is 1.61 times smaller and 1.5")
    assert lead.endswith("; its top-1 accuracy changes from 91.70% to 90.90% on 500 images.")


@pytest.mark.parametrize(("speed", "words"), [(0.8, "SLOWER"), (1.001, "NOT faster")])
def test_the_page_says_if_the_result_is_not_faster(speed: float, words: str) -> None:
    assert words in make_page(make_report(LAYERS, speed), LAYERS)


@pytest.mark.parametrize(
    ("cleaned", "words"),
    [
        (1.0, "on 500 images."),
        (1.2, "Low rank contributes 1.24x"),
        (1.5, "none from low rank"),
        (2.0, "SLOWER, 0.75x"),
    ],
)
def test_the_headline_separates_clean_up_from_low_rank(cleaned: float, words: str) -> None:
    page = make_page(replace(make_report(LAYERS), latency=make_comparison(1.5, cleaned=cleaned)), LAYERS)
    lead = next(text for tag, text in Outline(page).texts if tag == "p")
    assert words in lead


def test_headings_come_in_order(page: str) -> None:
    levels = [int(tag[1]) for tag, _ in Outline(page).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_picture_has_a_description(page: str) -> None:
    pictures = Outline(page).named("svg")
    assert len([picture for picture in pictures if picture.get("role") == "img"]) == 2 + 3
    for picture in pictures:
        assert picture.get("aria-hidden") == "true" or len(picture["aria-label"] or "") > 20


def test_a_search_appears_as_picture_and_table() -> None:
    outline = Outline(make_page(replace(make_report(LAYERS), frontier=make_frontier()), LAYERS))
    assert [attributes["class"] for _, attributes in outline.tags if "point" in (attributes.get("class") or "")] == [
        "point holds",
        "point chosen",
        "point beyond",
    ]
    words = {text for _, text in outline.texts}
    assert {"limit, 90.70%", "original, 91.70%", "2.02x, 90.90%", "-4.60 ± 0.80 pp"} <= words


@pytest.mark.parametrize("error", [None, 0.0])
def test_a_search_without_standard_errors_draws_none(error: float | None) -> None:
    frontier = make_frontier()
    alone = replace(frontier.points[0], error=error, after=frontier.before)
    page = make_page(replace(make_report(LAYERS), frontier=replace(frontier, points=(alone,), chosen=0)), LAYERS)
    assert not [name for _, name in Outline(page).tags if "error" in (name.get("class") or "")]
    assert not re.search(r"\b(None|nan|inf)\b", re.sub("<style>.*</style>", "", page, flags=re.DOTALL))


def test_table_headings_have_a_scope(page: str) -> None:
    assert all(heading.get("scope") in ("row", "col") for heading in Outline(page).named("th"))


def test_the_layer_table_shows_times_before_and_after(page: str) -> None:
    texts = [text for _, text in Outline(page).texts]
    assert "ms, dense above pair" in texts
    assert "0.031 → 0.02 ms, 1.55x" in texts
    assert "0.03 → 0.033 ms, 0.91x" in texts
    assert "0.04 ms" in texts, "a layer left dense has one time"
    sums = next(text for text in texts if text.startswith("The times of single layers"))
    first, second = make_report(LAYERS).plan.decisions[:2]
    bound = 0.031 * first.macs / first.site.macs + 0.03 * second.macs / second.site.macs
    assert sums.endswith(
        "took 0.061 ms before and 0.053 ms as pairs. At the rate of the layers that they replace, the pairs would take "
        f"{bound:.3g} ms: {0.053 - bound:.3g} ms are left, most of them in conv2, conv1. "
        "1 of 2 pairs took as long as their layer or longer."
    )
    untimed = make_page(replace(make_report(LAYERS), layer_ms=None), LAYERS)
    assert "dense above pair" in untimed
    assert "ms, dense above pair" not in untimed


def test_hostile_names_stay_text() -> None:
    layers = tuple(make_layer(name, index) for index, name in enumerate(HOSTILE))
    report = replace(make_report(layers, name=HOSTILE[0]), notes=HOSTILE)
    page = make_page(report, layers)
    calm = {tag for tag, _ in Outline(make_page(make_report(LAYERS), LAYERS)).tags}
    outline = Outline(page)
    assert {tag for tag, _ in outline.tags} <= calm
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "$body ${title}" in page
    plan = next(text for tag, text in outline.texts if tag == "code" and text.startswith("{"))
    assert json.loads(plan) == report.plan.to_json()


def test_the_page_of_a_huge_hostile_network_stays_below_2_mb() -> None:
    layers = tuple(replace(LAYERS[0], site=replace(LAYERS[0].site, name=f"{i}" + "<" * 5000)) for i in range(1500))
    assert len(make_page(make_report(layers, name="<" * 10**6), layers).encode()) < 2_000_000


def _with_nothing(report: Report) -> Iterator[Report]:
    assert report.deviation is not None
    yield bare(report)
    yield replace(report, latency=None, deviation=None)
    yield replace(report, deviation=replace(report.deviation, score=None))
    yield replace(report, deviation=replace(report.deviation, score=None, truncation=None))
    yield replace(report, latency=make_comparison(1.5, processes=1))
    yield replace(report, latency=make_comparison(1.5, unit="instructions"))
    yield replace(report, latency=make_comparison(1.5, cleaned=None))
    yield replace(report, source=replace(report.source, path=None))
    yield replace(report, plan=make_plan(LAYERS[3:]))
    yield replace(report, plan=make_plan(()))


@pytest.mark.parametrize("index", range(10))
def test_missing_parts_of_a_report_are_left_out(index: int) -> None:
    report = list(_with_nothing(make_report(LAYERS)))[index]
    page = make_page(report, LAYERS)
    assert Outline(page).named("h1")
    assert not re.search(r"\b(None|nan|inf)\b", re.sub("<style>.*</style>", "", page, flags=re.DOTALL))


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _palettes() -> list[dict[str, str]]:
    """The colours of the light and the dark style."""
    style = files("trp_export.report.page").joinpath("page.html").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in blocks]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["page", "card"])
def test_colours_have_enough_contrast(scheme: int, ground: str) -> None:
    colours = _palettes()[scheme]
    least = {"ink": 4.5, "muted": 4.5, "accent": 4.5, "good": 4.5, "bad": 4.5, "warn": 4.5, "before": 3, "after": 3}
    found = {name: _contrast(colours[name], colours[ground]) for name in least}
    assert {name: contrast for name, contrast in found.items() if contrast < least[name]} == {}


def test_the_page_shows_the_least_exact_layer_and_what_was_not_compared() -> None:
    report = make_report(LAYERS)
    assert report.deviation is not None
    layers = tuple(
        LayerProof(name, ("noise",), Distance(error, 2 * error), 1e-5, 0.1, 144)
        for name, error in (("conv1", 1e-7), ("conv2", 3e-6))
    )
    whole = WholeProof(("logits",), ("noise",), Distance(4e-6, 1e-5), 2e-5)
    seen = CalibrationAgreement(64, "held-out", Distance(0.01, 0.1), 0.95)
    deviation = replace(
        report.deviation, layers=layers, whole=whole, not_compared=("<b>nms: a random number",), seen=seen
    )
    page = make_page(replace(report, deviation=deviation), LAYERS)
    text = " ".join(text for _, text in Outline(page).texts)
    assert "2 parts were compared, each on its own inputs; the largest difference is in conv2" in text
    assert "relative L2 4e-06" in text
    assert "<b>nms: a random number" in text
    assert "64 held-out images, to which no factor was fitted" in text


def test_the_layer_table_states_the_share_of_kept_layers(page: str) -> None:
    assert any("The others hold 50% of the MACs." in text for _, text in Outline(page).texts)
