"""Option types the commands share."""

from __future__ import annotations

from typing import Any

import click


class Names(click.ParamType):
    """A comma list of words, each once, in the order given."""

    name = "list"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        words = tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
        return words or self.fail("is empty", parameter, context)


class Numbers(click.ParamType):
    """A comma list of whole numbers, none below `least`."""

    name = "numbers"

    def __init__(self, least: int) -> None:
        self.least = least

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = Names().convert(value, parameter, context)
        for word in words:
            if not word.isdecimal() or int(word) < self.least:
                self.fail(f"{word!r} is not a whole number of at least {self.least}", parameter, context)
        return tuple(dict.fromkeys(map(int, words)))
