"""What a checkpoint's configuration says of its formats: one `Scheme` from each of the two places that may say it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.jsonfile import Node
from harness.lint.layers import PER_CHANNEL, Layer

NOT_QUANTISED = "none"
MIXED = "mixed"
HF_QUANT = "hf_quant_config.json"
ALGORITHMS = {  # ModelOpt's and TensorRT-LLM's word -> how weights are stored, and whether input scales are stored, too
    "FP8": ("fp8", True),
    "FP8_PER_CHANNEL_PER_TOKEN": (PER_CHANNEL, False),
    "FP8_BLOCK_SCALES": ("fp8_block", False),
    "FP8_PB_WO": ("fp8_block", False),
    "NVFP4": ("nvfp4", True),
    "NVFP4_AWQ": ("nvfp4", True),
    "W4A16_NVFP4": ("nvfp4", False),
    "W4A8_NVFP4_FP8": ("nvfp4", False),
    "W4A16_MXFP4": ("mxfp4", False),
    "W4A8_MXFP4_FP8": ("mxfp4", False),
    "W4A8_MXFP4_MXFP8": ("mxfp4", False),
    "MXFP4": ("mxfp4", False),
    "MXFP8": ("mxfp8", False),
    "W4A16_AWQ": ("int4", False),
    "W4A8_AWQ": ("int4", False),
    "INT4_AWQ": ("int4", False),
    "W8A16": ("int8", False),
    "INT8": ("int8", False),
    "MIXED_PRECISION": (MIXED, False),
    "NO_QUANT": (NOT_QUANTISED, False),
}
FOUR_BITS = ("nvfp4", "mxfp4", "int4")
KV_WORDS = {("float", 8): "FP8", ("float", 4): "NVFP4", ("int", 8): "INT8"}


@dataclass(frozen=True)
class Rule:
    """What is said of some layers."""

    format: str | None  # as in layers.stored_as, or int4, int8; None: a word this file does not know
    has_input_scale: bool = False
    group: int | None = None  # weights to a scale along a row
    block: tuple[int, int] | None = None  # weights to a scale, fp8_block

    @property
    def bits(self) -> int | None:
        return (
            4 if self.format in FOUR_BITS else int(self.format[3:]) if (self.format or "").startswith("int") else None
        )


PLAIN_RULE = Rule(NOT_QUANTISED)


@dataclass(frozen=True)
class Scheme:
    """What one file says. `rules` are tried in order, `by_name` before them; what neither names is not quantised."""

    source: str
    method: str  # as spelled: "modelopt", "fp8", "compressed-tensors", "mxfp4"
    algorithm: str | None  # as spelled: "NVFP4"; compressed-tensors' format
    kv: str | None  # "FP8", ..; None: not quantised
    has_kv_scale: bool
    excluded: tuple[str, ...]
    rules: tuple[tuple[Callable[[str], bool], Rule], ...]
    by_name: Mapping[str, Rule] = field(default_factory=dict)

    @property
    def format(self) -> str | None:
        """The one format of all that is quantised, or MIXED; None where a word is not known."""
        formats = {rule.format for rule in (*(rule for _, rule in self.rules), *self.by_name.values())}
        formats = formats - {NOT_QUANTISED} or {NOT_QUANTISED}
        return None if None in formats else formats.pop() if len(formats) == 1 else MIXED

    def excludes(self) -> Callable[[Layer], bool]:
        inside = matcher(self.excluded, is_exact=self.method == "compressed-tensors")
        return lambda layer: inside(layer.name) or inside(layer.weight.name)

    def rule_for(self, layer: Layer) -> Rule:
        """What is said of a layer that is not excluded."""
        if self.method == "mxfp4" and layer.kind != "experts":  # gpt-oss's method knows no other layer
            return PLAIN_RULE
        name = layer.name
        while name:
            if name in self.by_name:
                return self.by_name[name]
            name = name.rpartition(".")[0]
        return next((rule for matches, rule in self.rules if matches(layer.name)), PLAIN_RULE)


def matcher(patterns: Iterable[str], is_exact: bool = False) -> Callable[[str], bool]:
    """Whether a name is meant by one of the patterns: `re:` a regular expression from its start, * and ? wildcards,
    else the name itself, a module around it, or (not `is_exact`) a run of its parts."""
    plain, wild, expressions = set(), [], []
    for pattern in patterns:
        if pattern.startswith("re:"):
            expressions.append(compile_or_none(pattern[3:]))
        elif set(pattern) & set("*?["):
            wild += [fnmatch.translate(pattern), fnmatch.translate(f"{pattern}.*")]
        else:
            plain.add(pattern)
    # One expression for all wildcards: a large model has a hundred thousand layers, its list hundreds of patterns.
    expressions += [re.compile("|".join(wild))] if wild else []
    lengths = {pattern.count(".") + 1 for pattern in plain}
    usable = [expression for expression in expressions if expression is not None]

    def matches(name: str) -> bool:
        return bool(_runs(name, plain, lengths, is_exact)) or any(expression.match(name) for expression in usable)

    return matches


def plain_matches(names: Iterable[str], plain: Iterable[str], is_exact: bool) -> set[str]:
    """Those of the plain patterns that any of the names meets."""
    plain = set(plain)
    lengths = {pattern.count(".") + 1 for pattern in plain}
    return set().union(*(_runs(name, plain, lengths, is_exact) for name in names))


def _runs(name: str, plain: set[str], lengths: set[int], is_exact: bool) -> set[str]:
    """Those of the plain patterns that are a run of the name's parts: of a.b.c, `b.c`; `is_exact`: from its start."""
    parts, found = name.split("."), set()
    for length in lengths:
        last = 0 if is_exact else len(parts) - length
        found.update(".".join(parts[start : start + length]) for start in range(last + 1))
    return found & plain


def compile_or_none(expression: str) -> re.Pattern[str] | None:
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError):
        return None


def everything(_: str) -> bool:
    return True


# --- readers ---------------------------------------------------------------------------------------------------------


def of_modelopt_file(modelopt: Node, layers: Node) -> Scheme | None:
    """hf_quant_config.json, and quant_cfg.json, whose layers win over its own."""
    if modelopt.value is None:
        return None
    return _modelopt(modelopt.at("quantization").need(), HF_QUANT, "modelopt", layers)


def of_config(config: Node, layers: Node) -> Scheme | None:
    """config.json's quantization_config, of a text model inside a larger one, too."""
    for node in (config.at("quantization_config"), config.at("text_config", "quantization_config")):
        if node.value is None or node.value == {}:
            continue
        method = node.at("quant_method").text() or ("modelopt" if node.at("quant_algo").value else "")
        if method.startswith("modelopt"):
            inner = node if node.at("quantization").value is None else node.at("quantization")
            return _modelopt(inner, "config.json", method, layers)
        return {"compressed-tensors": _compressed_tensors}.get(method, _by_method)(node, method)
    return None


def _modelopt(node: Node, source: str, method: str, layers: Node) -> Scheme:
    algorithm = node.at("quant_algo").text()
    group = _positive(node.at("group_size"))
    listed = {**_object(node.at("quantized_layers")), **_object(layers.at("quantized_layers"))}
    by_name = {
        name: _algorithm(entry.at("quant_algo").text(), _positive(entry.at("group_size")))
        for name, entry in (
            (name, Node(value, f"{node.place}.quantized_layers.{name}")) for name, value in listed.items()
        )
    }
    rule = _algorithm(algorithm, group)
    kv = node.at("kv_cache_quant_algo").text() or _kv_scheme(node.at("kv_cache_scheme"))[0]
    return Scheme(
        source,
        method,
        algorithm,
        kv if kv != "NO_QUANT" else None,
        kv is not None,
        _texts(node, "exclude_modules", "ignore"),
        () if rule.format == MIXED else ((everything, rule),),
        by_name if rule.format == MIXED else {},
    )


def _algorithm(word: str | None, group: int | None) -> Rule:
    stored, has_input_scale = ALGORITHMS.get(word.upper(), (None, False)) if word else (NOT_QUANTISED, False)
    block = (128, 128) if stored == "fp8_block" else None
    return Rule(stored, has_input_scale, group, block)


def _by_method(node: Node, method: str) -> Scheme:
    """fp8 and mxfp4 in the way of transformers; gptq and awq as far as their bits."""
    block = [item.count() for item in node.at("weight_block_size").items()]
    if method == "fp8" and len(block) == 2 and all(block):
        rule = Rule("fp8_block", block=(block[0], block[1]))
    elif method == "fp8":
        rule = Rule("fp8", has_input_scale=node.at("activation_scheme").text() == "static")
    elif method in ("gptq", "awq"):
        rule = Rule(f"int{node.at('bits').need().count()}", group=_positive(node.at("group_size")))
    else:
        rule = Rule("mxfp4" if method == "mxfp4" else None)
    excluded = _texts(node, "modules_to_not_convert", "ignored_layers")
    kv, has_kv_scale = _kv_scheme(node.at("kv_cache_scheme"))
    return Scheme("config.json", method, None, kv, has_kv_scale, excluded, ((everything, rule),))


def _compressed_tensors(node: Node, method: str) -> Scheme:
    rules = []
    for name in _object(node.at("config_groups").need()):
        group = node.at("config_groups", name)
        targets = _texts(group, "targets")
        classes = [target for target in targets if not target.startswith("re:") and "." not in target]
        # A class of modules, such as Linear, cannot be told from names: it stands for all, after what is named.
        rules.append((everything if classes else matcher(targets, is_exact=True), _group(group)))
    rules.sort(key=lambda pair: pair[0] is everything)
    kv, has_kv_scale = _kv_scheme(node.at("kv_cache_scheme"))
    form = node.at("format").text()
    return Scheme("config.json", method, form, kv, has_kv_scale, _texts(node, "ignore"), tuple(rules))


def _group(group: Node) -> Rule:
    weights, inputs = group.at("weights"), group.at("input_activations")
    if weights.value is None:
        return PLAIN_RULE
    bits, kind, strategy = (
        weights.at("num_bits").need().count(),
        weights.at("type").text(),
        weights.at("strategy").text(),
    )
    size, block = _positive(weights.at("group_size")), [i.count() for i in weights.at("block_structure").items()]
    has_input_scale = inputs.value is not None and inputs.at("dynamic").value in (False, "local")
    if kind == "int":
        return Rule(f"int{bits}", has_input_scale, size if strategy == "group" else None)
    if bits == 4:
        return Rule("mxfp4" if size == 32 else "nvfp4", has_input_scale, size)
    if bits != 8:
        return Rule(None)
    if strategy == "group" and size == 32:
        return Rule("mxfp8", has_input_scale)
    blocks = (block[0], block[1]) if strategy == "block" and len(block) == 2 and all(block) else None
    stored = {"tensor": "fp8", "channel": PER_CHANNEL, "block": "fp8_block", "group": "fp8_block"}.get(strategy or "")
    return Rule(stored, has_input_scale, block=blocks)


def _kv_scheme(node: Node) -> tuple[str | None, bool]:
    """Word, and whether its scales are stored."""
    if not isinstance(node.value, dict):
        return node.text(), node.value is not None
    bits, kind = node.at("num_bits").count(), node.at("type").text()
    return KV_WORDS.get((kind, bits), f"{kind} {bits}"), node.at("dynamic").value is not True


def _object(node: Node) -> dict[str, Any]:
    if node.value is not None and not isinstance(node.value, dict):
        node.refuse("expected an object")
    return node.value or {}


def _texts(node: Node, *keys: str) -> tuple[str, ...]:
    return tuple(item.need().text() for key in keys for item in node.at(key).items())


def _positive(node: Node) -> int | None:
    """A group size; -1 and 0 are ways to say none."""
    return node.value if type(node.value) is int and node.value > 0 else None
