"""Dataclass <-> JSON at the border between processes. Strict: an unknown key or a wrong type is refused with its path."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Plain dicts, lists and scalars for `json.dump`. Raises TypeError for anything that is not data."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} is not data: {value!r}")


def from_json(kind: type[T], data: Any, path: str = "$") -> T:
    """An instance of the annotated type `kind`. Raises ValueError naming the place, e.g. `$.setup.tp: expected int`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return from_json(next(item for item in arguments if item is not type(None)), data, path)
    if is_dataclass(kind):
        return _dataclass_from(kind, data, path)
    if origin is tuple and isinstance(data, list):
        return tuple(from_json(arguments[0], item, f"{path}[{index}]") for index, item in enumerate(data))
    if origin is dict and isinstance(data, dict):
        return {key: from_json(arguments[1], item, f"{path}.{key}") for key, item in data.items()}
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:  # not isinstance: True must not pass for 1
        raise ValueError(f"{path}: expected {getattr(kind, '__name__', kind)}, got {data!r}")
    return data


def _dataclass_from(kind: type, data: Any, path: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected an object for {kind.__name__}, got {data!r}")
    known = {field.name: field for field in fields(kind)}
    for key in data:
        if key not in known:
            raise ValueError(f"{path}.{key}: unknown key; {kind.__name__} has {', '.join(known)}")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, field in known.items():
        if name in data:
            values[name] = from_json(hints[name], data[name], f"{path}.{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{path}.{name}: missing")
    return kind(**values)
