"""What each operation of a trace is: by the module that launched it, then by its position, then by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import polars

from harness.kernels.position import by_position, role_of
from harness.kernels.taxonomy import Label, Rule, classify
from harness.traces.trace import SCOPE, Trace

PIECE = 1_000_000  # operations looked at together: intermediate columns of all of them would double the memory


@dataclass(frozen=True)
class Labelled:
    """`ops` are the trace's, in their order, with the column label: UInt16, index into `labels`."""

    ops: polars.DataFrame
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class Place:
    """Where in the model something was launched."""

    part: str | None  # a key of PARTS; None where the scope does not tell
    operators: tuple[str, ...]  # innermost first: ("aten::sum", "_moe_C::moe_sum")


def label(trace: Trace, rules: Sequence[Rule]) -> Labelled:
    """Label every operation. Each pair of a name and a scope is looked at once, however often it was called."""
    scopes = len(trace.scopes) + 1  # one more: no scope
    pair = polars.col("name").cast(polars.UInt64) * scopes + polars.col("scope").fill_null(scopes - 1)
    pieces = [trace.ops.slice(first, PIECE).lazy().select(pair=pair) for first in range(0, len(trace.ops) or 1, PIECE)]
    distinct = polars.concat(piece.collect()["pair"].unique() for piece in pieces).unique().sort()
    by_name = lru_cache(maxsize=None)(lambda name: classify(name, rules))
    fused = any(_FUSED.search(scope) for scope in trace.scopes)
    labels: dict[Label, int] = {}
    found, roles = [], []
    for name, scope in (divmod(number, scopes) for number in distinct):
        place = place_of(trace.scopes[scope]) if scope < len(trace.scopes) else NOWHERE
        one = in_scope(by_name(trace.names[name]), place, by_name, fused)
        found.append(labels.setdefault(one, len(labels)))
        roles.append(role_of(trace.names[name], one, "aten::bmm" in place.operators[:1]))
    of_pair = polars.DataFrame({"label": found, "role": roles}, {"label": polars.UInt16, "role": polars.UInt8})
    labelled = polars.concat(of_pair[distinct.search_sorted(piece.collect()["pair"])] for piece in pieces)
    ops = trace.ops.with_columns(labelled.get_columns())
    if not trace.is_summary:
        ops = _as_begun(by_position(ops.with_columns(role=polars.col("role") * (polars.col("count") > 0)), labels))
    return Labelled(ops.drop("role"), tuple(labels))


def _as_begun(ops: polars.DataFrame) -> polars.DataFrame:
    """A CPU's operation that goes on after others that it called (count 0) is what its beginning is."""
    goes_on = polars.col("count") == 0
    if ops.select(goes_on.any()).item():
        begun = polars.when(~goes_on).then("label").forward_fill().over("device", "stream", "name")
        ops = ops.with_columns(label=polars.coalesce(begun, "label"))
    return ops


def place_of(scope: str) -> Place:
    """The part of the model that a scope names, and the operators in it."""
    return _place(_NUMBER.sub("", scope))


def in_scope(name: Label, place: Place, operator: Callable[[str], Label], fused: bool = True) -> Label:
    """What a kernel is, given what its name says and where it was launched: the place refines the name.

    A GEMM of the experts' module is an expert GEMM, one of attention stays dense; a kernel of no one kind (a copy, a
    sort, an addition) is what its part of the model is. `fused`: the experts have a module of their own.
    """
    part = place.part
    if name.found_by == "none":
        name = next((_by_operator(one, at) for at in place.operators if (one := operator(at)).found_by != "none"), name)
    if name.category == "dense_gemm":
        for at in place.operators:
            if (one := operator(at)).category == "expert_gemm":  # a CPU multiplies expert by expert inside of it
                return _by_operator(one, at)
        if part == "mlp" and not fused:
            return Label("expert_gemm", "module", "low", "a GEMM of an MLP inside a mixture-of-experts block")
        return _GEMM_IN.get(part, name)
    vague = name.category == "other" or name.confidence == "low"
    if part == "router" and (vague or name.category in ("activation", "sampling")):
        return _PIECE_IN[part]
    if not vague or name.category in ("expert_gemm", "gate_gemm", "mem"):
        return name
    for at in place.operators:
        one = operator(at)
        if one.confidence != "low" and one.category in _SAID_BY_OPERATORS and not _GENERIC.match(at):
            return _by_operator(one, at)
    if part == "experts" and place.operators[:1] in (("aten::mul",), ("aten::mul_",)):
        return Label("activation", "module", "medium", "a product of values inside the experts: the gate's")
    return _PIECE_IN.get(part, name)


# Parts of a model by the names of modules: a class ("FusedMoE"), or a piece of a path ("model.layers.0.mlp.experts").
# The innermost element that one of them fits decides, and of them the first.
PARTS = {
    "shared": r"\w*shared_?(expert|mlp)\w*",
    "experts": r"\w*experts\w*|\w*grouped_?(mm|gemm|linear)\w*",
    "router": r"gate|moe_?gate|\w*topk_?gate|\w*router\w*|\w*gating\w*",
    "moe": r"\w*moe|\w*sparse_?moe\w*|\w*moe_?(block|layer|runner)\w*|vllm::moe_forward\w*|mlpblock",
    "norm": r"\w*norm\w*",
    "rotary": r"\w*(rotary|rope)\w*",
    "attention": r"\w*(attention|attn|mamba|deltanet|shortconv)\w*|mla|mixer",
    "activation": r"\w*(silu|gelu|swiglu|andmul|relu)\w*|act_fn",
    "sampler": r"\w*sampler\w*",
    "mlp": r"\w*mlp|feed_?forward|\w*ffn",
}
_PARTS = {part: re.compile(pattern, re.IGNORECASE) for part, pattern in PARTS.items()}
_LINEAR = re.compile(r"\w*linear\w*", re.IGNORECASE)
_FUSED = re.compile(r"FusedMoE|Experts|\bexperts\b|moe_forward")
_NUMBER = re.compile(r"(?<=\w)_\d+\b")
_MARKER = re.compile(r"'Module': '([^']*)'")  # vLLM's layer markers are Python dictionaries in words
_GENERIC = re.compile(r"aten::(topk|sort|argsort|_?softmax|_?log_softmax|cumsum|gather|scatter|index|sum|max|mul|mean)")
_SAID_BY_OPERATORS = ("attention", "routing_permute", "quant_dequant", "norm", "activation", "comm", "sampling")
_GEMM_IN: dict[str | None, Label] = {
    "experts": Label("expert_gemm", "module", "high", "a GEMM launched by the module of the experts"),
    "router": Label("gate_gemm", "module", "high", "a GEMM launched by the router"),
    "attention": Label("dense_gemm", "module", "high", "a projection of attention"),
    "shared": Label("dense_gemm", "module", "high", "a GEMM of the shared expert, which every token passes"),
    "mlp": Label("dense_gemm", "module", "high", "a GEMM of an MLP without experts, or of the shared expert"),
}
_PIECE_IN: dict[str | None, Label] = {
    part: Label(category, "module", "medium", f"launched by {words}")
    for part, category, words in (
        ("experts", "routing_permute", "the experts' module, and no GEMM: tokens are moved"),
        ("moe", "routing_permute", "a mixture-of-experts block, and no GEMM: tokens are moved"),
        ("router", "routing_permute", "the router: experts are chosen"),
        ("norm", "norm", "a norm's module: a piece of it"),
        ("rotary", "attention", "the module of rotary embedding"),
        ("attention", "attention", "the module of attention: a piece of it"),
        ("activation", "activation", "the module of an activation function"),
        ("sampler", "sampling", "the sampler"),
    )
}
ROTARY = _PIECE_IN["rotary"]
NOWHERE = Place(None, ())


def _by_operator(one: Label, at: str) -> Label:
    return Label(one.category, "module", "medium" if one.confidence == "high" else "low", f"launched by {at[:80]}")


@lru_cache(maxsize=65536)
def _place(scope: str) -> Place:
    elements = [element for element in reversed(scope.split(SCOPE)) if element]
    operators = tuple(e for e in elements if "::" in e and not _PARTS["moe"].fullmatch(e))
    linear = mlp = False
    for element in _modules(elements):
        part = next((part for part, pattern in _PARTS.items() if pattern.fullmatch(element)), None)
        if part == "moe":
            return Place("mlp" if mlp else "router" if linear else "moe", operators)
        if part == "mlp":
            mlp = True  # inside a mixture-of-experts block it is an expert's, or the shared one
        elif part is not None and not (mlp and part == "attention"):
            return Place(part, operators)
        linear = linear or _LINEAR.fullmatch(element) is not None
    return Place("dense_mlp" if mlp else None, operators)


def _modules(elements: Sequence[str]) -> list[str]:
    """Names of modules, innermost first: paths are taken apart, markers opened, operators left out but for vLLM's."""
    found = []
    for element in elements:
        if marker := _MARKER.search(element):
            element = marker[1]
        if "::" in element:
            found += [element] if _PARTS["moe"].fullmatch(element) else []
        elif " " not in element:
            found += reversed(element.split("."))
    return found
