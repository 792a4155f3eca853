"""HloModuleProto of a graph's dots, as the compiler leaves them in its work folder: the projections of one layer."""

from __future__ import annotations

from typing import Any


def module_of(config: Any, tokens: int) -> bytes:
    """[tokens, H] . [H, V], the output head; and [tokens, H] . [H, E], the router."""
    rows, hidden = config.neuron_config.batch_size * tokens, config.hidden_size
    parts = b""
    for index, columns in enumerate((config.vocab_size, config.num_experts)):
        first = 10 * index + 1
        parts += _parameter(first, rows, hidden) + _parameter(first + 1, hidden, columns) + _dot(first + 2, first)
    return _block(1, b"double") + _block(3, _block(1, b"main") + parts + _integer(5, 7)) + _integer(6, 7)


def _parameter(id: int, *shape: int) -> bytes:
    return _instruction(id, b"parameter", _block(3, _block(3, b"".join(map(_varint, shape)))))


def _dot(id: int, lhs: int) -> bytes:
    axes = _block(1, _varint(1)) + _block(2, _varint(0))
    return _instruction(id, b"dot", _block(30, axes) + _block(36, _varint(lhs) + _varint(lhs + 1)))


def _instruction(id: int, opcode: bytes, content: bytes) -> bytes:
    return _block(2, _block(1, opcode) + _block(2, opcode) + content + _integer(35, id))


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _block(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
