"""What happened on the device, as tables: what every reader gives, and all that any question is asked of."""

from __future__ import annotations

from dataclasses import dataclass

import polars

from harness.errors import HarnessError

HOST = -1  # the device of a CPU's own operations
KINDS = ("kernel", "memcpy", "memset", "op")  # an op is one of PyTorch's on a CPU; its duration is its self time
PHASES = ("prefill", "decode")

SCHEMA = {
    "start": polars.Int64,  # ns on the trace's own clock; null in a summary
    "duration": polars.Int64,  # ns; in a summary, of all calls together
    "count": polars.UInt32,  # calls: 1, but in a summary; 0 for a later piece of a CPU operation that others interrupt
    "device": polars.Int16,
    "stream": polars.Int32,
    "kind": polars.Enum(KINDS),
    "name": polars.UInt32,  # index into Trace.names
    "scope": polars.UInt32,  # index into Trace.scopes; null where nothing says who launched it
    "step": polars.UInt32,  # index into Trace.steps; null outside of all of them
}


class NoAnswer(HarnessError):
    """The trace was read, and does not hold what the question needs. Says what is missing, and how to record it."""

    exit_code = 1


@dataclass(frozen=True)
class Step:
    """One step of an engine, or one range that was marked as a phase."""

    label: str  # as the trace has it
    phase: str | None  # of PHASES; None: a step of both, or of unknown kind


@dataclass(frozen=True)
class Trace:
    """Every operation of a device, on all streams. `ops` has the columns of SCHEMA, sorted by device and start."""

    source: str  # the file's name
    format: str  # in words, e.g. "nsys sqlite 3.24.14"
    ops: polars.DataFrame
    names: tuple[str, ...]
    scopes: tuple[str, ...] = ()  # who launched it: modules and ranges, outermost first, joined by SCOPE
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()  # what the reader could not tell, with its share, in words

    @property
    def is_summary(self) -> bool:
        """Totals by name without a timeline: nothing overlaps, nothing idles, as far as it can tell."""
        return self.ops["start"].null_count() == len(self.ops)


SCOPE = " > "
