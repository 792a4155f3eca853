"""Safetensors files with the standard library alone: what is in them, and a tensor's bytes. Weights stay on disk.

Format: 8 bytes little-endian length N, N bytes of JSON ({name: {dtype, shape, data_offsets}, "__metadata__": {..}}),
then the tensors' bytes, which the offsets cover without gap or overlap (huggingface/safetensors, README "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
BITS = {
    **dict.fromkeys(["F64", "I64", "U64", "C64"], 64),
    **dict.fromkeys(["F32", "I32", "U32"], 32),
    **dict.fromkeys(["F16", "BF16", "I16", "U16"], 16),
    **dict.fromkeys(["F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"], 8),
    **dict.fromkeys(["F6_E2M3", "F6_E3M2"], 6),
    "F4": 4,
}
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Tensor:
    """A tensor of a file: where its bytes are."""

    path: Path
    name: str
    dtype: str  # as the format spells it: "BF16", "F8_E4M3", ..
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    size: int  # bytes

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """Its bytes, at most CHUNK at a time; a chunk holds whole elements. Raises OSError."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            left = self.size
            while left:
                piece = file.read(min(left, CHUNK))
                if not piece:
                    raise OSError(f"{self.path} ended within {self.name}")
                left -= len(piece)
                yield piece

    def read(self) -> bytes:
        """All of its bytes. Raises OSError."""
        return b"".join(self.chunks())


@dataclass(frozen=True)
class TensorFile:
    """The header of one file."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Tensor]


def open_header(path: Path) -> TensorFile:
    """Reads the header and checks it against the file's size.

    Raises OSError when the file cannot be read, ValueError saying what is wrong when it is cut short or no
    safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise ValueError(f"{path} is cut short or no safetensors file")
        text = file.read(length)
    try:
        described = json.loads(text)
        metadata = {str(key): str(value) for key, value in described.pop("__metadata__", {}).items()}
        tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in described.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no safetensors file: {error or type(error).__name__}") from None
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.size)):
        if tensor.start != end:
            raise ValueError(f"{path} is no sound safetensors file: {tensor.name} does not begin where it should")
        end += tensor.size
    if end != size:
        raise ValueError(
            f"{path} is cut short: {size} bytes, its header describes {end}"
            if end > size
            else f"{path} is no sound safetensors file: {size} bytes, its header describes {end}"
        )
    return TensorFile(path, metadata, tensors)


def _tensor(path: Path, name: str, entry: dict[str, Any], offset: int) -> Tensor:
    dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"tensor {name} has a shape or place that is no whole number")
    if dtype not in BITS:
        raise ValueError(f"tensor {name} has the unknown type {dtype!r}")
    if math.prod(shape) * BITS[dtype] != (end - start) * 8:
        raise ValueError(f"tensor {name} does not fill its place")
    return Tensor(path, name, dtype, shape, offset + start, end - start)
