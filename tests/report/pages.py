"""What the tests of reports share: records with other names, content of folders, and the text of a page."""

from __future__ import annotations

import hashlib
import html
import json
import re
from html.parser import HTMLParser

from harness import report
from harness.report.read import read

PLAIN = {"precision": "bf16", "quantize": None, "quant_algo": None}


def named(record: dict, **content) -> dict:
    """The record with other values at its top level, and a key of its own."""
    key = hashlib.sha256(json.dumps([record["key"], content]).encode()).hexdigest()[:16]
    return {**record, "key": key, **content}


def failed(record: dict, message: str = "CUDA out of memory", log: str = "a log") -> dict:
    failure = {"class": "out_of_memory", "message": message, "log_tail": log}
    return {**record, "status": "failed", "failure": failure, "latency_ms": None, "raw": None}


def content(*folders) -> dict:
    return report.content(read(folders))


def row(table: dict, **wanted: str) -> dict:
    """The one row whose columns begin with these texts, by the beginning of its column's name."""
    names = [column["name"] for column in table["columns"]]
    rows = [dict(zip(names, cells)) for cells in table["rows"]]
    (found,) = (one for one in rows if all(str(said(one[name])).startswith(text) for name, text in wanted.items()))
    return {name.partition(" (")[0]: value for name, value in found.items()}


def said(cell) -> str:
    return cell[1] if isinstance(cell, list) else cell


def sentences(found: dict) -> dict[str, str]:
    """Of the one verdict, by their word."""
    (verdict,) = found["verdicts"]
    return dict(verdict.said)


def elements(page: str) -> list[tuple[str, dict[str, str]]]:
    """Tags of a page with their attributes, as an HTML parser has them."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(page)
    return found


def words(dom: str) -> str:
    """The text of a DOM, without its scripts and styles."""
    plain = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", dom)
    return html.unescape(re.sub(r"(?s)<[^>]+>", " ", plain))
