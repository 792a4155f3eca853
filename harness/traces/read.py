"""From a file to a Trace: what it is, is decided by what is in it, not by its name."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from harness.errors import UsageError
from harness.traces.kineto import read_kineto
from harness.traces.nsys import read_report, read_sqlite
from harness.traces.nsys_stats import read_stats
from harness.traces.trace import Trace

READABLE = "torch.profiler JSON (.json, .json.gz), nsys .sqlite or .nsys-rep, CSV of nsys stats"
MAX_BYTES = 12 * 2**30  # of JSON: it is held in memory, with about as much again
MAX_RATIO = 300  # of unpacked to packed: traces reach 30, a file made to fill the memory 1000
CHUNK = 2**24
_REPORT = b"NVIDIA Tegra Profiler Report"  # the name of old; .nsys-rep still begins with it
_HEAD = 4096


def read(path: Path) -> Trace:
    """The operations in a trace file of any known kind.

    Raises UsageError for what is no trace or damaged, NoAnswer for a trace that does not hold any operations."""
    head = _head(path)
    if head.startswith(b"SQLite format 3\0"):
        return read_sqlite(path)
    if head.startswith(_REPORT):
        return read_report(path)
    if head.startswith(b"\x1f\x8b"):
        return _read_json(_unpacked(path), path)
    if _is_json(head):
        if path.stat().st_size > MAX_BYTES:
            raise UsageError(f"{path}: {_TOO_LARGE}")
        return _read_json(_bytes(path), path)
    text = _text(head)
    if text is None:
        raise UsageError(f"{path}: no trace: {_kind_of(head)}; readable are {READABLE}")
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path}: {_TOO_LARGE}")
    return read_stats(_text(_bytes(path)) or "", path.name, str(path))


_TOO_LARGE = f"more than {MAX_BYTES // 2**30} GiB of text: record fewer steps"


def _head(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise UsageError(f"{path}: a folder: give one trace file in it ({READABLE})")
        if not path.exists():
            raise UsageError(f"{path}: no such file")
        if not path.is_file():
            raise UsageError(f"{path}: not a regular file")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UsageError(f"{str(path)!r}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not head:
        raise UsageError(f"{path}: empty")
    if not head.strip(b"\0"):
        raise UsageError(f"{path}: begins with {len(head)} zero bytes: never written, or a copy that broke off")
    return head


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None


def _unpacked(path: Path) -> bytearray:
    """The content of a .gz, of JSON only. Stops early at what is none, and at what unpacks without end."""
    data, packed = bytearray(), path.stat().st_size
    try:
        with gzip.open(path) as file:
            while chunk := file.read(CHUNK):
                data += chunk
                if len(data) == len(chunk) and not _is_json(data[:_HEAD]):
                    kind = _kind_of(bytes(data[:_HEAD]))
                    raise UsageError(f"{path}: a .gz of no trace: {kind}; only JSON of torch.profiler is read packed")
                if len(data) > MAX_BYTES or len(data) > 4 * CHUNK and len(data) > MAX_RATIO * packed:
                    raise UsageError(
                        f"{path}: {packed} bytes unpack to more than {len(data)}: no trace, or {_TOO_LARGE}"
                    )
    except EOFError:
        raise UsageError(f"{path}: a .gz that is cut off after {len(data)} unpacked bytes: copy it again") from None
    except (OSError, zlib.error) as error:
        raise UsageError(f"{path}: a damaged .gz ({error}): copy it again") from None
    if not data:
        raise UsageError(f"{path}: a .gz of nothing")
    return data


def _read_json(data: bytes | bytearray, path: Path) -> Trace:
    if data[:3] == b"\xef\xbb\xbf":
        data = data[3:]
    return read_kineto(data, path.name, str(path))


def _is_json(head: bytes | bytearray) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _text(data: bytes) -> str | None:
    """Text of any encoding a shell writes, or None for what is no text."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = data.decode(encoding, "replace")
    strange = sum(
        character < " " and character not in "\t\r\n\f" or character == "\ufffd" for character in text[:_HEAD]
    )
    return text if strange <= len(text[:_HEAD]) // 50 else None


def _kind_of(head: bytes) -> str:
    known = {
        b"PK\x03\x04": "a ZIP archive: unpack it first",
        b"\x28\xb5\x2f\xfd": "Zstandard: unpack it first",
        b"BZh": "bzip2: unpack it first",
        b"\xfd7zXZ": "xz: unpack it first",
        b"\x7fELF": "a program",
        b"\x1f\x8b": "a .gz within it: unpack it first",
        b"SQLite format 3": "SQLite: unpack it first",
        _REPORT: "a report of Nsight Systems: unpack it first",
    }
    found = next((words for magic, words in known.items() if head.startswith(magic)), None)
    if found:
        return found
    if not head.strip(b"\0"):
        return "zero bytes"
    return "text of something else" if _text(head) is not None else "binary data of something else"
