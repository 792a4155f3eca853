"""Which ranges were open at a moment of a thread: nested spans, flattened into pieces that can be searched."""

from __future__ import annotations

import polars

from harness.traces.trace import SCOPE

OUTER, INNER, BOTH = (
    0,
    1,
    2,
)  # a range that all within it belong to; an operation, said only when innermost; one as both

MAX_DEPTH, MAX_CUTS = 256, 1000  # of nesting; of the ways in which spans of one level overlap

SPANS = {  # what is asked for
    "thread": polars.UInt32,
    "start": polars.Int64,
    "end": polars.Int64,
    "name": polars.UInt32,  # index into names
    "role": polars.UInt8,
}
PIECES = {  # what is given: from `time` until the thread's next piece
    "thread": polars.UInt32,
    "time": polars.Int64,
    "path": polars.UInt32,  # the ranges: index into Chains.texts
    "scope": polars.UInt32,  # the ranges and the innermost operation in them
    "op": polars.Int64,  # row in spans of the innermost operation, -1 for none
}


class Chains:
    """Texts of chains of names, each kept once. Number 0 is the empty chain."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.texts = [""]
        self._known: dict[tuple[int, int], int] = {}

    def extend(self, chain: int, name: int) -> int:
        """The number of `chain` with a name more."""
        key = chain, name
        if key not in self._known:
            self._known[key] = len(self.texts)
            outer = self.texts[chain]
            self.texts.append(f"{outer}{SCOPE}{self.names[name]}" if outer else self.names[name])
        return self._known[key]


def flatten(spans: polars.DataFrame, chains: Chains) -> polars.DataFrame:
    """PIECES of SPANS, sorted by thread and time. Spans of one thread may overlap in any way; empty ones hold nothing.

    A piece starts where a span starts or ends, so what is asked at one moment is one search. The work goes level by
    level, from the outermost spans inwards; what is nested deeper than MAX_DEPTH is not followed."""
    level = (
        spans.with_row_index("row")
        .filter(polars.col("end") > polars.col("start"))
        .select(polars.col("row").cast(polars.Int64), *SPANS, **_NOTHING)
    )
    edges = []
    for depth in range(MAX_DEPTH):
        if level.is_empty():
            break
        outer, inner = _outermost(level)
        outer = _extended(outer, chains)
        edges += _edges(outer, depth)
        found = outer.select("thread", "start", outer_path="path", outer_scope="scope", outer_op="op")
        level = _within(inner.drop(_NOTHING), found)
    if not edges:
        return polars.DataFrame(schema=PIECES)
    pieces = polars.concat(edges).sort("thread", "time", "rank", maintain_order=True)
    return pieces.unique(["thread", "time"], keep="last", maintain_order=True).select(list(PIECES))


_NOTHING = {
    "outer_path": polars.lit(0, polars.UInt32),
    "outer_scope": polars.lit(0, polars.UInt32),
    "outer_op": polars.lit(-1, polars.Int64),
}


def _outermost(level: polars.DataFrame) -> tuple[polars.DataFrame, polars.DataFrame]:
    """The spans that lie in no other, and all others. One that outlives the span it began in is cut in two there."""
    for _ in range(MAX_CUTS):
        level = level.sort("thread", "start", "end", descending=[False, False, True], maintain_order=True)
        before = polars.col("end").cum_max().shift(1).over("thread")
        level = level.with_columns(free=before.is_null() | (polars.col("start") >= before))
        outer, inner = level.filter("free").drop("free"), level.filter(~polars.col("free")).drop("free")
        inner = _within(inner, outer.select("thread", "start", until="end"))
        beside = inner.filter(polars.col("start") >= polars.col("until")).drop("until")  # only a longer one hid them
        inner = inner.filter(polars.col("start") < polars.col("until"))
        rest = inner.filter(polars.col("end") > polars.col("until")).with_columns(start="until").drop("until")
        inner = inner.with_columns(end=polars.min_horizontal("end", "until")).drop("until")
        if rest.is_empty() and beside.is_empty():
            break
        level = polars.concat([outer, inner, beside, rest])
    return outer, inner


def _within(inner: polars.DataFrame, outer: polars.DataFrame) -> polars.DataFrame:
    return inner.sort("start", maintain_order=True).join_asof(
        outer.sort("start"), on="start", by="thread", strategy="backward", check_sortedness=False
    )


def _extended(spans: polars.DataFrame, chains: Chains) -> polars.DataFrame:
    """Spans with their own path, scope and op."""
    pairs = spans.select("outer_path", "name").unique(maintain_order=True)
    numbers = [chains.extend(chain, name) for chain, name in pairs.iter_rows()]
    spans = spans.join(pairs.with_columns(scope=polars.Series(numbers, dtype=polars.UInt32)), on=["outer_path", "name"])
    role = polars.col("role")
    return spans.with_columns(
        path=polars.when(role == INNER).then("outer_path").otherwise("scope"),
        op=polars.when(role == OUTER).then("outer_op").otherwise("row"),
    )


def _edges(spans: polars.DataFrame, depth: int) -> list[polars.DataFrame]:
    """What holds from each start and each end on. At one moment the last rank counts: of ends the outermost, then of
    starts the innermost."""
    ends = spans.select(
        "thread",
        polars.lit(-depth - 1, polars.Int32).alias("rank"),
        time="end",
        path="outer_path",
        scope="outer_scope",
        op="outer_op",
    )
    starts = spans.select("thread", polars.lit(depth, polars.Int32).alias("rank"), "path", "scope", "op", time="start")
    return [ends, starts.select(ends.columns)]


def holding(spans: polars.DataFrame, points: polars.DataFrame) -> polars.DataFrame:
    """Those of SPANS in which a point (thread, time) lies: the only ones that `at` can find."""
    following = points.select("thread", "time").sort("time")
    found = spans.sort("start", maintain_order=True).join_asof(
        following, left_on="start", right_on="time", by="thread", strategy="forward", check_sortedness=False
    )
    return found.filter(polars.col("time") < polars.col("end")).drop("time")


def at(points: polars.DataFrame, pieces: polars.DataFrame) -> polars.DataFrame:
    """`points` (columns thread, time, others) with the `scope` of that moment, null outside of all spans.

    The rows come back in another order. `pieces` that are sorted by time already are not sorted again."""
    known = polars.col("time").is_not_null()
    pieces = pieces.select("thread", "time", "scope")
    found = (
        points.filter(known)
        .sort("time")
        .join_asof(
            pieces if pieces["time"].is_sorted() else pieces.sort("time"),
            on="time",
            by="thread",
            strategy="backward",
            check_sortedness=False,
        )
    )
    found = polars.concat([found, points.filter(~known)], how="diagonal")
    return found.with_columns(polars.when(polars.col("scope") > 0).then("scope").alias("scope"))
