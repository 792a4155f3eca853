"""Batch sizes upwards until memory ends: the point of best latency and that of best throughput."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from harness.planning.plan import Options
from harness.precision import EMULATED
from harness.recording.records import MEASURED, Record
from harness.working.run import Result

FIRST = 16  # batch sizes up to it share a load; beyond it two, so that little is lost when memory ends
OUT_OF_MEMORY = "out_of_memory"


@dataclass(frozen=True)
class Batches:
    """What was measured, in the order of batch sizes."""

    records: tuple[Record, ...]
    problems: tuple[str, ...]
    exit_code: int  # that memory ended is an answer, not a failure

    @property
    def measured(self) -> list[Record]:
        return [r for r in self.records if r["status"] in MEASURED and r["compute_mode"] != EMULATED]

    @property
    def stopped(self) -> str:
        """Where memory ended, in words; empty where it did not."""
        ends = [record for record in self.records if _is_out(record)]
        return f"out of memory at batch {ends[0]['batch_size']}: {ends[0]['failure']['message'][:200]}" if ends else ""

    def lines(self) -> list[str]:
        """The two best points, and where it ended."""
        if not self.measured:
            return ["no batch size was measured", *([self.stopped] if self.stopped else [])]
        latency = min(self.measured, key=lambda record: record["mean_latency_ms"])
        throughput = max(self.measured, key=lambda record: record["output_tokens_per_sec"])
        found = [f"best latency: {_words(latency)}", f"best throughput: {_words(throughput)}"]
        return [
            *found,
            self.stopped or f"memory sufficed up to batch {self.measured[-1]['batch_size']}, the last tried",
        ]


def sweep(options: Options, most: int, perform: Callable[[Options], Result], known: Sequence[Record] = ()) -> Batches:
    """Measures batch sizes 1, 2, 4, .. `most`, and stops after the load in which memory ended. `known`: records of some
    of them, which are not measured anew."""
    records: list[Record] = [record for record in known if record["status"] in MEASURED]
    done = {record["batch_size"] for record in records}
    problems: list[str] = []
    code = 0
    for group in groups(most):
        if not (group := tuple(size for size in group if size not in done)):
            continue
        result = perform(replace(options, workloads=("perf",), parameters={**options.parameters, "batch_size": group}))
        records += result.records
        problems += result.problems
        others = [record for record in result.records if record["status"] == "failed" and not _is_out(record)]
        code = 130 if result.was_interrupted else max(code, int(bool(others or result.problems)))
        if result.was_interrupted or others or any(map(_is_out, result.records)):
            break
    return Batches(tuple(sorted(records, key=lambda record: record["batch_size"])), tuple(problems), code)


def groups(most: int) -> Iterator[tuple[int, ...]]:
    """Powers of two up to `most`, as they share loads."""
    sizes = [1 << power for power in range(most.bit_length()) if 1 << power <= most]
    yield tuple(size for size in sizes if size <= FIRST)
    later = [size for size in sizes if size > FIRST]
    yield from (tuple(later[at : at + 2]) for at in range(0, len(later), 2))


def _is_out(record: Record) -> bool:
    return record["status"] == "failed" and record["failure"]["class"] == OUT_OF_MEMORY


def _words(record: Record) -> str:
    itl = record.get("itl_ms")
    gap = f", {itl['p50']:.2f} ms between tokens" if itl else ""
    return (
        f"batch {record['batch_size']}: {record['mean_latency_ms']:.1f} ms{gap}, "
        f"{record['output_tokens_per_sec']:.1f} tok/s"
    )
