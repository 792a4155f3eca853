"""One page about any number of records: the verdict first, then what it rests on. HTML for people, Markdown for pull
requests. Nothing is measured or ranked here: every ratio is that of `harness compare`, every order that of the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def html(paths: Sequence[Path]) -> str:
    """One self-contained file. Raises UsageError for folders without records, and where the extra is not installed."""
    from harness.report import page
    from harness.report.read import read

    with page.vega() as script:  # takes two seconds of another core
        found = read(paths)
        return page.render(content(found), script)


def markdown(paths: Sequence[Path]) -> str:
    """Short enough for a comment on a pull request. Raises UsageError for folders without records."""
    from harness.report import comment
    from harness.report.read import read

    return comment.render(read(paths))


def content(found: Any) -> dict[str, Any]:
    """Everything the page shows, as plain JSON values. `found`: a `harness.report.read.Found`."""
    from harness.report import cells, distributions, kernels, ladder, limits, pareto, scaling, tables
    from harness.report.rows import Facts
    from harness.report.verdict import verdicts

    facts = Facts(found.entries)
    made = (
        pareto.chart(facts),
        distributions.chart(facts),
        kernels.ledger(facts),
        kernels.waterfalls(facts),
        limits.chart(facts),
        scaling.chart(facts),
    )
    shown = (
        tables.precisions(facts),
        tables.engines(facts),
        tables.limits(facts),
        ladder.ladder(facts),
        cells.ledger(found.entries),
    )
    return {
        "verdicts": verdicts(facts),
        "charts": {one["id"]: one for one in made},
        "tables": {one["id"]: one for one in shown},
        "counts": cells.counts(found.entries),
        "failures": cells.failures(found.entries),
        "skipped": cells.reasons(found.entries, "skipped"),
        "mismatched": cells.reasons(found.entries, "mismatch"),
        "passed_over": found.passed_over,
        "environments": cells.environments(found.entries),
        "folders": list(dict.fromkeys(entry.folder for entry in found.entries)),
    }
