"""What the values of a scale tensor have in common, streamed: memory stays the same however long the tensor is.

A scale tensor of a large model has billions of bytes. A chunk whose leading bytes are all of sound numbers costs one
pass in C; only the others are decoded.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.tensorfile import BITS, Tensor


@dataclass(frozen=True)
class Values:
    """Counts over a tensor, or over one expert's part of it."""

    count: int
    zeros: int
    negative: int
    nan: int
    infinite: int
    constant: float | None  # the value, where all are the same


def _small_floats(exponent_bits: int, mantissa_bits: int, has_infinity: bool) -> list[float]:
    """Values of all 256 patterns of an 8-bit float."""
    bias, top = 2 ** (exponent_bits - 1) - 1, 2**exponent_bits - 1
    found = []
    for pattern in range(256):
        exponent, mantissa = pattern >> mantissa_bits & top, pattern & 2**mantissa_bits - 1
        fraction = mantissa / 2**mantissa_bits
        value = (fraction + (exponent > 0)) * 2.0 ** (max(exponent, 1) - bias)
        if has_infinity and exponent == top:
            value = math.nan if mantissa else math.inf
        elif not has_infinity and pattern & 127 == 127:
            value = math.nan
        found.append(-value if pattern & 128 else value)
    return found


E8M0 = [2.0 ** (pattern - 127) for pattern in range(255)] + [math.nan]
TABLES = {
    "F8_E4M3": _small_floats(4, 3, has_infinity=False),
    "F8_E5M2": _small_floats(5, 2, has_infinity=True),
    "F8_E8M0": E8M0,
    "U8": E8M0,  # how exporters store E8M0 where their safetensors does not know it
}
# Leading bytes that belong to positive, finite, normal numbers only.
SOUND_BYTES = {
    **{dtype: bytes(i for i in range(256) if 0 < table[i] < math.inf) for dtype, table in TABLES.items()},
    "F16": bytes(range(0x04, 0x7C)),
    "BF16": bytes(range(0x01, 0x7F)),
    "F32": bytes(range(0x01, 0x7F)),
    "F64": bytes(range(0x01, 0x7F)),
}


def is_scale_type(dtype: str) -> bool:
    return dtype in SOUND_BYTES


def examine(tensor: Tensor, parts: int = 1) -> list[Values]:
    """One entry for each of `parts` equal parts of its bytes. Raises OSError."""
    width = BITS[tensor.dtype] // 8
    return [_examine(pieces, tensor.dtype, width) for pieces in _split(tensor, parts)] if tensor.size else []


def _split(tensor: Tensor, parts: int) -> Iterator[Iterator[bytes]]:
    """The pieces of each part, in order; each part is to be used up before the next."""
    chunks, rest = tensor.chunks(), b""

    def part(left: int) -> Iterator[bytes]:
        nonlocal rest
        while left:
            rest = rest or next(chunks)
            piece, rest = rest[:left], rest[left:]
            left -= len(piece)
            yield piece

    for _ in range(parts):
        yield part(tensor.size // parts)


def _examine(pieces: Iterable[bytes], dtype: str, width: int) -> Values:
    count = zeros = negative = nan = infinite = 0
    first, is_constant = b"", True
    for piece in pieces:
        first = first or piece[:width]
        is_constant = is_constant and piece == first * (len(piece) // width)
        count += len(piece) // width
        doubtful = piece[width - 1 :: width].translate(None, SOUND_BYTES[dtype])
        if doubtful:
            for value, times in _tally(doubtful if width == 1 else piece, dtype):
                zeros += times * (value == 0)
                negative += times * (value < 0)
                nan += times * math.isnan(value)
                infinite += times * math.isinf(value)
    return Values(count, zeros, negative, nan, infinite, decode(first, dtype)[0] if is_constant else None)


def _tally(piece: bytes, dtype: str) -> Iterator[tuple[float, int]]:
    if dtype in TABLES:
        return ((TABLES[dtype][pattern], piece.count(pattern)) for pattern in set(piece))
    return ((value, 1) for value in decode(piece, dtype))


def decode(piece: bytes, dtype: str) -> Sequence[float]:
    """The numbers a piece of a tensor holds."""
    if dtype in TABLES:
        return [TABLES[dtype][pattern] for pattern in piece]
    if dtype == "F16":
        return struct.unpack(f"<{len(piece) // 2}e", piece)
    if dtype == "BF16":  # the upper half of an FP32
        wide = bytearray(2 * len(piece))
        wide[2::4], wide[3::4] = piece[0::2], piece[1::2]
        piece, dtype = bytes(wide), "F32"
    return struct.unpack(f"<{len(piece) // (BITS[dtype] // 8)}{'f' if dtype == 'F32' else 'd'}", piece)


def whole_numbers(tensor: Tensor) -> list[int]:
    """Values of a small integer tensor, such as a shape. Raises OSError."""
    kinds = {"I64": "q", "I32": "i", "U64": "Q", "U32": "I"}
    return list(struct.unpack(f"<{tensor.elements}{kinds[tensor.dtype]}", tensor.read()))
