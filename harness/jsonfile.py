"""A JSON file somebody else wrote: each value is checked where it is read, and each complaint names file and place."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from harness.errors import UsageError

LARGEST = 1e15  # beyond it no time, count or rate of a benchmark is real, and sums could overflow


@dataclass(frozen=True)
class Node:
    """A value in a file and the place it lies at. Where a file has nothing, `value` is None."""

    value: Any
    place: str

    def at(self, *keys: str) -> Node:
        """What lies under the keys; a node of None where a key on the way is missing or null."""
        node = self
        for key in keys:
            if node.value is not None and not isinstance(node.value, dict):
                node.refuse("expected an object")
            node = Node(None if node.value is None else node.value.get(key), f"{node.place}.{key}")
        return node

    def need(self) -> Node:
        return self if self.value is not None else self.refuse("missing")

    def number(self) -> float | None:
        value = self.value
        if value is not None and (type(value) not in (int, float) or not 0 <= value <= LARGEST):
            self.refuse(f"expected a number from 0 to {LARGEST:g}")  # not isinstance: True must not pass for 1
        return value

    def count(self) -> int | None:
        if (value := self.number()) is not None and value != int(value):
            self.refuse("expected a whole number")
        return None if value is None else int(value)

    def text(self) -> str | None:
        if self.value is not None and not (isinstance(self.value, str) and self.value.isprintable()):
            self.refuse("expected one line of text")
        return self.value

    def time(self, form: str | None = None) -> str | None:
        """ISO 8601; `form` is how the file has it, for strptime."""
        if (text := self.text()) is None:
            return None
        try:
            found = datetime.strptime(text, form) if form else datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            self.refuse("expected a date and time")
        return found.isoformat()

    def items(self) -> list[Node]:
        if self.value is not None and not isinstance(self.value, list):
            self.refuse("expected a list")
        return [Node(value, f"{self.place}[{index}]") for index, value in enumerate(self.value or [])]

    def numbers(self) -> list[float]:
        return [node.need().number() for node in self.need().items()]

    def refuse(self, problem: str) -> NoReturn:
        got = "" if self.value is None else f", got {str(self.value)[:40]!r}"
        raise UsageError(f"{self.place}: {problem}{got}".replace("\n", " "))


def load(path: Path) -> tuple[bytes, list[Node]]:
    """A file's bytes and its JSON values, most often one. Raises UsageError for anything else, NaN and Infinity too."""
    try:
        content = path.read_bytes()
        values = _values(content.decode("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON: {' '.join(str(error).split())}") from error
    if len(values) == 1:
        nodes = [Node(values[0], f"{path}: $")]
    else:
        nodes = [Node(value, f"{path}: $[{index}]") for index, value in enumerate(values)]
    _check_finite(nodes)
    return content, nodes


def _values(text: str) -> list[Any]:
    decoder, found, rest = json.JSONDecoder(), [], text.lstrip()
    while rest or not found:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    return found


def _check_finite(nodes: list[Node]) -> None:
    """Python reads NaN and Infinity, though JSON has neither. A loop, as depth of nesting is the file's choice."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node.value, float) and not math.isfinite(node.value):
            node.refuse("expected a finite number")
        if isinstance(node.value, dict):
            waiting += [Node(value, f"{node.place}.{key}") for key, value in node.value.items()]
        if isinstance(node.value, list):
            waiting += node.items()
