"""Reads messages of protobuf's wire format (https://protobuf.dev/programming-guides/encoding): strictly, and no more than is asked for.

Why not the protobuf package: a dozen fields of six messages are wanted of an HLO file, all of them numbers, text or
messages. The package would bring generated code that must fit its own version, and engines pin that version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# A schema gives a field's number its name and its kind. "messages" are kept as they are, for `read` with their own schema;
# a field that may be there once but is there twice is, by the format's rule, the two put one after the other.
Schema = Mapping[int, tuple[str, str]]
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types; 3 and 4, groups, are gone since proto3
_WIRES = {"int": (VARINT,), "ints": (VARINT, LENGTH), "text": (LENGTH,), "bytes": (LENGTH,), "messages": (LENGTH,)}
_DEFAULTS = {"int": 0, "text": "", "bytes": b""}  # a field with its default is not written


class WireError(ValueError):
    """No message of this schema: cut short, or something else altogether."""


def read(data: bytes | memoryview, schema: Schema) -> dict[str, Any]:
    """The fields of `schema`, by name. A field it does not name is passed over, but its form must be right."""
    found: dict[str, Any] = {name: _DEFAULTS.get(kind, ()) for name, kind in schema.values()}
    for number, wire, value in _fields(memoryview(data)):
        if number not in schema:
            continue
        name, kind = schema[number]
        if wire not in _WIRES[kind]:
            raise WireError(f"{name} (field {number}) has wire type {wire}")
        if kind == "int":
            found[name] = _signed(value)
        elif kind == "ints":
            found[name] += tuple(map(_signed, _packed(value) if wire == LENGTH else (value,)))
        elif kind == "messages":
            found[name] += (value,)
        else:
            found[name] = bytes(value) if kind == "bytes" else _text(name, value)
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and value: an int for a varint, a view of the bytes for everything else."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"field number {number}")
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == LENGTH:
            size, at = _varint(data, at)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise WireError(f"wire type {wire}")
        if size > len(data) - at:
            raise WireError(f"field {number} has {size} bytes, {len(data) - at} are left")
        yield number, wire, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """An unsigned number, and where the next thing begins. Seven bits a byte, low ones first, at most 64 in all."""
    value = 0
    for index in range(10):
        if at + index >= len(data):
            raise WireError("the end lies within a number")
        byte = data[at + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + index + 1
    raise WireError("a number of more than 64 bits")


def _packed(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _signed(value: int) -> int:
    """int64 travels as its two's complement."""
    return value - (1 << 64) if value >> 63 else value


def _text(name: str, value: memoryview) -> str:
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise WireError(f"{name} is not UTF-8") from None
