"""Rows as aligned columns, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def columns(rows: Sequence[dict[str, Any]]) -> str:
    """Of equal keys, which are the heads. None is left empty."""
    if not rows:
        return "none"
    cells = [list(rows[0])] + [["" if value is None else str(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in cells)
