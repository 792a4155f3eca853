"""Which kind of work a kernel does, by its name: the categories, the rules, and what a rule is matched against."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache, lru_cache
from pathlib import Path

from harness.errors import UsageError

# Categories, and the seeds' eight as a coarser view.
COARSE = {
    "expert_gemm": "expert_gemm",
    "dense_gemm": "other",
    "gate_gemm": "gate_gemm",
    "attention": "attention",
    "routing_permute": "routing",
    "quant_dequant": "quant_dequant",
    "norm": "norm",
    "activation": "other",
    "comm": "comm",
    "sampling": "other",
    "mem": "other",
    "other": "other",
}
CATEGORIES = tuple(COARSE)
CONFIDENCE = ("high", "medium", "low")
FOUND_BY = ("module", "position", "name", "none")

BUILT_IN = Path(__file__).parents[1] / "data" / "kernel_rules.json"
LONGEST_NAME = 6000  # characters read of a name: beyond it, only template arguments repeat themselves
LONGEST_FUNCTION = 1000  # characters read of a function's own name
LONGEST_PATTERN = 400
LARGEST_FILE = 4 << 20  # bytes


@dataclass(frozen=True)
class Rule:
    """Names that mean one category. Every pattern given must be found (re.search), `unless` must not be.

    match: in the name as the trace has it, but with one spelling (see `spelled_alike`).
    function, unless: in the words of the function's own name, without its arguments: "fused add rms norm kernel".
    words: in the words of the whole name.

    Raises UsageError for a category, a confidence or a pattern that cannot be.
    """

    category: str
    match: str = ""
    reason: str = ""
    confidence: str = "high"
    function: str = ""
    words: str = ""
    unless: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(getattr(self, field.name), str):
                raise UsageError(f"{field.name} must be a text, not {getattr(self, field.name)!r}")
        if self.category not in COARSE:
            raise UsageError(f"unknown category {self.category!r}; there are {', '.join(CATEGORIES)}")
        if self.confidence not in CONFIDENCE:
            raise UsageError(f"unknown confidence {self.confidence!r}; there are {', '.join(CONFIDENCE)}")
        if not self.reason.strip():
            raise UsageError("no reason; say in a few words why these names mean this category")
        if not (self.match or self.function or self.words):
            raise UsageError("nothing to match; give match, function or words, a regular expression each")
        for key in ("match", "function", "words", "unless"):
            _check_pattern(key, getattr(self, key))


@dataclass(frozen=True)
class KernelRules:
    """Rules of a plugin; they are asked before the built-in ones."""

    name: str
    rules: tuple[Rule, ...]
    summary: str = ""


@dataclass(frozen=True)
class Label:
    """What a kernel does, and how that is known."""

    category: str  # of CATEGORIES
    found_by: str  # of FOUND_BY; "none": nothing says what it is, its time is unclassified
    confidence: str  # of CONFIDENCE
    reason: str


UNCLASSIFIED = Label("other", "none", "low", "no rule knows this name")


def classify(name: str, rules: Sequence[Rule]) -> Label:
    """The label of a name alone: that of the first rule that matches. Any text will do, of any length."""
    texts = _texts(name)
    for rule in rules:
        if _matches(rule, texts):
            return Label(rule.category, "name", rule.confidence, rule.reason)
    return UNCLASSIFIED


def with_built_in(*more: Sequence[Rule]) -> tuple[Rule, ...]:
    """All rules in the order they are asked: the given ones first, the built-in ones last."""
    return (*(rule for rules in more for rule in rules), *built_in_rules())


@lru_cache(maxsize=1)
def built_in_rules() -> tuple[Rule, ...]:
    """The rules of the harness. Their order is part of them: the first that matches decides."""
    return read_rules(BUILT_IN)


def read_rules(path: Path) -> tuple[Rule, ...]:
    """The rules of a JSON file: a list of objects with the fields of Rule. Raises UsageError and says which is wrong."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UsageError(f"{path}: larger than {LARGEST_FILE >> 20} MiB; is this a file of kernel rules?")
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"{path}: no kernel rules: {getattr(e, 'strerror', None) or e}") from None
    if not isinstance(rows, list) or not rows:
        raise UsageError(f'{path}: kernel rules are a list of objects, [{{"category": ..., "match": ...}}]')
    return tuple(_rule(row, f"{path}: rule {index}") for index, row in enumerate(rows, 1))


def spelled_alike(name: str) -> str:
    """A name in one spelling: that of Kineto, without casts and integer suffixes; mangled names opened, one line.

    nsys writes `(int)128`, `(bool)1`, `<unnamed>`; Kineto `128`, `true`, `(anonymous namespace)`, `4096ul`.
    """
    text = _UNPRINTABLE.sub(" ", name[:LONGEST_NAME]).strip()
    if text.startswith(("_Z", "__Z")):
        text = _opened(text)
    text = text.replace("<unnamed>", "(anonymous namespace)")
    text = _BOOL.sub(lambda found: "true" if found[1] == "1" else "false", text)
    return _SUFFIX.sub(r"\1", _CAST.sub("", text))


def function_of(name: str) -> str:
    """The function's own qualified name: of `void a::f<b::g, 4>(int)` it is `a::f`. Takes a name spelled alike."""
    own, inside = [], ""  # the brackets that are open; in a round one, < and > compare
    name = name.partition("_object_at_")[0]  # after it, CuTe DSL spells the layouts of the arguments
    for char in name.replace("(anonymous namespace)", "anonymous").replace("->", ""):
        if char in "<(" and (inside or char == "<"):
            inside += char if char == "(" or inside[-1:] != "(" else ""
        elif char in ">)" and inside:
            inside = inside[:-1] if (char == ">") == (inside[-1] == "<") else inside
        elif not inside:
            if char == "(":
                break
            own.append(char)
    return "".join(own).strip().rpartition(" ")[2]  # before the blank stands what it returns


def words_of(text: str) -> str:
    """An identifier or a whole name as lower-case words: `FusedAddRMSNormKernel` is "fused add rms norm kernel"."""
    for written, meant in _ONE_WORD:
        text = text.replace(written, meant)
    text = _CAMEL.sub(" ", text).lower()
    return _TOP_K.sub("topk", _NO_WORD.sub(" ", text)).strip()


_ONE_WORD = (("MoE", "Moe"), ("A2A", "A2a"), ("deep_gemm", "deepgemm"), ("DeepGemm", "deepgemm"))
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\s]+")
_CAST = re.compile(r"\((?:unsigned |signed )?(?:int|long long|long|short|char)\)(?=-?\d)")
_BOOL = re.compile(r"\(bool\)([01])\b")
_SUFFIX = re.compile(r"\b(\d+)(?:ull|ul|u|ll|l)\b", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_WORD = re.compile(r"[^a-z0-9]+")
_TOP_K = re.compile(r"\btop k(?![a-z])")
_MANGLED = re.compile(r"L[a-z]n?(\d+)E|S[0-9A-Z]*_|T\d*_|(\d+)")
_REPEATED_REPETITION = re.compile(r"[+*}]\)[+*{]")


def _texts(name: str) -> tuple[str, str, str]:
    spelled = spelled_alike(name)
    return spelled, words_of(function_of(spelled)[:LONGEST_FUNCTION]), words_of(spelled)


def _matches(rule: Rule, texts: tuple[str, str, str]) -> bool:
    spelled, function, words = texts
    return (
        (not rule.function or _compiled(rule.function).search(function) is not None)
        and (not rule.words or _compiled(rule.words).search(words) is not None)
        and (not rule.match or _compiled(rule.match).search(spelled) is not None)
        and (not rule.unless or _compiled(rule.unless).search(function) is None)
    )


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _check_pattern(key: str, pattern: str) -> None:
    if len(pattern) > LONGEST_PATTERN:
        raise UsageError(f"{key} has {len(pattern)} characters; the most is {LONGEST_PATTERN}: make two rules of it")
    if _REPEATED_REPETITION.search(pattern):
        raise UsageError(f"{key} {pattern!r} repeats a repetition, which can take for ever; write it with one")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as e:
        raise UsageError(f"{key} {pattern!r} is no regular expression: {e}") from None


def _rule(row: object, where: str) -> Rule:
    if not isinstance(row, dict):
        raise UsageError(f"{where}: not an object, but {str(row)[:60]!r}")
    known = [field.name for field in fields(Rule)]
    for key in row:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; there are {', '.join(known)}")
    if "category" not in row:
        raise UsageError(f"{where}: no category; there are {', '.join(CATEGORIES)}")
    try:
        return Rule(**row)
    except UsageError as e:
        raise UsageError(f"{where}: {e}") from None


def _opened(mangled: str) -> str:
    """A C++ name as far as rules read it: `_ZN1a1fIN1b1gELi4EEEvi` as `a::f<b g 4>`."""
    start = mangled.index("_Z") + 2
    nested = mangled.startswith("N", start)
    own: list[str] = []
    inner: list[str] = []
    position, into = start + nested, own
    while found := _MANGLED.search(mangled, position):
        between = mangled[position : found.start()]
        if into is own and own and (between or not nested):
            into = inner  # the function's name ends where its template arguments or parameters begin
        if found[2] and (length := int(found[2][:4])):
            position = found.end() + length
            into.append(mangled[found.end() : position])
            if value := re.match(r"E(\d+)E", mangled[position:]):  # of an enumeration
                into.append(value[1])
        else:
            position = found.end()
            into.append(found[1] or "")
    kept = ["anonymous" if name.startswith("_GLOBAL__N_") else name for name in own if name]
    return "::".join(kept) + "<" + " ".join(filter(None, inner)) + ">"
