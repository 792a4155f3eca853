"""The answer of a trace: where the time went, what faster expert GEMMs could give, and whether it may be believed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.kernels.agreement import FAILED, WARNING, Check
from harness.kernels.labelling import label
from harness.kernels.ledger import UNCLASSIFIED, WHOLE, Ledger, Share, ledgers, without_profiler
from harness.kernels.taxonomy import COARSE, Rule, with_built_in
from harness.kernels.validity import Given, check
from harness.traces.read import read
from harness.traces.trace import HOST, PHASES, NoAnswer, Trace

if TYPE_CHECKING:
    from harness.kernels.labelling import Labelled

EXPERT, QUANT = "expert_gemm", "quant_dequant"
NAME_LENGTH = 300  # characters kept of a sample name

WORDS = {
    "sum_ms": "durations of all operations of the device added up; time in which two run counts twice",
    "busy_ms": "time in which at least one operation ran, on any stream: the union",
    "window_ms": "wall time: first start to last end; of a phase, the time its runs of steps took",
    "wall": "profiled: the window is the trace's own; unprofiled: it is what its steps take without a profiler",
    "idle_ms": "window less busy: nothing ran",
    "percent": "of sum_ms",
    "percent_of_busy": "charged_ms of busy_ms",
    "percent_of_window": "charged_ms of window_ms; all categories and idle add up to 100",
    "union_ms": "the category ran, whatever else did",
    "exclusive_ms": "the category ran, and nothing else did",
    "charged_ms": "exclusive, and an even share of the time it ran with other categories",
    "ms_per_step": "charged_ms by steps; without a timeline, time_ms by steps",
    "max_speedup": "1 / (1 - share of sum_ms): of the kernels, not of the wall time",
    "amdahl": "of wall time: 1 / (1 - exclusive_ms / window_ms) to 1 / (1 - union_ms / window_ms)",
    "launch_bound": "idle time between operations of one step: the device waits for its next launch",
    "precision_cost": "what quantises or dequantises; with_expert_gemm: the bracket if it and expert GEMMs took none",
}


@dataclass(frozen=True)
class Ceiling:
    """How many times as fast if categories took no time at all; None with a reason where there is no such number."""

    max_speedup: float | None  # of the summed kernel time
    lower: float | None  # of the window
    upper: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Analysis:
    """`ledger` answers; None where the trace cannot, and `problem` says why."""

    source: str
    problem: str | None = None
    trace: Trace | None = None
    labelled: Labelled | None = None
    ledger: Ledger | None = None
    ledgers: tuple[Ledger, ...] = ()
    checks: tuple[Check, ...] = ()
    given: Given = Given()

    @property
    def problems(self) -> list[str]:
        found = [f"{check.name}: {check.reason}" for check in self.checks if check.status == FAILED]
        return [self.problem] if self.problem else found

    @property
    def warnings(self) -> list[str]:
        found = [f"{check.name}: {check.reason}" for check in self.checks if check.status == WARNING]
        return found + list(self.trace.notes if self.trace else ())

    @property
    def phases(self) -> list[Ledger]:
        """Of the device that answers."""
        return [one for one in self.ledgers if one.device == self.ledger.device and one.phase != WHOLE]

    def to_json(self) -> dict[str, Any]:
        answer = ledger_json(self.ledger) if self.ledger else dict.fromkeys(_NO_ANSWER)
        if self.ledger:
            answer["denominators"]["words"] = WORDS
        return {
            "valid": not self.problems,
            "problems": self.problems,
            "warnings": self.warnings,
            "source": self.source,
            "format": self.trace.format if self.trace else None,
            **answer,
            "checks": [asdict(check) for check in self.checks],
            "ledgers": [ledger_json(ledger) for ledger in self.ledgers],
        }


def analyse(
    path: Path,
    rules: Sequence[Rule] = (),
    given: Given | None = None,
    device: int | None = None,
) -> Analysis:
    """`rules` come before the built-in ones. `device`: None takes the one with the longest window.

    What a trace cannot answer is in the result. Raises UsageError when it cannot be read, or has no such device.
    """
    given = given or Given()
    try:
        trace = read(path)
        labelled = label(trace, with_built_in(rules))
        found = ledgers(trace, labelled)
    except NoAnswer as error:
        return Analysis(path.name, str(error))
    return answer(trace, labelled, found, given, device)


def answer(trace: Trace, labelled: Labelled, found: list[Ledger], given: Given, device: int | None) -> Analysis:
    """Chooses the ledger that answers, and checks it. Raises UsageError when there is no such device."""
    whole = _whole(trace, found, device)
    phases = [ledger for ledger in found if ledger.device == whole.device and ledger.phase != WHOLE]
    checks = tuple(check(trace, labelled, whole, phases, given))
    found = [without_profiler(one, given.step_ms[one.phase]) if one.phase in given.step_ms else one for one in found]
    phases = [ledger for ledger in found if ledger.device == whole.device and ledger.phase != WHOLE]
    asked = next((ledger for ledger in phases if ledger.phase == given.phase), None) if given.phase else whole
    if asked is None:
        known = sorted({ledger.phase for ledger in phases if ledger.phase in PHASES})
        marked = f"it marks {' and '.join(known)}" if known else "it marks no phases: record it with steps marked"
        problem = f"{trace.source}: has no {given.phase} step on device {whole.device}; {marked}"
        return Analysis(trace.source, problem, trace, labelled, None, tuple(found), checks, given)
    return Analysis(trace.source, None, trace, labelled, asked, tuple(found), checks, given)


def _whole(trace: Trace, found: list[Ledger], device: int | None) -> Ledger:
    whole = {ledger.device: ledger for ledger in found if ledger.phase == WHOLE}
    if device is None:
        return max(whole.values(), key=lambda one: (one.device != HOST, one.window or 0, one.busy or 0, one.sum))
    if device not in whole:
        raise UsageError(f"{trace.source}: has no device {device}; it has {', '.join(map(str, whole))}")
    return whole[device]


def ceiling(ledger: Ledger, categories: Sequence[str] = (EXPERT,)) -> Ceiling:
    """Of several categories together the bracket is wider: exclusive times add up, and so do unions, at most to busy."""
    shares = [ledger.categories[name] for name in categories if name in ledger.categories]
    if not sum(share.sum for share in shares):
        return Ceiling(None, None, None, f"no {' or '.join(categories)} was found")
    total = _limit(sum(share.sum for share in shares), ledger.sum)
    if ledger.window is None:
        return Ceiling(total, None, None, ledger.reason)
    lower = _limit(sum(share.exclusive for share in shares), ledger.window)
    upper = _limit(min(ledger.busy, sum(share.union for share in shares)), ledger.window)
    reason = "nothing else took time: there is no bound" if None in (total, lower, upper) else None
    return Ceiling(total, lower, upper, reason)


def _limit(part: int, whole: int) -> float | None:
    return whole / (whole - part) if part < whole else None


def ledger_json(ledger: Ledger) -> dict[str, Any]:
    """One ledger with its answers; keys ending in _ms are milliseconds, in _ns whole nanoseconds, percent of 100."""
    steps = len(ledger.steps)
    found = ceiling(ledger)
    labels = [step.label for step in ledger.steps]
    unknown = ledger.categories.get(UNCLASSIFIED)
    return {
        "device": ledger.device,
        "phase": ledger.phase,
        "categories": {name: _share_json(share, ledger) for name, share in ledger.categories.items()},
        "coarse": {name: _share_json(share, ledger) for name, share in coarse(ledger).items()},
        "max_speedup": found.max_speedup,
        "amdahl": {"category": EXPERT, "lower": found.lower, "upper": found.upper, "reason": found.reason},
        "denominators": {
            "sum_ms": ledger.sum / 1e6,
            "busy_ms": _ms(ledger.busy),
            "window_ms": _ms(ledger.window),
            "idle_ms": _ms(ledger.idle),
            "overlap_ms": _ms(ledger.overlap),
            "reason": ledger.reason,
        },
        "wall": ledger.wall,
        "window_ns": ledger.window,
        "idle_ns": ledger.idle,
        "sum_ns": ledger.sum,
        "launch_bound": {
            "idle_ms": _ms(ledger.gaps),
            "percent_of_window": _percent(ledger.gaps, ledger.window),
            "reason": ledger.gaps_reason,
        },
        "precision_cost": _precision_cost(ledger),
        "unclassified": {
            "time_ms": (unknown.sum if unknown else 0) / 1e6,
            "percent": _percent(unknown.sum if unknown else 0, ledger.sum),
            "samples": _names(unknown) if unknown else [],
        },
        "found_by": {word: _percent(time, ledger.sum) for word, time in ledger.found_by.items()},
        "kernel_count": ledger.count,
        "steps": {
            "count": steps,
            "ms_per_step": _ms(ledger.window) / steps if steps and ledger.window is not None else None,
            "labels": {text[:NAME_LENGTH]: labels.count(text) for text in list(dict.fromkeys(labels))[:5]},
        },
    }


def coarse(ledger: Ledger) -> dict[str, Share]:
    """The seeds' categories. Times that do not add up across categories, union and exclusive, are left out."""
    groups: dict[str, list[Share]] = {}
    for name, share in ledger.categories.items():
        groups.setdefault(COARSE.get(name, "other"), []).append(share)
    return {
        name: Share(
            sum(share.sum for share in shares),
            sum(share.count for share in shares),
            shares[0].samples,
            charged=None if ledger.window is None else sum(share.charged for share in shares),
        )
        for name, shares in groups.items()
    }


def _share_json(share: Share, ledger: Ledger) -> dict[str, Any]:
    time = share.sum if share.charged is None else share.charged
    return {
        "time_ms": share.sum / 1e6,
        "percent": _percent(share.sum, ledger.sum),
        "kernel_count": share.count,
        "samples": _names(share),
        "union_ms": _ms(share.union),
        "exclusive_ms": _ms(share.exclusive),
        "charged_ms": _ms(share.charged),
        "percent_of_busy": _percent(share.charged, ledger.busy),
        "percent_of_window": _percent(share.charged, ledger.window),
        "ms_per_step": time / len(ledger.steps) / 1e6 if ledger.steps else None,
        "time_ns": share.sum,
        "charged_ns": share.charged,
    }


def _precision_cost(ledger: Ledger) -> dict[str, Any]:
    """What quantising costs, and what is left of the ceiling when that is counted as time of the experts' precision."""
    share = ledger.categories.get(QUANT)
    kept = ("time_ms", "charged_ms", "percent_of_window", "ms_per_step")
    if share is None:
        reason = "no kernel that only quantises or dequantises was found; what is fused into others is not counted"
        return {**dict.fromkeys(kept), "with_expert_gemm": None, "reason": reason}
    shown = _share_json(share, ledger)
    both = ceiling(ledger, (EXPERT, QUANT))
    bracket = {"lower": both.lower, "upper": both.upper, "reason": both.reason}
    return {**{name: shown[name] for name in kept}, "with_expert_gemm": bracket, "reason": None}


def _names(share: Share) -> list[str]:
    return [name if len(name) <= NAME_LENGTH else name[:NAME_LENGTH] + "..." for name in share.samples]


def _ms(time: int | None) -> float | None:
    return None if time is None else time / 1e6


def _percent(part: int | None, whole: int | None) -> float | None:
    return None if part is None or not whole else 100 * part / whole


_NO_ANSWER = (
    "device phase categories coarse max_speedup amdahl denominators wall window_ns idle_ns sum_ns launch_bound "
    "precision_cost unclassified found_by kernel_count steps"
).split()
