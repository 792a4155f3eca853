"""Who ran when: busy time, and what each category had of it, of operations that overlap in any way.

All sums are whole nanoseconds and exact. Time in which several categories ran is shared evenly among them, so that what
the categories are charged adds up to the busy time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import polars as pl

COLUMNS = ("start", "end", "category")


@dataclass(frozen=True)
class Times:
    """What one category had of the time, in ns."""

    union: int  # it ran, whatever else did
    exclusive: int  # it ran, and nothing else did
    charged: int  # exclusive, and an even share of the time it ran with others


@dataclass(frozen=True)
class Occupancy:
    busy: int  # ns in which anything ran
    times: dict[int, Times]  # by category; charged times add up to `busy`


def sweep(pieces: Iterable[pl.DataFrame]) -> Occupancy:
    """`pieces`: frames with the columns `start`, `end` (Int64, ns) and `category` (UInt8), one after another by start.

    Of two pieces only one is held at a time. What is still running where a piece ends goes on in the next.
    """
    busy = 0
    union: dict[int, int] = {}
    exclusive: dict[int, int] = {}
    charged: dict[int, Fraction] = {}
    for piece in _cut(piece.filter(pl.col("end") > pl.col("start")) for piece in pieces):
        begun = pl.col("end").cum_max().shift(1).fill_null(piece["start"][0]) <= pl.col("start")
        alone = piece.select(begun & begun.shift(-1, fill_value=True)).to_series()
        for category, time in _by_category(piece.filter(alone)):
            busy += time
            union[category] = union.get(category, 0) + time
            exclusive[category] = exclusive.get(category, 0) + time
            charged[category] = charged.get(category, Fraction(0)) + time
        found, scale, rows = _together(piece.filter(~alone))
        busy += found
        for category, in_union, in_exclusive, in_charged in rows:
            union[category] = union.get(category, 0) + in_union
            exclusive[category] = exclusive.get(category, 0) + in_exclusive
            charged[category] = charged.get(category, Fraction(0)) + Fraction(in_charged, scale)
    whole = rounded(charged, busy)
    return Occupancy(busy, {c: Times(union[c], exclusive[c], whole[c]) for c in sorted(union)})


def _cut(pieces: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Pieces that do not overlap: each cut off where the next one starts, the rest handed on to it."""
    held: pl.DataFrame | None = None
    for piece in pieces:
        if piece.is_empty():
            continue
        if held is not None:
            until = piece["start"][0]
            late = held.filter(pl.col("end") > until).group_by("category").agg(pl.col("end").max())
            late = late.select(pl.lit(until, pl.Int64).alias("start"), "end", "category")
            begun = held.filter(pl.col("start") < until)
            if not begun.is_empty():
                yield begun.with_columns(pl.col("end").clip(upper_bound=until)) if len(late) else begun
            piece = pl.concat([late, piece]) if len(late) else piece
        held = piece
    if held is not None:
        yield held


def _by_category(alone: pl.DataFrame) -> list[tuple[int, int]]:
    return alone.group_by("category").agg((pl.col("end") - pl.col("start")).sum()).rows()


def _together(piece: pl.DataFrame) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    """Busy time, a scale, and rows of category, union, exclusive and scaled charged time.

    Every category becomes intervals that do not overlap, and these become events at which it starts or ends. From one
    event to the next, `running` categories run. A running total over all events of 1 / running, and of the time one ran
    by itself, then gives what an interval has of either as a difference of two values: no column per category needed.
    """
    if piece.is_empty():
        return 0, 1, []
    first = piece["start"][0]
    events = _events(piece.with_columns(pl.col("start") - first, pl.col("end") - first))
    events = events.with_columns(
        running=pl.col("delta").cum_sum(), length=pl.col("time").diff().shift(-1, fill_value=0)
    )
    scale = math.lcm(*range(1, events["running"].max() + 1))
    events = events.with_columns(
        alone=pl.when(pl.col("running") == 1).then("length").otherwise(0),
        share=pl.when(pl.col("running") > 0).then(pl.col("length") * scale // pl.col("running")).otherwise(0),
    )
    busy = events.filter(pl.col("running") > 0)["length"].sum()
    # Totals before each event; a sum over all events needs more than 64 bits.
    before = [(pl.col(name).cum_sum() - pl.col(name)).alias(name) for name in ("alone", "share")]
    signed = [
        (-pl.col("delta") * pl.col(name)).cast(pl.Int128).sum().alias(name) for name in ("time", "alone", "share")
    ]
    rows = events.select("category", "time", pl.col("delta").cast(pl.Int64), *before).group_by("category").agg(signed)
    return busy, scale, rows.rows()


def _events(piece: pl.DataFrame) -> pl.DataFrame:
    """By time: `time`, `category`, and `delta`: +1 where a category starts to run, -1 where it ends. Events of one time
    come in any order: no time passes between them."""
    found = []
    for category in piece["category"].unique():
        own = piece.filter(pl.col("category") == category)
        reach = own["end"].cum_max()
        begun = reach.shift(1, fill_value=-1) < own["start"]
        ends = reach.filter(begun.shift(-1, fill_value=True))
        for times, delta in ((own["start"].filter(begun), 1), (ends, -1)):
            column = pl.DataFrame({"time": times}).lazy()
            found.append(column.with_columns(category=pl.lit(category, pl.UInt8), delta=pl.lit(delta, pl.Int8)))
    return pl.concat(found).sort("time").collect()


def rounded(parts: dict[int, Fraction], whole: int) -> dict[int, int]:
    """Whole numbers that add up to `whole`; the remainder goes to those that lost most by rounding down."""
    floors = {key: int(part) for key, part in parts.items()}
    rest = whole - sum(floors.values())
    by_loss = sorted(parts, key=lambda key: (floors[key] - parts[key], key))
    return {key: floors[key] + (key in by_loss[:rest]) for key in parts}
