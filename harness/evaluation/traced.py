"""kernel_flop_ratio from a trace: the share of a model's products that is done by a set of kernels, named by patterns.

A trace tells which kernels ran and how often, not what each one multiplied. The products are counted from the model's
config.json, by category of kernel; a category is the set's when all of its kernels are, and not when none is. Of one
that is split only the user can say whether its calls are equal work; unless that is said, no ratio is given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UsageError
from harness.evaluation.flops import KernelFlopProvider, KernelFlops
from harness.hookspecs import hookimpl
from harness.jsonfile import Node, load
from harness.model.shape import KIND_OF
from harness.recording.roofline import count as count_work

if TYPE_CHECKING:
    from harness.kernels.labelling import Labelled
    from harness.traces.trace import Trace

FILE = "kernel_set.json"  # in a folder
PARTS = {  # of harness.recording.roofline's work, by the category of the kernels that do it
    "expert_gemm": ("experts",),
    "dense_gemm": ("shared experts", "dense MLP", "attention projections", "head"),
    "gate_gemm": ("router",),
    "attention": ("attention scores",),
}
MUCH = 0.05  # share of time that no rule knows, from which it is said
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class KernelSet:
    """What a description file says. Patterns are regular expressions that match anywhere in a kernel's name."""

    trace: Path
    config: Mapping[str, Any]  # the model's config.json
    phase: str  # of harness.traces.trace.PHASES
    batch_size: int
    input_len: int
    output_len: int | None  # of decode
    kernels: tuple[str, ...]  # patterns of the set
    no_products: tuple[str, ...] = ()  # patterns of kernels that multiply nothing, e.g. those that fill the cache
    split_by_calls: tuple[str, ...] = ()  # categories of which the user says that every call is equal work


@dataclass(frozen=True)
class _Calls:
    category: str
    name: str
    calls: int
    known: bool  # a rule knows it
    ns: int


@hookimpl
def harness_register_kernel_flop_providers() -> list[KernelFlopProvider]:
    return [KernelFlopProvider("trace", f"products of named kernels in a trace, described by {FILE}", count)]


def count(path: Path) -> KernelFlops:
    """MACs of one step, of the kernels that `path` describes and of all: a JSON file, or a folder with kernel_set.json.

    Raises UsageError, or NoAnswer where the trace lacks what the question needs, one line each.
    """
    given = read_set(path)

    from harness.kernels.labelling import label  # needs polars, which a wrong description need not wait for
    from harness.kernels.taxonomy import with_built_in
    from harness.traces.read import read

    trace = read(given.trace)
    return of_trace(trace, label(trace, with_built_in()), given)


def of_trace(trace: Trace, labelled: Labelled, given: KernelSet) -> KernelFlops:
    """The count itself. Raises UsageError when the trace does not tell who does a part of the products."""
    calls, notes = _calls(trace, labelled, given)
    wanted = [_compiled(pattern) for pattern in given.kernels]
    for pattern in wanted:
        if not any(pattern.search(call.name) for call in calls):
            raise UsageError(f"{trace.source}: no kernel of {given.phase} matches {pattern.pattern!r}")
    idle = [_compiled(pattern) for pattern in given.no_products]
    working = [call for call in calls if not any(pattern.search(call.name) for pattern in idle)]
    macs = _macs(given)
    by_category = {name: [call for call in working if call.category == name] for name in PARTS}
    if macs["gate_gemm"] and not by_category["gate_gemm"]:
        macs["dense_gemm"] += macs.pop("gate_gemm")
        notes.append("no kernel is labelled as the router's: its products are counted with the dense ones")
    of_set = 0
    for category, products in macs.items():
        if products:
            share, said = _share(category, by_category[category], wanted, given, trace.source)
            of_set += round(share * products)
            notes += said
    others = {call.category for call in calls if any(p.search(call.name) for p in wanted)} - PARTS.keys()
    if others:
        notes.append(f"kernels of the set in {', '.join(sorted(others))} do no products that are counted")
    sources = (str(given.trace), f"{given.phase} of {given.batch_size} x {given.input_len} tokens, by config.json")
    return KernelFlops(of_set, sum(macs.values()), sources, tuple(notes))


def read_set(path: Path) -> KernelSet:
    """Reads and checks a description file; paths in it are relative to its folder. Raises UsageError."""
    file = path / FILE if path.is_dir() else path
    node = _one(file)
    names = set(KernelSet.__dataclass_fields__)
    if not isinstance(node.value, dict):
        node.refuse("expected an object")
    if unknown := sorted(set(node.value) - names):
        raise UsageError(f"{file}: {unknown[0]!r} is not a key here; known: {', '.join(sorted(names))}")
    phase = node.at("phase").need().text()
    if phase not in ("prefill", "decode"):
        node.at("phase").refuse("expected prefill or decode")
    output_len = node.at("output_len").count()
    if phase == "decode" and (output_len is None or output_len < 2):
        node.at("output_len").refuse("decode needs at least 2 output tokens")
    split = _texts(node.at("split_by_calls"))
    if other := sorted(set(split) - PARTS.keys()):
        node.at("split_by_calls").refuse(f"{other[0]!r} is none of {', '.join(PARTS)}")
    folder, kernels = file.parent, _texts(node.at("kernels").need())
    if not kernels:
        node.at("kernels").refuse("expected at least one pattern")
    return KernelSet(
        trace=folder / node.at("trace").need().text(),
        config=_one(folder / node.at("config").need().text()).value,
        phase=phase,
        batch_size=_positive(node.at("batch_size")),
        input_len=_positive(node.at("input_len")),
        output_len=output_len,
        kernels=kernels,
        no_products=_texts(node.at("no_products")),
        split_by_calls=split,
    )


def _macs(given: KernelSet) -> dict[str, int]:
    """MACs of one step by category. Formats change bytes, not products, so any will do here."""
    decode = given.phase == "decode"
    work = count_work(
        given.config,
        dict.fromkeys(KIND_OF.values(), "bf16"),
        given.batch_size,
        tokens=1 if decode else given.input_len,
        context=given.input_len + (given.output_len - 2) / 2 if decode else 0,
        kv_dtype="bfloat16",
    )
    flops = {part.name: part.flops for part in work.parts}
    return {category: round(sum(flops.get(name, 0) for name in names) / 2) for category, names in PARTS.items()}


def _share(
    category: str, calls: list[_Calls], wanted: list[re.Pattern[str]], given: KernelSet, source: str
) -> tuple[float, list[str]]:
    """Of a category's products, what the set does; and what must be said about it."""
    if not calls:
        raise UsageError(
            f"{source}: no kernel of {given.phase} is labelled {category}, so who does these products is not told; "
            f"record the trace with module ranges"
        )
    inside = [call for call in calls if any(pattern.search(call.name) for pattern in wanted)]
    outside = [call for call in calls if call not in inside]
    if not inside or not outside:
        return (1.0 if inside else 0.0), []
    share = sum(call.calls for call in inside) / sum(call.calls for call in calls)
    if category in given.split_by_calls:
        return share, [f"{share:.4f} of {category} by calls, said to be equal work"]
    raise UsageError(
        f"{source}: of {category} the set has {_names(inside)} and not {_names(outside)}: their parts of the products "
        f"are not told. Add them to kernels, to no_products if they multiply nothing, or {category} to split_by_calls "
        f"if every call is equal work"
    )


def _calls(trace: Trace, labelled: Labelled, given: KernelSet) -> tuple[list[_Calls], list[str]]:
    """Names of the phase's kernels with their category and number of calls; and what must be said about them."""
    ops, notes = labelled.ops.filter(labelled.ops["kind"].is_in(["kernel", "op"])), []
    steps = [index for index, step in enumerate(trace.steps) if step.phase == given.phase]
    if steps:
        ops = ops.filter(ops["step"].is_in(steps))
    elif any(step.phase for step in trace.steps):
        raise UsageError(f"{trace.source}: has no step of {given.phase}")
    else:
        notes.append(f"the trace marks no phases: all of its kernels are taken for those of {given.phase}")
    totals = ops.select("label", "name", "count", "duration").group_by("label", "name").sum()
    calls = []
    for index, name, number, ns in totals.sort("label", "name").iter_rows():
        found = labelled.labels[index]
        calls.append(_Calls(found.category, trace.names[name], number, found.found_by != "none", ns or 0))
    if not calls:
        raise UsageError(f"{trace.source}: holds no kernel of {given.phase}")
    unknown, total = sum(call.ns for call in calls if not call.known), sum(call.ns for call in calls)
    if unknown > MUCH * total:
        notes.append(f"{unknown / total:.1%} of kernel time is of kernels no rule knows: products there are missed")
    return calls, notes


def _names(calls: list[_Calls]) -> str:
    names = [f"{' '.join(call.name.split())[:60]!r}" for call in sorted(calls, key=lambda call: -call.ns)]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression: {error}") from None


def _one(file: Path) -> Node:
    nodes = load(file)[1]
    if len(nodes) != 1:
        raise UsageError(f"{file}: holds {len(nodes)} JSON values, expected one")
    return nodes[0]


def _texts(node: Node) -> tuple[str, ...]:
    return tuple(item.need().text() for item in node.items())


def _positive(node: Node) -> int:
    return node.need().count() or node.refuse("expected a whole number from 1 on")
