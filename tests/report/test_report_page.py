"""The page stands alone, draws itself without an error, and shows every text of a record as text."""

from __future__ import annotations

import json
import re

import pytest
from pages import PLAIN, elements, failed, named, words
from scripted import record, scaled

from harness import report

pytest.importorskip("jinja2", reason="pip install 'moe-harness[report]'")
pytest.importorskip("vl_convert", reason="pip install 'moe-harness[report]'")

EVIL = "<script>alert(1)</script>"
LOG = "</script></pre><img src=x onerror=alert(2)>\u2028{{ 7*7 }} --> <!-- ]]>"
PROBE = """
const cell = (row, at) => row.querySelectorAll("td")[at].textContent;
const place = document.querySelector('[data-table="precisions"]');
const heads = [...place.querySelectorAll("th")], at = heads.findIndex((one) => one.textContent.startsWith("latency"));
const column = () => [...place.querySelectorAll("tbody tr")].map((row) => cell(row, at));
const seen = { before: heads[at].ariaSort, focus: heads[at].firstChild.tagName };
heads[at].firstChild.click(); seen.up = column(); seen.upSort = heads[at].ariaSort;
heads[at].firstChild.click(); seen.down = column(); seen.downSort = heads[at].ariaSort;
const pages = place.querySelectorAll(".tools button");
pages[1].click(); seen.second = place.querySelector(".tools span").textContent;
const find = place.querySelector("input"); find.value = "bf16"; find.dispatchEvent(new Event("input"));
seen.found = place.querySelectorAll("tbody tr").length;
document.querySelector(".open").click(); seen.opened = document.querySelector(".wide").textContent;
dispatchEvent(new Event("beforeprint")); seen.printed = place.querySelectorAll("tbody tr").length;
seen.folded = document.querySelectorAll("details:not([open])").length;
document.body.append(Object.assign(document.createElement("output"), { textContent: JSON.stringify(seen) }));
"""


@pytest.fixture(scope="module")
def page(keep, tmp_path_factory):
    """Hostile records among good ones, and enough rows for two pages."""
    fast = scaled(1)  # the others are copies: a measurement collects garbage first
    evil = {"model": EVIL, "moe_backend": EVIL}
    environment = fast["environment"] | {"variables": {EVIL: LOG}}
    records = [named(fast, mean_latency_ms=50.0 + (37 * i) % 60, batch_size=i + 1) for i in range(60)]
    records += [named(scaled(1.5, **PLAIN, tp=tp), environment=environment, tp=tp) for tp in (1, 2)]
    records += [named(scaled(1, engine=EVIL, precision=EVIL), **evil), named(scaled(1, engine=EVIL, **PLAIN), **evil)]
    records += [named(scaled(1 + i, engine=f"e{i}"), **evil) for i in range(4)]
    records += [named(record("ppl", [3.0, 3.1], engine=EVIL, **PLAIN), dataset=EVIL, **evil)]
    records += [
        named(failed(scaled(3), EVIL, LOG), **evil),
        {**named(scaled(4), x=1), "status": "mismatch", "reason": LOG},
    ]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report.html([keep(*records, text={"half.json": '{"key": "<b>'})]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shown(page, browse):
    return browse(page)


def test_the_page_draws_itself_without_an_error(shown):
    dom, console = shown
    assert console == []
    assert re.search(r'<html[^>]* data-ready="\d+"', dom)
    assert len(re.findall(r"<svg ", dom)) >= 5 and "could not be drawn" not in words(dom)


def test_hostile_texts_stay_texts(page, shown):
    dom, _ = shown
    for html in (page.read_text(encoding="utf-8"), dom):
        found = elements(html)
        assert [tag for tag, _ in found].count("script") == 4 and "img" not in {tag for tag, _ in found}
        assert not {name for _, attributes in found for name in attributes if name.startswith("on")}
    text = words(dom)
    for place in (f"{EVIL} a GPU", f"hf {EVIL}"[3:], "</script></pre><img src=x onerror=alert(2)>", "{{ 7*7 }}"):
        assert " ".join(place.split()) in " ".join(text.split())
    assert "out_of_memory" in text and "half.json" in text


def test_labels_of_charts_are_escaped(shown):
    drawn = "".join(re.findall(r"(?s)<svg .*?</svg>", shown[0]))
    assert "&lt;script&gt;alert(1)" in drawn and "<script" not in drawn


def test_the_page_asks_no_network_and_is_not_able_to(page):
    html = page.read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert "default-src &#39;none&#39;" in policy or "default-src 'none'" in policy
    assert "unsafe-eval" not in policy and "script-src 'unsafe" not in policy and "http" not in policy
    for tag, attributes in elements(html):
        assert tag not in ("link", "iframe", "img", "object", "base") and "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    (style,) = re.findall(r"(?s)<style>(.*?)</style>", html)
    assert "@import" not in style and "url(" not in style
    assert "\u2028" not in re.search(r'(?s)id="data">(.*?)</script>', html)[1]


def test_tables_sort_page_search_open_and_print(page, browse, tmp_path):
    """The policy lets no other script run, so the probe is put into a copy without it."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    copy = tmp_path / "probed.html"
    copy.write_text(f"{html}<script type=module>{PROBE}</script>", encoding="utf-8")
    dom, console = browse(copy)
    assert console == []
    seen = json.loads(words(re.search(r"(?s)<output>.*?</output>", dom)[0]))
    up, down = ([float(text) for text in seen[name] if text != "–"] for name in ("up", "down"))
    assert (seen["before"], seen["upSort"], seen["downSort"]) == ("none", "ascending", "descending")
    assert seen["focus"] == "BUTTON"  # so a keyboard reaches it
    assert up == sorted(up) and down == sorted(down, reverse=True) and len(up) == 50
    assert seen["second"].startswith("51 to ") and seen["found"] == 3
    assert "conditions" in seen["opened"] and "token_ids_sha256" in seen["opened"]
    assert seen["folded"] == 0 and seen["printed"] >= 3


def test_a_policy_names_the_scripts_of_the_page_and_no_others(page):
    import base64
    import hashlib

    html = page.read_text(encoding="utf-8")
    scripts = re.findall(r'(?s)<script type="module">(.*?)</script>', html)
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    assert len(hashes) == 3 and re.findall(r"sha256-([\w+/=]+)", html.split("<style>")[0]) == hashes
