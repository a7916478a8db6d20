"""The page: its figures are those of the value, in order, escaped, and nothing is fetched."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from blockwright.report import group_reasons, render
from blockwright.types.report import NATS_PER_TOKEN, Report
from tests.report import examples
from tests.report.page_reader import Element, read_page

EXAMPLES: dict[str, Callable[[], Report]] = {
    "small": examples.make_report,
    "long": lambda: examples.make_report(blocks=60, drops=True, bits=3.3),
    "other unit": lambda: examples.make_report(unit="squared output error"),
    "one block": lambda: examples.make_report(blocks=1),
    "encoder": examples.encoder_report,
    "plan file": examples.plan_file_report,
    "experts": examples.experts_report,
}
GROUPS = ("asked", "got", "lost")
ORDER = [
    *("verdict", "frontier", "map", "blocks", "prediction"),
    *("unavailable", "speed", "notes", "provenance"),
]


def page_of(report: Report) -> Element:
    return read_page(render(report))


@pytest.mark.parametrize("name", EXAMPLES)
def test_sections_stand_in_order_and_every_element_is_closed(name: str) -> None:
    page = page_of(EXAMPLES[name]())
    sections = [section.attributes["id"] for section in page.all("section")]
    assert sections == ORDER
    links = {link.attributes["href"] for link in page.all("a")}
    assert links <= {f"#{name}" for name in ORDER}
    assert len(page.all("h1")) == len(page.all("main")) == 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_is_fetched(name: str) -> None:
    html = render(EXAMPLES[name]())
    page = read_page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html
    assert "@import" not in html
    loads = ("src", "srcset", "data", "poster", "action", "xlink:href")
    assert not [e.tag for e in page.all() if any(name in e.attributes for name in loads)]
    assert not page.all("link")
    assert not page.all("img")


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_figure_is_empty_or_not_finite(name: str) -> None:
    text = page_of(EXAMPLES[name]()).all("main")[0].text
    assert not re.search(r"\b(None|nan|inf|Undefined)\b", text)


def test_the_verdict_says_asked_got_and_lost() -> None:
    report = examples.make_report()
    kl = report.verdict.fitted.kl_divergence
    page = page_of(report)
    got = report.verdict.bits_per_weight
    assert page.by_id("headline").text == (
        f"4.30 bits asked, {got:.2f} got; perplexity +0.41%; KL {kl:.2g} nats/token;"
        " decode 2.4×; resident 0.52×"
    )
    verdict = page.by_id("verdict")
    values = {group: [dd.text for dd in verdict.all("", group)[0].all("dd")] for group in GROUPS}
    assert values["asked"] == ["4.30"]
    size = report.verdict.size_bytes / report.verdict.original_size_bytes
    assert values["got"] == [f"{got:.2f}", f"{size:.2f}×", "2.4×", "0.52×"]
    assert values["lost"] == [f"{kl:.2g}", "+0.41%", "98.12%"]


def test_the_map_shows_every_site_with_bytes_and_loss() -> None:
    report = examples.make_report(blocks=5)
    page = page_of(report)
    table = page.all("table", "map")[0]
    rows = table.rows()
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "4"]
    heads = [e.text for e in table.all("th") if e.attributes.get("scope") == "col"]
    assert heads[1:-1] == [name.replace(".", ". ") for name in examples.LINEARS]
    for row, expected in zip(rows, report.map.rows, strict=True):
        assert row[1:-1] == [cell.candidate.split(":")[0] for cell in expected.cells]
        assert float(row[-1]) == pytest.approx(expected.bits_per_weight, abs=0.006)
    titles = [cell.attributes["title"] for cell in table.all("td") if "title" in cell.attributes]
    first = report.map.rows[0].cells[0]
    assert titles[0].startswith(f"block 0, self_attn.q_proj: {first.candidate} · ")
    assert "predicted loss" in titles[0]
    assert " kB" in titles[0]


def test_dropped_blocks_stand_in_the_map_and_are_named() -> None:
    report = examples.make_report(blocks=60, drops=True, bits=3.3)
    dropped = [row.block for row in report.map.rows if row.dropped]
    assert dropped
    page = page_of(report)
    shown = [row for row in page.all("table", "map")[0].rows() if row[-1] == "dropped"]
    assert [int(row[0]) for row in shown] == dropped
    assert all(set(row[1:]) == {"dropped"} for row in shown)
    assert f"Dropped: {len(dropped)} blocks, {dropped[0]} to" in page.by_id("map").text
    assert len(page.by_id("block-figures").rows()[0]) == 6


def test_experts_are_one_column() -> None:
    report = examples.experts_report()
    page = page_of(report)
    heads = [e.text for e in page.all("table", "map")[0].all("th")]
    assert "mlp.experts. down_proj ×32" in heads
    details = [e.attributes["title"] for e in page.all("td") if "title" in e.attributes]
    assert sum("32 experts" in detail for detail in details) == 2 * 9
    assert "no calibration token reached it" in page.by_id("unavailable").text
    assert "and 6 more" in page.by_id("unavailable").text


def test_predicted_and_measured_are_compared_only_in_one_unit() -> None:
    alike = page_of(examples.make_report()).by_id("prediction")
    other = page_of(examples.make_report(unit="squared output error")).by_id("prediction")
    assert "ratio" in [head.text for head in alike.all("th")]
    assert len(alike.all("svg")) == 1
    assert alike.by_id("measured").rows()[0][4] == "1.1×"
    assert "ratio" not in [head.text for head in other.all("th")]
    assert not other.all("svg")
    assert "ranks plans only" in other.text


def test_frontier_has_one_scale_only_where_the_units_are_one() -> None:
    alike = page_of(examples.make_report()).by_id("frontier")
    other = page_of(examples.make_report(unit="squared output error")).by_id("frontier")
    assert len(alike.all("figure")) == 2  # for desks and for phones
    assert len(other.all("figure")) == 4
    kinds = {e.attributes["class"] for e in alike.all("svg")[0].all("", "mark")}
    shapes = ("predicted", "predicted-uniform", "tried", "rival", "taken")
    assert kinds == {f"mark {shape}" for shape in shapes}


@pytest.mark.parametrize(
    "sign",
    ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "{{ 7*7 }}", "&lt;b&gt;"],
)
def test_hostile_text_is_only_text(sign: str) -> None:
    report = examples.make_report(blocks=2)
    provenance = replace(report.provenance, command=f"blockwright fit {sign}", recipe=sign)
    columns = tuple(replace(c, name=f"{c.name}.{sign}") for c in report.map.columns)
    reasons = {f"site{sign} int4-g64:gptq": f"failed {sign}"}
    hostile = replace(
        report,
        model=sign,
        model_type=sign,
        notes=(sign,),
        loss_unit=sign,
        provenance=provenance,
        map=replace(report.map, columns=columns),
        measured=tuple(replace(plan, name=sign) for plan in report.measured),
        frontier=tuple(replace(point, name=sign) for point in report.frontier),
        unavailable=group_reasons(reasons),
        machine=replace(report.machine, processor=sign, versions={sign: sign}),
        verdict=replace(report.verdict, budget=sign, uniform_plan=sign),
        absent={"drop_loss": sign},
    )
    page = page_of(hostile)
    assert len(page.all("script")) == 1
    assert {e.tag for e in page.all()} <= {e.tag for e in page_of(report).all()}
    assert {name for e in page.all() for name in e.attributes if name.startswith("on")} == set()
    assert page.by_id("notes").all("li")[0].text == " ".join(sign.split())
    assert " ".join(sign.split()) in page.by_id("provenance").text


def test_figures_that_are_not_finite_are_dashes_and_null() -> None:
    report = examples.make_report(blocks=2)
    bad = replace(
        report.verdict.fitted, perplexity=math.inf, kl_divergence=math.nan, top1_agreement=0.0
    )
    broken = replace(report, verdict=replace(report.verdict, fitted=bad))
    text = page_of(broken).by_id("verdict").text
    assert "nan" not in text
    assert "inf" not in text
    data = json.loads(json.dumps(broken.to_json(), allow_nan=False))
    assert data["verdict"]["fitted"]["perplexity"] is None


def test_a_plan_file_says_what_is_absent_and_why() -> None:
    page = page_of(examples.plan_file_report())
    assert page.by_id("headline").text.startswith("plan file built, 4.")
    assert "a plan file was built, so nothing else was on offer" in page.by_id("frontier").text
    assert not page.by_id("frontier").all("svg")
    assert "Not compared with a uniform plan" in page.by_id("verdict").text
    speeds = page.by_id("speeds").rows()
    assert [row[0] for row in speeds] == ["size of the files", "memory and speed"]
    assert speeds[1][1] == "not measured, as asked (--no-speed)"


def test_an_encoder_has_errors_instead_of_perplexity() -> None:
    report = examples.encoder_report()
    page = page_of(report)
    assert page.by_id("headline").text == (
        f"4.30 bits asked, {report.verdict.bits_per_weight:.2f} got; relative error 0.034;"
        " resident 0.77×"
    )
    lost = page.by_id("verdict").all("", "lost")[0].text
    assert "0.99941" in lost
    assert "perplexity" not in lost
    rows = {row[0]: row[1:] for row in page.by_id("speeds").rows()}
    assert rows["decode, tokens/s"] == ["the model has no language head, so nothing is generated"]
    assert rows["prefill, tokens/s"] == ["0.86×", "5,120", "4,380"]


def test_a_uniform_plan_that_won_is_said_to_have_won() -> None:
    report = examples.make_report(blocks=3)
    name = report.verdict.uniform_plan
    assert name is not None
    verdict = replace(report.verdict, plan=name, uniform=report.verdict.fitted)
    assert "measured best on the selection text and was taken" in (
        page_of(replace(report, verdict=verdict)).by_id("verdict").text
    )


def test_the_unit_that_is_comparable_is_the_one_in_words() -> None:
    assert NATS_PER_TOKEN == "nats per token"
    assert examples.make_report().comparable
    assert not examples.encoder_report().comparable
