"""Checks of scales: there, of the right number, and of values that somebody calibrated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.lint.findings import Finding, some
from harness.lint.layers import INPUT_SCALE, SCALES, TENSOR_SCALE, WEIGHT_SCALE, Layer
from harness.lint.subject import Subject, places
from harness.lint.values import Values, examine, is_scale_type
from harness.tensorfile import Tensor

EXPORT = "calibrate and export again"
GATE_AND_UP = (("gate_proj", "up_proj"), ("w1", "w3"))


@dataclass(frozen=True)
class Measured:
    """The scales of all quantised layers, and of the KV cache, as read."""

    values: Mapping[str, list[Values]]  # tensor -> an entry for each of its experts, or one
    findings: list[Finding]

    def of(self, layer: Layer, roles: tuple[str, ...]) -> list[Values]:
        tensor = layer.scale(roles)
        return self.values.get(tensor.name, []) if tensor is not None else []


def measure(subject: Subject) -> Measured:
    """Reads every scale once. Raises OSError."""
    wanted: dict[str, tuple[Tensor, int]] = {name: (tensor, 1) for name, tensor in subject.sorted.kv_scales.items()}
    for layer in subject.quantised:
        for role in layer.scales.keys() & set(SCALES):
            tensor = layer.scales[role]
            wanted[tensor.name] = (tensor, layer.parts if tensor.shape[:1] == (layer.parts,) else 1)
    strange = [name for name, (tensor, _) in wanted.items() if not is_scale_type(tensor.dtype) or not tensor.size]
    in_order = sorted(wanted.keys() - set(strange), key=lambda name: (wanted[name][0].path, wanted[name][0].start))
    what = "no numbers a scale can have: " + ", ".join(sorted({wanted[name][0].dtype for name in strange}))
    finding = Finding("error", "scale-type", some(strange, "tensor"), what, EXPORT)
    return Measured({name: examine(*wanted[name]) for name in in_order}, [finding] if strange else [])


# --- which scales there are ------------------------------------------------------------------------------------------


def missing(subject: Subject, _: Measured) -> Iterator[Finding]:
    lacking: dict[str, list[str]] = {}
    for layer in subject.quantised:
        stored, declared = subject.stored[layer.name], subject.rules[layer.name].format
        if layer.scale(WEIGHT_SCALE) is None:
            lacking.setdefault("weight scale", []).append(layer.name)
        if "nvfp4" in (stored, declared if stored == "u8" else None) and layer.scale(TENSOR_SCALE) is None:
            lacking.setdefault("second weight scale (one per tensor)", []).append(layer.name)
    for what, names in lacking.items():
        what = f"quantised without {what}: engines refuse, or take 1 for it and compute nonsense"
        yield Finding("error", "missing-scale", some(names, "layer"), what, "fetch or export the scales")


def orphans(subject: Subject, _: Measured) -> Iterator[Finding]:
    if subject.sorted.orphans:
        where = some((tensor.name for tensor in subject.sorted.orphans), "tensor")
        what = "a scale whose weight is not in the checkpoint"
        yield Finding("warning", "scale-without-weight", where, what, "look for a lost file or a renamed layer")


def shapes(subject: Subject, _: Measured) -> Iterator[Finding]:
    wrong: dict[str, list[str]] = {}
    for layer in subject.quantised:
        rule, scale = subject.rules[layer.name], layer.scale(WEIGHT_SCALE)
        expected = scale and _scales_needed(layer, subject.stored[layer.name], rule.group, rule.block)
        if scale is not None and expected is not None and scale.elements != expected:
            wrong.setdefault(f"{scale.elements} scales where {expected} are needed", []).append(scale.name)
        second = layer.scale((*TENSOR_SCALE, *INPUT_SCALE))
        if second is not None and second.elements not in (1, layer.parts, 2 * layer.parts):
            wrong.setdefault(f"{second.elements} scales where one per tensor is needed", []).append(second.name)
    for what, names in wrong.items():
        yield Finding("error", "scale-shape", some(names, "tensor"), what, "export again, or correct the group size")


def _scales_needed(layer: Layer, stored: str, group: int | None, block: tuple[int, int] | None) -> int | None:
    """None where the number follows from nothing that is known."""
    if stored in ("nvfp4", "mxfp4"):
        row = layer.columns * 2
        return layer.parts * layer.rows * math.ceil(row / (group or {"nvfp4": 16, "mxfp4": 32}[stored]))
    if stored == "fp8_block" and block is not None:
        return layer.parts * math.ceil(layer.rows / block[0]) * math.ceil(layer.columns / block[1])
    return None


def input_scales(subject: Subject, _: Measured) -> Iterator[Finding]:
    """Experts are told apart: some of them without a scale were never reached while the others were calibrated."""
    lacking = []
    unreached = []
    for name, group in places(subject.quantised).items():
        without = [layer.name for layer in group if layer.scale(INPUT_SCALE) is None]
        if 0 < len(without) < len(group):
            unreached += without
        elif without and subject.rules[group[0].name].has_input_scale:
            lacking.append(name)
    if unreached:
        what = "no input scale, while other experts of the same layer have one: never reached in calibration"
        yield Finding("warning", "expert-not-calibrated", some(unreached, "layer"), what, EXPORT_MORE)
    if lacking:
        what = (
            "no input scale, though the declared scheme stores one: engines refuse, or scale activations as they come"
        )
        yield Finding("warning", "missing-input-scale", some(lacking, "layer"), what, EXPORT)


EXPORT_MORE = "calibrate with more tokens, or so that every expert sees all of them, and export again"


# --- which values they have ------------------------------------------------------------------------------------------


def impossible(subject: Subject, measured: Measured) -> Iterator[Finding]:
    """NaN, infinite, negative, zero."""
    found: dict[str, list[str]] = {"nan": [], "infinite": [], "negative": [], "zero": []}
    dead, blocks, total = [], [], [0, 0]
    for name, parts in measured.values.items():
        for number, values in enumerate(parts):
            label = f"{name}[{number}]" if len(parts) > 1 else name
            for word in ("nan", "infinite", "negative"):
                if getattr(values, word):
                    found[word].append(label)
            if values.zeros and values.count == 1:
                found["zero"].append(label)
            elif values.zeros == values.count:
                dead.append(label)
            elif values.zeros:
                blocks.append(label)
                total = [total[0] + values.zeros, total[1] + values.count]
    for word, names in found.items():
        if names:
            what = f"{'NaN' if word == 'nan' else word}: what is multiplied by it is lost"
            yield Finding("error", f"scale-{word}", some(names, "tensor"), what, EXPORT)
    if dead:
        what = "every scale is zero: the whole weight counts as zero"
        yield Finding("warning", "scales-all-zero", some(dead, "tensor"), what, "look whether it was zero before, too")
    if blocks:
        what = f"{total[0]} of {total[1]} scales are zero: their weights count as zero"
        advice = "zero weights, or values too small for the scale's type; compare with the original"
        yield Finding("note", "zero-blocks", some(blocks, "tensor"), what, advice)


def default_input_scales(subject: Subject, measured: Measured) -> Iterator[Finding]:
    ones: dict[bool, list[str]] = {True: [], False: []}
    same = []
    for name, group in places(subject.quantised).items():
        entries = [
            (f"{layer.name}[{number}]" if layer.parts > 1 else layer.name, values.constant)
            for layer in group
            for number, values in enumerate(measured.of(layer, INPUT_SCALE))
        ]
        ones[group[0].kind == "experts"] += [label for label, value in entries if value == 1]
        if len(entries) > 1 and entries[0][1] not in (None, 1) and len({value for _, value in entries}) == 1:
            same.append(name)
    advice = EXPORT_MORE
    for is_expert, names in ones.items():
        if names:
            who = "experts" if is_expert else "layers"
            what = f"input scale exactly 1, the default: {who} never calibrated"
            yield Finding("warning", "default-input-scale", some(names, "layer"), what, advice)
    if same:
        what = "one input scale for all experts: shared by the exporter, or a default that nothing replaced"
        yield Finding("note", "same-input-scale", some(same, "layer"), what, "look it up in the calibration's log")


def default_weight_scales(subject: Subject, measured: Measured) -> Iterator[Finding]:
    for roles, word in ((WEIGHT_SCALE, "weight scale"), (TENSOR_SCALE, "second weight scale")):
        kinds: dict[str, list[Layer]] = {}
        for layer in subject.quantised:
            if measured.of(layer, roles):
                kinds.setdefault(layer.kind, []).append(layer)
        for kind, found in kinds.items():
            if all(values.constant == 1 for layer in found for values in measured.of(layer, roles)):
                what = f"every {word} of this class ({kind}) is exactly 1: weights cast, not scaled"
                where = some((layer.name for layer in found), "layer")
                yield Finding("warning", "default-weight-scale", where, what, "quantise again, with scales")


def gate_and_up(subject: Subject, measured: Measured) -> Iterator[Finding]:
    """Engines run an expert's gate and up projection as one product, with one second scale."""
    experts = {e.name: e for e in subject.quantised if e.kind == "experts" and subject.stored[e.name] == "nvfp4"}
    differing = []
    for name, layer in experts.items():
        stem, _, leaf = name.rpartition(".")
        partner = experts.get(f"{stem}.{dict(GATE_AND_UP).get(leaf)}")
        if partner is not None:
            one, other = (measured.of(each, TENSOR_SCALE) for each in (layer, partner))
            if [values.constant for values in one] != [values.constant for values in other]:
                differing.append(stem)
    if differing:
        what = "gate and up projection have different second scales; vLLM fuses the two and uses gate's for both"
        advice = "export with one scale for the two, as ModelOpt and llm-compressor can"
        yield Finding("warning", "gate-up-scales-differ", some(differing, "expert"), what, advice)


# --- KV cache --------------------------------------------------------------------------------------------------------


def kv_cache(subject: Subject, measured: Measured) -> Iterator[Finding]:
    said, scales = subject.scheme, subject.sorted.kv_scales
    attention = _attention(subject)
    if said is not None and said.kv and said.has_kv_scale:
        lacking = [name for name in attention if not _has_both(name, scales)]
        if lacking:
            what = f"no k_scale and v_scale, though {said.source} declares a KV cache of {said.kv}: engines take 1"
            yield Finding("warning", "kv-scale-missing", some(lacking, "layer"), what, EXPORT)
    elif scales:
        what = "scales for a quantised KV cache, which no configuration declares: used only if asked for by hand"
        where = some(scales, "tensor")
        yield Finding("note", "kv-scale-undeclared", where, what, "name the KV cache's type when you measure")
    values = [entry.constant for name in scales for entry in measured.values.get(name, [])]
    if values and all(value == 1 for value in values):
        what = "every KV scale is exactly 1: a plain cast, or never calibrated"
        yield Finding(
            "note", "default-kv-scale", some(scales, "tensor"), what, "compare accuracy with a 16-bit KV cache"
        )


def _attention(subject: Subject) -> list[str]:
    """Modules that keep keys and values; linear attention keeps none."""
    kept = [layer.name.rpartition(".") for layer in subject.matrices if layer.kind == "attention"]
    return list(dict.fromkeys(stem for stem, _, leaf in kept if "k" in leaf and "linear_attn" not in stem))


def _has_both(module: str, scales: Mapping[str, Tensor]) -> bool:
    """The engines' spellings of where the scales of a module lie."""
    for middle in ("", ".attn", ".k_proj", ".kv_b_proj"):
        if f"{module}{middle}.kv_scale" in scales:
            return True
        second = middle.replace("k_proj", "v_proj")
        for word in ("scale", "global_scale"):
            if f"{module}{middle}.k_{word}" in scales and f"{module}{second}.v_{word}" in scales:
                return True
    return False


CHECKS = (
    missing,
    orphans,
    shapes,
    input_scales,
    impossible,
    default_input_scales,
    default_weight_scales,
    gate_and_up,
    kv_cache,
)
