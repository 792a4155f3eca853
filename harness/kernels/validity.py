"""The gate: may this trace answer for the engine? Each check says ok, warning, failed or not checked, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import polars as pl

from harness.kernels.agreement import FAILED, NOT_CHECKED, OK, WARNING, Check, kernels_agree, percent
from harness.kernels.labelling import ROTARY
from harness.kernels.ledger import UNCLASSIFIED, Ledger, category_of
from harness.traces.trace import HOST, PHASES, Trace

if TYPE_CHECKING:
    from harness.kernels.labelling import Labelled
    from harness.kernels.taxonomy import Label

UNCLASSIFIED_SHARE = 0.05  # of summed time; more is a warning
UNATTRIBUTED_SHARE = 0.2
INFLATION = 0.1  # how far a profiled step may lie from an unprofiled one
ODD_STEP = 2  # times the median step
HEAVY = 0.02  # of a category's time in a phase: lighter kernels may be called once a step
FILLED = COPIED = 0.2  # of summed time; no step of an engine spends as much on filling or on copies from the host
TRIED_OUT = 20  # distinct GEMMs called hardly ever
EXPERTS, ATTENTION = ("expert_gemm",), ("attention",)
PER_LAYER = (EXPERTS, ATTENTION, ("gate_gemm", "routing_permute"))
DEEP = 16  # layers; a sampler has fewer kernels
ONE_BY_ONE = 4  # expert GEMMs of a layer; more are a loop over experts, which is as long as tokens chose
GEMMS = ("expert_gemm", "dense_gemm", "gate_gemm")

AUTOTUNING = re.compile(r"delayStreamKernel|autotun", re.IGNORECASE)
LOADING = re.compile(r"repack|weight_?loader|shuffle_?weight|permute_?weight", re.IGNORECASE)
FROM_HOST = re.compile(r"HtoD|Host-to-Device", re.IGNORECASE)
CAPTURE = re.compile(r"capture_model|capture_begin|graph_?capture|cuda_?graph.{0,20}captur|_dummy_run", re.IGNORECASE)


@dataclass(frozen=True)
class Given:
    """What is known of the run from elsewhere; None: not known."""

    layers: int | None = None
    step_ms: Mapping[str, float] = field(default_factory=dict)  # by phase, of a step without profiler
    precision: str | None = None
    compute_mode: str | None = None
    phase: str | None = None  # the one asked for


def check(trace: Trace, labelled: Labelled, ledger: Ledger, phases: list[Ledger], given: Given) -> list[Check]:
    """`ledger`: of the whole device that answers; `phases`: its ledgers by phase."""
    devices = labelled.ops["device"].n_unique()
    return [
        *_expected(ledger, devices),
        _unclassified(ledger),
        _autotuning(ledger),
        _loading(ledger),
        _capture(trace),
        _attributed(trace, labelled, ledger),
        *_alike(phases),
        _layers(trace, labelled, ledger, given.layers),
        _sampling(trace, labelled, ledger, given.layers),
        *_inflation(phases, given),
        kernels_agree(
            [(one.category, one.name, one.sum) for one in ledger.kernels], given.precision, given.compute_mode
        ),
    ]


def _expected(ledger: Ledger, devices: int) -> Iterator[Check]:
    for category, word in (("expert_gemm", "expert GEMM"), ("attention", "attention")):
        share = ledger.categories.get(category)
        if share and share.sum:
            yield Check(f"{word} present", OK, f"{share.count} calls")
        else:
            missing = (
                "no kernel was recognised as one: they may run under names of other work, or lie outside of the trace"
            )
            yield Check(f"{word} present", FAILED, missing)
    if devices < 2 or ledger.device == HOST:
        yield Check("communication present", NOT_CHECKED, "one device in the trace")
    elif "comm" in ledger.categories:
        yield Check("communication present", OK, f"{ledger.categories['comm'].count} calls")
    else:
        missing = f"{devices} devices took part and none sent anything: they may have worked apart"
        yield Check("communication present", WARNING, missing)


def _unclassified(ledger: Ledger) -> Check:
    unknown = ledger.categories.get(UNCLASSIFIED)
    expert = ledger.categories.get("expert_gemm")
    share = unknown.sum / ledger.sum if unknown and ledger.sum else 0.0
    said = f"{percent(share)} of the summed time has no known category"
    if unknown and unknown.sum > (expert.sum if expert else 0) and share > UNCLASSIFIED_SHARE:
        return Check("classified", FAILED, f"{said}, more than expert GEMMs have")
    return Check("classified", WARNING if share > UNCLASSIFIED_SHARE else OK, said)


def _autotuning(ledger: Ledger) -> Check:
    name = "no autotuning"
    if tuned := _time(ledger, AUTOTUNING):
        return Check(name, FAILED, f"kernels of an autotuner have {percent(tuned / ledger.sum)} of the summed time")
    if (filled := _time(ledger, re.compile("FillFunctor"))) > FILLED * ledger.sum:
        return Check(
            name, FAILED, f"filling memory has {percent(filled / ledger.sum)} of the summed time, as autotuners do"
        )
    calls: dict[str, int] = {}
    for kernel in ledger.kernels:
        if kernel.category in GEMMS:
            calls[kernel.name] = calls.get(kernel.name, 0) + kernel.count
    rare = sum(count <= 3 for count in calls.values())
    if rare >= TRIED_OUT and rare > len(calls) / 2:
        return Check(name, FAILED, f"{rare} of {len(calls)} GEMM kernels ran three times or less: they were tried out")
    return Check(name, OK, "no kernel of an autotuner, no series of GEMMs tried out")


def _loading(ledger: Ledger) -> Check:
    name = "no loading"
    if packed := _time(ledger, LOADING):
        return Check(name, FAILED, f"weights were repacked for {packed / 1e6:.2f} ms in the window")
    copied = _time(ledger, FROM_HOST)
    if copied > COPIED * ledger.sum:
        return Check(name, FAILED, f"copies from the host have {percent(copied / ledger.sum)} of the summed time")
    return Check(name, OK, "no repacking of weights, few copies from the host")


def _capture(trace: Trace) -> Check:
    name = "no graph capture"
    if not trace.scopes:
        return Check(name, NOT_CHECKED, "the trace does not say who launched its operations")
    found = next((scope for scope in trace.scopes if CAPTURE.search(scope)), None)
    if found:
        return Check(name, FAILED, f"operations were launched while a graph was captured: {found[:120]}")
    return Check(name, OK, "nothing was launched by a capture")


def _attributed(trace: Trace, labelled: Labelled, ledger: Ledger) -> Check:
    name = "attributed"
    if not trace.scopes or not ledger.sum:
        return Check(name, NOT_CHECKED, "the trace does not say who launched its operations")
    loose = labelled.ops.lazy().filter((pl.col("device") == ledger.device) & pl.col("scope").is_null())
    share = loose.select(pl.col("duration").sum()).collect().item() / ledger.sum
    said = f"of {percent(share)} of the summed time it is unknown who launched it"
    return Check(name, WARNING if share > UNATTRIBUTED_SHARE else OK, said)


def _alike(phases: list[Ledger]) -> Iterator[Check]:
    for ledger in phases:
        if ledger.phase in PHASES and len(ledger.steps) >= 3:
            middle = median(step.time for step in ledger.steps)
            slow = [step for step in ledger.steps if step.time > ODD_STEP * middle]
            name = f"{ledger.phase} steps alike"
            if slow:
                worst = max(slow, key=lambda step: step.time)
                said = f"{len(slow)} of {len(ledger.steps)} take more than {ODD_STEP} times the median of"
                said += f" {middle / 1e6:.2f} ms; the slowest {worst.time / 1e6:.2f} ms"
                yield Check(name, WARNING, said)
            else:
                longest = max(step.time for step in ledger.steps)
                said = f"{len(ledger.steps)} steps, median {middle / 1e6:.2f} ms, longest {longest / 1e6:.2f} ms"
                yield Check(name, OK, said)


def _layers(trace: Trace, labelled: Labelled, ledger: Ledger, layers: int | None) -> Check:
    """Calls of a category per step, but for kernels that hardly take time: those may prepare a whole step."""
    name = "calls per layer"
    if layers is None:
        return Check(name, NOT_CHECKED, "the number of layers is not given (--layers N)")
    if not any(step.phase for step in ledger.steps):
        return Check(name, NOT_CHECKED, "the trace marks no steps")
    if ledger.device == HOST:
        return Check(name, NOT_CHECKED, "operations of a CPU are many to a kernel")
    wrong, right, one_by_one = [], [], []
    for categories in PER_LAYER:
        for phase, calls in _calls(trace, labelled, ledger.device, categories):
            said = f"{' or '.join(categories)} {', '.join(map(str, sorted(set(calls))))} per {phase} step"
            if categories == EXPERTS and max(calls) > ONE_BY_ONE * layers:
                one_by_one.append(phase)
            if phase not in one_by_one or categories == ATTENTION:
                (wrong if any(count % layers for count in calls) else right).append(said)
    loop = f"experts run one by one in {' and '.join(one_by_one)}, as many as tokens chose" if one_by_one else ""
    if wrong:
        return Check(name, FAILED, f"no multiple of {layers} layers: {'; '.join(wrong)}")
    if not right:
        return Check(name, NOT_CHECKED, loop or "no kernel of a layer was recognised")
    return Check(name, OK, f"multiples of {layers} layers: {'; '.join([*right, *filter(None, [loop])])}")


def _sampling(trace: Trace, labelled: Labelled, ledger: Ledger, layers: int | None) -> Check:
    name = "sampling once a step"
    if layers is None or layers < DEEP or ledger.device == HOST:
        return Check(name, NOT_CHECKED, f"{DEEP} layers or more tell a sampler from a choice of experts on a GPU")
    for phase, calls in _calls(trace, labelled, ledger.device, ("sampling",)):
        if max(calls) >= layers:
            said = f"{max(calls)} kernels in a {phase} step of {layers} layers: experts are chosen by them"
            return Check(name, FAILED, said)
    return Check(name, OK, f"fewer kernels in a step than its {layers} layers")


def _calls(trace: Trace, labelled: Labelled, device: int, categories: Iterable[str]) -> Iterator[tuple[str, list[int]]]:
    labels = [i for i, one in enumerate(labelled.labels) if category_of(one) in categories and not _is_loose(one)]
    own = labelled.ops.lazy().filter((pl.col("device") == device) & pl.col("step").is_not_null())
    own = own.filter(pl.col("label").is_in(labels)).group_by("step", "name")
    sums = own.agg(pl.col("duration").sum(), pl.col("count").cast(pl.Int64).sum()).collect()
    phase_of = pl.Series([step.phase for step in trace.steps], dtype=pl.String)
    sums = sums.with_columns(phase_of.gather(sums["step"]).alias("phase"))
    for phase in PHASES:
        found = sums.filter(pl.col("phase") == phase)
        time = pl.col("duration").sum().over("name")
        found = found.filter(time >= HEAVY * found["duration"].sum())
        counts = found.group_by("step").agg(pl.col("count").sum())["count"].to_list()
        if counts:
            yield phase, counts


def _is_loose(label: Label) -> bool:
    """A piece around attention, or a rotation, which some models make once for all layers."""
    return label == ROTARY or (label.category == "attention" and label.confidence == "low")


def _inflation(phases: list[Ledger], given: Given) -> Iterator[Check]:
    """A profiler may slow the host, which is idle time and known otherwise. It may not make the kernels others."""
    found = {ledger.phase: ledger for ledger in phases if ledger.steps and ledger.window}
    for phase in PHASES:
        name = f"profiled {phase} step like an unprofiled one"
        step_ms, ledger = given.step_ms.get(phase), found.get(phase)
        if step_ms is None:
            yield Check(name, NOT_CHECKED, f"the time of a {phase} step without profiler is not given")
        elif ledger is None:
            yield Check(name, NOT_CHECKED, f"the trace marks no {phase} step with a timeline")
        else:
            profiled, busy = (time / len(ledger.steps) / 1e6 for time in (ledger.window, ledger.busy))
            ratio = profiled / step_ms
            said = f"{profiled:.3f} ms in the trace, {step_ms:.3f} ms without profiler ({percent(ratio - 1, '+.1f')})"
            if busy > (1 + INFLATION) * step_ms:
                yield Check(name, FAILED, f"{said}; its operations alone take {busy:.3f} ms: it is other work")
            elif abs(ratio - 1) > INFLATION:
                yield Check(name, WARNING, f"{said}: idle time is taken from the latter")
            else:
                yield Check(name, OK, said)


def _time(ledger: Ledger, pattern: re.Pattern[str]) -> int:
    return sum(kernel.sum for kernel in ledger.kernels if pattern.search(kernel.name))
