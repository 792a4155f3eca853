"""Checks of formats: what is stored against what is declared, and one declaration against the other."""

from __future__ import annotations

from collections.abc import Iterator

from harness.lint.findings import Finding, some
from harness.lint.layers import PLAIN, WEIGHT_SCALE, Layer
from harness.lint.scheme import FOUR_BITS, HF_QUANT, NOT_QUANTISED, Rule, compile_or_none, matcher, plain_matches
from harness.lint.subject import Subject, place
from harness.provenance import joined

# Kept plain by the code of DeepSeek's models (next-token layer, indexer), though its configuration does not say so.
KEPT_PLAIN = (".eh_proj", ".shared_head.head", ".weights_proj")
EXPORT = "export again, or correct the configuration"


def disagreement(subject: Subject) -> Iterator[Finding]:
    """hf_quant_config.json against config.json: an engine reads one of them, another engine the other."""
    ours, theirs = subject.in_modelopt, subject.in_config
    if ours is None:
        return
    where, advice = f"{HF_QUANT}, config.json", "make the two agree: engines differ in which one they read"
    if theirs is None:
        what = f"quantisation ({ours.algorithm}) is declared in {HF_QUANT} alone: transformers reads config.json only"
        if ours.format != NOT_QUANTISED:
            yield Finding("note", "config-silent", "config.json", what, "load it with an engine that reads both")
        return
    ones = [rule for _, rule in ours.rules]
    others = [rule for _, rule in theirs.rules]
    known = None not in (ours.format, theirs.format)
    if known and ours.format != theirs.format:
        what = f"they disagree on the format: {ours.algorithm or 'none'} ({ours.format}) and {theirs.format}"
        yield Finding("error", "configs-disagree", where, what, advice)
    sizes = {rule.group for rule in ones if rule.group}, {rule.group for rule in others if rule.group}
    if known and ours.format == theirs.format and all(sizes) and sizes[0] != sizes[1]:
        what = f"they disagree on the group size: {sorted(sizes[0])} and {sorted(sizes[1])}"
        yield Finding("error", "configs-disagree", where, what, advice)
    if ours.kv != theirs.kv:
        what = f"they disagree on the KV cache: {ours.kv or 'not quantised'} and {theirs.kv or 'not quantised'}"
        severity = "error" if ours.kv and theirs.kv else "warning"
        yield Finding(severity, "configs-disagree", where, what, advice)
    one, other = ours.excludes(), theirs.excludes()
    differing = [layer.name for layer in subject.matrices if one(layer) != other(layer)]
    if differing:
        what = "excluded from quantisation by one of them and not by the other"
        yield Finding("error", "configs-disagree", some(differing, "layer"), what, advice)


def known_words(subject: Subject) -> Iterator[Finding]:
    said = subject.scheme
    if said is not None and None in {rule.format for rule in subject.rules.values()}:
        word = said.algorithm or said.method or "no quant_method"
        what = f"declares {word}, which this lint does not know: stored formats were not checked against it"
        yield Finding("note", "unknown-scheme", said.source, what, "check by hand what your engine makes of it")
    if said is not None and (said.algorithm or "").upper() == "MIXED_PRECISION" and not said.by_name:
        what = "declares MIXED_PRECISION and no quantized_layers, here or in quant_cfg.json: no layer has a format"
        yield Finding("error", "no-quantized-layers", said.source, what, "export again with the list of layers")


def undeclared(subject: Subject) -> Iterator[Finding]:
    if subject.scheme is None and subject.quantised:
        where = some((layer.weight.name for layer in subject.quantised), "tensor")
        formats = joined(subject.stored[layer.name] for layer in subject.quantised)
        what = f"stored as {formats}, but neither config.json nor {HF_QUANT} says that anything is quantised"
        advice = "restore the configuration; an engine would take the raw codes for weights or refuse"
        yield Finding("error", "undeclared", where, what, advice)


def against_declared(subject: Subject) -> Iterator[Finding]:
    """Each layer's stored format against the rule for it, one finding for each kind of layer and difference."""
    said = subject.scheme
    if said is None:
        return
    groups: dict[tuple[str, str, str], list[Layer]] = {}
    for layer in subject.matrices:
        stored, rule = subject.stored[layer.name], subject.rules[layer.name]
        if rule.format is not None and not agrees(layer, stored, rule):
            groups.setdefault((layer.kind, stored, rule.format), []).append(layer)
    for (kind, stored, declared), found in groups.items():
        where = some((layer.weight.name for layer in found), "tensor")
        if stored not in PLAIN.values():
            if declared == NOT_QUANTISED:
                what = f"stored as {stored}, but {said.source} leaves them out of quantisation"
                yield Finding("error", "excluded-but-quantised", where, what, EXPORT)
            else:
                what = f"stored as {stored}, but {said.source} declares {declared}"
                yield Finding("error", "wrong-format", where, what, EXPORT)
            continue
        kept = [layer for layer in found if kind in ("head", "router") or layer.name.endswith(KEPT_PLAIN)]
        lost = [layer for layer in found if layer not in kept] if kept else found
        if kept:
            what = f"stored as {stored}, declared {declared} and not excluded: left to the model's code in each engine"
            where = some((layer.name for layer in kept), "layer")
            yield Finding("note", "plain-not-excluded", where, what, "look for a warning about them when it loads")
        if lost and kind != "embedding":
            what = f"stored as {stored}, but {said.source} declares {declared} and does not exclude them"
            where = some((layer.weight.name for layer in lost), "tensor")
            yield Finding("error", "stored-unquantised", where, what, EXPORT)


def agrees(layer: Layer, stored: str, rule: Rule) -> bool:
    if rule.format == NOT_QUANTISED:
        return stored in PLAIN.values()
    if stored == "packed":
        return (rule.format or "").startswith("int")
    if stored == "u8":  # without a scale to tell; the missing scale is a finding of its own
        return rule.format in FOUR_BITS
    scale = layer.scale(WEIGHT_SCALE)
    if {stored, rule.format} <= {"fp8", "fp8_block", "fp8_channel"} and scale is not None:
        # one block, one channel and one tensor look alike when there is only one
        return stored == rule.format or scale.elements == layer.parts and layer.weight.elements <= layer.parts << 14
    return stored == rule.format or stored == "fp8" and scale is None and (rule.format or "").startswith("fp8")


def experts_left_plain(subject: Subject) -> Iterator[Finding]:
    """The label says quantised, the experts, nearly all of the model, are not."""
    said = subject.scheme
    if said is None or said.format in (None, NOT_QUANTISED):
        return
    experts = [layer for layer in subject.matrices if layer.kind == "experts"]
    plain = [e for e in experts if not subject.is_quantised(e) and subject.rules[e.name].format == NOT_QUANTISED]
    if plain:
        what = f"{len(plain)} of {len(experts)} expert weights are {joined(subject.stored[e.name] for e in plain)}"
        what += f" by exclusion, under the label {said.format}"
        advice = "do not report it as that format; exclude fewer layers and export again"
        yield Finding("warning", "experts-not-quantised", some((e.name for e in plain), "layer"), what, advice)


def exclusions(subject: Subject) -> Iterator[Finding]:
    names = [name for layer in subject.sorted.layers for name in (layer.name, layer.weight.name)]
    names += [tensor.name for tensor in subject.sorted.loose]
    is_tied = subject.checkpoint.config.at("tie_word_embeddings").value is True
    found: dict[str, list[str]] = {}
    for said in filter(None, (subject.in_modelopt, subject.in_config)):
        broken = [p for p in said.excluded if p.startswith("re:") and compile_or_none(p[3:]) is None]
        if broken:
            what = "no regular expression"
            yield Finding("error", "bad-exclusion", f"{said.source}: {some(broken)}", what, "correct the pattern")
        idle = _idle([p for p in said.excluded if p not in broken], names, said.method == "compressed-tensors")
        idle = [pattern for pattern in idle if not (is_tied and pattern.endswith("lm_head"))]
        if idle:
            found.setdefault(some(idle), []).append(said.source)
    for patterns, sources in found.items():
        what = "excludes what is not in the checkpoint: a name misspelt, or of another version of the model"
        advice = "compare with the tensors' names; what was meant may be treated as quantised"
        where = f"{', '.join(sources)}: {patterns}"
        yield Finding("warning", "exclusion-matches-nothing", where, what, advice)


def _idle(patterns: list[str], names: list[str], is_exact: bool) -> list[str]:
    """Those that match no name. Names outside the numbered experts come first: most patterns are soon done."""
    plain = {pattern for pattern in patterns if not set(pattern) & set("*?[") and not pattern.startswith("re:")}
    met = plain_matches(names, plain, is_exact)
    names = sorted(names, key=lambda name: place(name) != name)
    return [p for p in patterns if p not in met and (p in plain or not any(map(matcher([p]), names)))]


def labels(subject: Subject) -> Iterator[Finding]:
    """One word, two formats."""
    said = subject.in_config
    if said is not None and said.method == "fp8" and said.format == "fp8_block":
        what = 'its quant_method "fp8" means a scale per block: fp8_block, not ModelOpt\'s FP8 of one scale per tensor'
        yield Finding("note", "fp8-is-block", "config.json", what, "label its results fp8_block")


def storage_type(subject: Subject) -> Iterator[Finding]:
    """Nothing is quantised: does config.json name the type the weights have?"""
    config = subject.checkpoint.config
    declared = config.at("dtype").value or config.at("torch_dtype").value
    words = {"float64": "fp64", "float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    if subject.scheme is None and not subject.quantised and words.get(str(declared)) not in (None, subject.format):
        what = f"says {declared}, the weights are stored as {subject.format}: an engine converts them while it loads"
        yield Finding("note", "type-differs", "config.json", what, "name the type when you report results")


CHECKS = (
    disagreement,
    known_words,
    undeclared,
    against_declared,
    experts_left_plain,
    exclusions,
    labels,
    storage_type,
)
