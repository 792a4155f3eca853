"""The report as Markdown for a pull request: the verdict, one table, the ladder where there is one, what failed, and the
conditions, in one comment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from harness import __version__
from harness.recording.conditions import CONDITIONS
from harness.report import cells, tables
from harness.report.ladder import ladder
from harness.report.read import MEASURED, Entry, Found
from harness.report.rows import Facts, by, subject
from harness.report.verdict import Verdict, verdicts

LARGEST = 60_000  # characters; GitHub takes 65,536
ROWS, FAILURES, SUBJECTS, REASONS, FOLDERS = 60, 10, 8, 10, 4
SENTENCE = 2000  # characters of one of ours
LONGEST = 300  # characters of one text from a record
COLUMNS = (
    "model,engine,precision,compute mode,batch,in+out,latency ms,× bf16,TTFT ms,ITL ms,output tok/s,n,perplexity,change %,"
    "chunks,dataset,config,device"
).split(",")
LADDER = (
    "model,engine,precision,batch,in+out,starts,rung,changes output,ITL × eager,ITL × step,TTFT × eager,TTFT ms,ITL ms,"
    "output tok/s,decode of limit %,memory GiB,J / token,perplexity,KL prefill,KL decode,device"
).split(",")
SPECIAL = re.compile(r"[\\`*\[\]<>#|~&$]|(?<!\w)_|_(?!\w)|^[-+=]|^\d+(?=[.)]\s)")


def render(found: Found) -> str:
    facts = Facts(found.entries)
    results = [
        *_table("Results (times are means)", tables.precisions(facts), COLUMNS),
        *_table("Ladder (times are medians)", ladder(facts), LADDER),
    ]
    parts = [*_head(found), *_verdicts(verdicts(facts)), *results, *_failures(found), *_conditions(facts)]
    text = "\n".join(parts) + "\n"
    if len(text) <= LARGEST:
        return text
    kept = text[: text.rindex("\n", 0, LARGEST)]
    folded = "\n</details>" * (kept.count("<details>") - kept.count("</details>"))
    return f"{kept}{folded}\n\nCut here: a comment holds no more. `--format html` has all of it.\n"


def escaped(text: object, longest: int = LONGEST) -> str:
    """One line in which no character of a record means anything to Markdown or HTML, and that mentions nobody."""
    plain = " ".join(str(text).split())
    plain = plain if len(plain) <= longest else plain[: longest - 1] + "…"
    return SPECIAL.sub(_harmless, plain).replace("@", "@\u2060").replace("://", ":&#47;/")


def _harmless(found: re.Match[str]) -> str:
    """Entities where a backslash would not do: in HTML, for what ends a cell of a table, and in a number of a list."""
    text = found[0]
    return "".join(f"&#{ord(one)};" for one in text) if text in "<>&|`" or text.isdecimal() else f"\\{text}"


def _head(found: Found) -> Iterator[str]:
    folders = list(dict.fromkeys(entry.folder for entry in found.entries))
    counts = ", ".join(f"{count} {status}" for status, count in cells.counts(found.entries) if count)
    named = ", ".join(map(escaped, folders[:FOLDERS])) + (
        f" and {len(folders) - FOLDERS} more" if len(folders) > FOLDERS else ""
    )
    yield "## Which precision pays, on which engine"
    total = len(found.entries)
    yield f"\n{total} record{'s' * (total != 1)} from {named}: {counts}. harness {__version__}"
    if found.passed_over:
        first = found.passed_over[0]
        yield f"\n{len(found.passed_over)} files are not shown, the first {escaped(first[0])}: {escaped(first[1])}"


def _verdicts(found: Sequence[Verdict]) -> Iterator[str]:
    for verdict in found[:SUBJECTS]:
        weights = "random weights, " if verdict.weights == "dummy" else ""
        yield f"\n### {escaped(verdict.model)} ({weights}{escaped(verdict.device)})\n"
        for word, sentences in verdict.said:
            lines = [escaped(line, SENTENCE) for line in sentences.split("\n")]
            yield f"- **{word}**: {'<br>'.join(lines)}"
    if len(found) > SUBJECTS:
        yield f"\n{len(found) - SUBJECTS} more models and devices are in the table and in the HTML report."


def _table(title: str, table: tables.Table, columns: Sequence[str]) -> Iterator[str]:
    names = [column["name"] for column in table["columns"]]
    kept = [i for wanted in columns for i, name in enumerate(names) if name == wanted or name.startswith(f"{wanted} (")]
    if not kept or not table["rows"]:
        return
    yield f"\n### {title}\n"
    if table["common"]:
        yield (
            "In all rows: " + ", ".join(f"{escaped(name)} {escaped(value)}" for name, value in table["common"]) + ".\n"
        )
    if table["absent"]:
        reasons = (f"{escaped(', '.join(which))} ({escaped(why)})" for why, which in table["absent"])
        yield f"Not there: {'; '.join(reasons)}.\n"
    yield _line(names[i] for i in kept)
    yield "|" + "|".join("---:" if table["columns"][i]["number"] else "---" for i in kept) + "|"
    for row in table["rows"][:ROWS]:
        yield _line(tables.said(row[i]) for i in kept)
    if len(table["rows"]) > ROWS:
        yield f"\n{len(table['rows']) - ROWS} more rows are in the HTML report."


def _line(texts: Any) -> str:
    return "| " + " | ".join(escaped(text) for text in texts) + " |"


def _failures(found: Found) -> Iterator[str]:
    failures = cells.failures(found.entries)
    if failures:
        yield "\n### Failures\n"
    for failure in failures[:FAILURES]:
        head = (
            f"{escaped(failure['class'])}: {escaped(failure['what'])}{' (measured since)' if failure['is_old'] else ''}"
        )
        yield f"<details><summary>{head}</summary>\n\n{escaped(failure['message'])}\n"
        yield f"{_fenced(failure['log'])}\n</details>"
    if len(failures) > FAILURES:
        yield f"\n{len(failures) - FAILURES} more failures are in the HTML report."
    for title, status in (("Mismatched: kept, and not compared", "mismatch"), ("Skipped", "skipped")):
        reasons = cells.reasons(found.entries, status)
        if reasons:
            yield f"\n### {title}\n"
            yield from (f"- {escaped(why)}: {escaped('; '.join(which))}" for why, which in reasons[:REASONS])
        if len(reasons) > REASONS:
            yield f"- and {len(reasons) - REASONS} more reasons"


def _fenced(log: str) -> str:
    """A block of code that nothing in the log can end."""
    longest = max(map(len, re.findall(r"`+", log)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{log[-4000:] or 'no log'}\n{fence}"


def _conditions(facts: Facts) -> Iterator[str]:
    """What the measured cells of each subject agree in, and by name what they do not."""
    measured = [entry for entry in facts.entries if entry.record["status"] in MEASURED]
    if not measured:
        return
    yield "\n### Conditions\n"
    for about, group in list(by(measured, lambda entry: subject(entry.record)).items())[:SUBJECTS]:
        speed = [entry for entry in group if entry.record["workload"] == "perf"] or group
        values = {name: {_value(entry, name) for entry in speed} for name in CONDITIONS}
        same = [f"{escaped(name)} {escaped(next(iter(one)))}" for name, one in values.items() if len(one) == 1]
        differ = [escaped(name) for name, one in values.items() if len(one) > 1]
        tail = f"; differ from row to row: {', '.join(differ)}" if differ else ""
        yield f"- {escaped(about[0])} on {escaped(about[2])}: {', '.join(same)}{tail}"


def _value(entry: Entry, name: str) -> str:
    value = entry.record["conditions"].get(name)
    return "unknown" if value is None else str(value)[:40]
