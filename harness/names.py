"""Names: the nearest known one for a typing error, and one that is safe as a file name.

Imports inside the functions: this file is on the path of commands that answer in 0.15 s.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.errors import UsageError


def check_known(kind: str, name: str, known: Iterable[str]) -> str:
    """`name` when it is known; else UsageError with the nearest names."""
    known = list(known)
    if name in known:
        return name
    import difflib

    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}"
    raise UsageError(f"unknown {kind} {name!r}: {hint}")


def safe_name(text: str) -> str:
    """One path component that cannot climb, hide or clash: letters, digits, `.`, `_`, `-`; at most 80 characters.

    A name that had to be changed beyond `/` -> `--` carries a hash of the original, so two stay two.
    """
    import hashlib
    import re

    plain = text.replace("/", "--")
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", plain).lstrip(".-")[:80]
    if safe == plain and safe:
        return safe
    return f"{safe or 'model'}-{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
