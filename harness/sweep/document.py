"""A YAML file as plain values that remember their lines. Anything but plain values is refused: no tags, no aliases (which
a few lines can blow up to gigabytes), no key twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError

MOST_BYTES = 1 << 20
DEEPEST = 20
SCHEMA = Path(__file__).parents[1] / "data" / "sweep.schema.json"
Place = tuple[Any, ...]  # keys and indices that lead to a value


@dataclass(frozen=True)
class Document:
    name: str
    value: Any
    lines: Mapping[Place, int]

    def error(self, place: Place, words: str) -> UsageError:
        """For the line of a value, or of the nearest one around it."""
        around = next((place[:n] for n in range(len(place), -1, -1) if place[:n] in self.lines), ())
        return UsageError(f"{self.name}:{self.lines.get(around, 1)}: {words}")


def read(path: Path) -> Document:
    """Raises UsageError with file and line: for no YAML, and for what the published schema does not allow."""
    import yaml

    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UsageError(f"{path}: {size >> 20} MiB; a sweep file has at most {MOST_BYTES >> 20}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: no UTF-8 text: {error.reason} at byte {error.start}") from error
    lines: dict[Place, int] = {}
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):  # before anything is built
            at = f"{path}:{event.start_mark.line + 1}"
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent):
                raise UsageError(f"{at}: aliases (*{event.anchor}) are not read")
            if depth > DEEPEST:
                raise UsageError(f"{at}: nested too deeply")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise UsageError(f"{path}:{mark.line + 1 if mark else 1}: no YAML: {what}") from error
    document = Document(str(path), _value(node, (), lines, path) if node else None, lines)
    _check(document)
    return document


def _value(node: Any, place: Place, lines: dict[Place, int], path: Path) -> Any:
    import yaml

    line = node.start_mark.line + 1
    lines.setdefault(place, line)
    if isinstance(node, yaml.ScalarNode):
        try:
            value = yaml.SafeLoader("").construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            raise UsageError(f"{path}:{line}: {node.value[:40]!r} is no value: {error}".split("\n")[0]) from error
        if value is None or isinstance(value, (str, int, float, bool)):
            return value
        raise UsageError(f"{path}:{line}: {node.value[:40]!r} is read as a {type(value).__name__}; put it in quotes")
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*place, index), lines, path) for index, item in enumerate(node.value)]
    found = {}
    for key, item in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else None
        at = f"{path}:{key.start_mark.line + 1}"
        if name is None:
            raise UsageError(f"{at}: a key must be a word")
        if name in found:
            raise UsageError(f"{at}: the key {name!r} is there twice")
        lines[(*place, name)] = key.start_mark.line + 1
        found[name] = _value(item, (*place, name), lines, path)
    return found


def _check(document: Document) -> None:
    """Against the published schema; the first error by line."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    errors = [_deepest(error) for error in validator.iter_errors(document.value)]
    found = [document.error((*error.absolute_path, *_unknown(error)), _words(error)) for error in errors]
    if found:
        raise min(found, key=lambda error: int(str(error)[len(document.name) + 1 :].partition(":")[0]))


def _deepest(error: Any) -> Any:
    """Of `a value or a list of values`, the branch that was meant."""
    while error.context:
        is_list = isinstance(error.instance, list)
        branch = [inner for inner in error.context if inner.schema_path[0] == int(is_list)] or error.context
        error = branch[0]
    return error


def _unknown(error: Any) -> list[str]:
    """The first key that may not be there, if that is the error."""
    if error.validator != "additionalProperties":
        return []
    return [next(key for key in error.instance if key not in error.schema.get("properties", {}))]


def _words(error: Any) -> str:
    from harness.names import check_known

    for name in _unknown(error):
        try:
            check_known("key", name, error.schema.get("properties", {}))
        except UsageError as unknown:
            return str(unknown)
    place = ".".join(map(str, error.absolute_path)) or "the file"
    shown = json.dumps(error.instance, default=str)
    expected = {
        "type": lambda: f"expected {error.validator_value}",
        "enum": lambda: f"expected one of {', '.join(map(str, error.validator_value))}",
        "minimum": lambda: f"expected at least {error.validator_value}",
        "exclusiveMinimum": lambda: f"expected more than {error.validator_value}",
        "minItems": lambda: "an empty list makes no cells",
        "uniqueItems": lambda: "a value is there twice",
        "required": lambda: f"{error.validator_value[0]!r} is missing",
    }.get(error.validator, lambda: error.message)
    return f"{place}: {expected()}" + (f", got {shown[:60]}" if error.validator in ("type", "enum", "minimum") else "")
