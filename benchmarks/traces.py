"""How fast a trace becomes a breakdown: a large nsys export in seconds and memory, a Kineto trace against HTA.

    python benchmarks/traces.py                                  # 1 million kernels
    python benchmarks/traces.py --kernels 10000000 --events 1000000 --hta hta/bin/python

It makes both files itself, the same ones each time: kernels of MoE layers on two devices, in the schema of nsys 2025.3
(`--launches` adds a launching call for each and ranges around them), and a PyTorch profile with shapes and stacks, for
without stacks there are no modules in it. Each contestant is a process of its own and they run in turn. HTA is `pip
install HolisticTraceAnalysis` in an environment of its own; it is asked for get_gpu_kernel_breakdown. `inside` leaves
out the start and the imports of a process: that is what the ratio is of.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET_S, TARGET_MB, TARGET_RATIO = 10, 1000, 10
LAYER = (  # module, operation, kernel, its time in us; %d is a size of a tile
    ("RMSNorm", "_C::fused_add_rms_norm", "void vllm::fused_add_rms_norm_kernel<c10::BFloat16, %d>(c10::BFloat16*)", 3),
    ("QKVParallelLinear", "aten::mm", "nvjet_sm90_tst_%dx64_64x4_2x1_v_bz_TNT", 21),
    (
        "RotaryEmbedding",
        "_C::rotary_embedding",
        "void vllm::rotary_embedding_kernel<c10::BFloat16, true>(long*, %d)",
        2,
    ),
    ("Attention", "_vllm_fa3_C::fwd", "void cutlass::device_kernel<flash::FlashAttnFwdSm90<Mainloop<%d>>>(Params)", 17),
    ("RowParallelLinear", "aten::mm", "nvjet_sm90_tst_64x%d_64x8_1x2_h_bz_TNT", 14),
    ("GateLinear", "aten::linear", "nvjet_sm90_tst_64x8_64x%d_2x1_v_bz_splitK_TNT", 5),
    ("FusedMoE", "_moe_C::topk_softmax", "void vllm::moe::topkGating<%d, 128, 4, 16, 32, int>(float const*, bool*)", 4),
    ("FusedMoE", "_moe_C::moe_align_block_size", "void vllm::moe::moe_align_block_size_kernel<int, %d>(int*)", 5),
    ("FusedMoE", "vllm::moe_forward", "fused_moe_kernel_%d", 92),
    ("FusedMoE", "_C::silu_and_mul", "void vllm::act_and_mul_kernel<c10::BFloat16, %d>(c10::BFloat16*)", 4),
    ("FusedMoE", "vllm::moe_forward", "fused_moe_kernel_%d", 51),
    ("FusedMoE", "_moe_C::moe_sum", "void vllm::moe::moe_sum_kernel<c10::BFloat16, %d>(c10::BFloat16*)", 3),
)
TILES = tuple(range(32, 32 * 21, 32))
FRAMES, VIEWS = 8, 2  # of Python and of shapes, for each kernel; an eager vLLM profile with stacks has 20 and 5
EVENTS_A_KERNEL = 6 + FRAMES + VIEWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--kernels", type=int, default=1_000_000, help="in the nsys file [1000000]; the goal is at 10 million"
    )
    parser.add_argument(
        "--launches", action="store_true", help="with launch calls and NVTX ranges, for scopes and steps"
    )
    parser.add_argument("--events", type=int, default=500_000, help="in the Kineto trace [500000]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    parser.add_argument("--hta", help="the Python that has HolisticTraceAnalysis; without it there is no comparison")
    parser.add_argument("--folder", type=Path, help="where the files are made and kept [a temporary one]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        nsys = folder / f"{options.kernels}{'-launches' if options.launches else ''}.sqlite"
        if not nsys.exists():
            make_sqlite(nsys, options.kernels, options.launches)
        print_nsys(nsys, options.kernels, options.rounds)
        kineto = folder / f"kineto-{options.events}" / "rank-0.json"
        if not kineto.exists():
            make_kineto(kineto, options.events)
        print_kineto(kineto, options.events, options.rounds, options.hta)


def print_nsys(path: Path, kernels: int, rounds: int) -> None:
    print(f"nsys sqlite, {kernels} kernels, {path.stat().st_size / 1e9:.2f} GB")
    for label, command in contestants(path):
        runs = [measured(command) for _ in range(rounds)]
        seconds = statistics.median(seconds for seconds, _, _ in runs)
        memory = max(memory for _, memory, _ in runs)
        goal = f"   goal {TARGET_S} s, {TARGET_MB} MB" if kernels >= 10_000_000 else ""
        print(f"  {label:<28} {seconds:>7.2f} s   {memory:>6.0f} MB at most{goal}")
    print()


def print_kineto(path: Path, events: int, rounds: int, hta: str | None) -> None:
    print(f"Kineto JSON, {events} events, {path.stat().st_size / 1e6:.0f} MB")
    runs: dict[str, list[tuple[float, float, float | None]]] = {}
    ours = contestants(path)
    theirs = [("HTA kernel breakdown", [hta, "-c", HTA, str(path)])] if hta else []
    for _ in range(rounds):
        for label, command in ours + theirs:
            runs.setdefault(label, []).append(measured(command))
    insides = {}
    for label, of_one in runs.items():
        seconds = statistics.median(seconds for seconds, _, _ in of_one)
        insides[label] = statistics.median(inside or seconds for seconds, _, inside in of_one)
        memory = max(memory for _, memory, _ in of_one)
        print(f"  {label:<28} {seconds:>7.2f} s   inside {insides[label]:>7.2f} s   {memory:>6.0f} MB at most")
    for label, _ in ours if hta else ():
        ratio = insides[theirs[0][0]] / insides[label]
        print(f"  {label}: {ratio:.1f} times as fast as HTA (goal {TARGET_RATIO})")


def contestants(path: Path) -> list[tuple[str, list[str]]]:
    """Reading with sums by name and, where the command is there, the whole of `harness analyze`."""
    found = [("read and sums by name", [sys.executable, "-c", READ, str(path)])]
    if (ROOT / "harness" / "commands" / "analyze.py").exists():
        found.append(("harness analyze", [sys.executable, "-c", ANALYZE, str(path)]))
    return found


def measured(command: list[str]) -> tuple[float, float, float | None]:
    """Wall seconds and peak MB of a process, and the seconds it says of itself. Ends the benchmark when it fails."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        job = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(job.pid, 0)
        seconds = time.perf_counter() - started
        job.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if job.returncode:
        sys.exit(f"{' '.join(command)[:200]} failed:\n{text[-3000:]}")
    inside = [float(line.split()[1]) for line in text.splitlines() if line.startswith("inside: ")]
    return seconds, used.ru_maxrss / 1e3, inside[-1] if inside else None


READ = """
import sys, time
from pathlib import Path
import polars
from harness.traces.read import read
started = time.perf_counter()
trace = read(Path(sys.argv[1]))
trace.ops.group_by("device", "name").agg(polars.col("duration").sum(), polars.len())
print("inside:", time.perf_counter() - started)
"""

ANALYZE = """
import sys, tempfile, time
from pathlib import Path
from harness.commands.analyze import analyze
import harness.kernels.analysis
started = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    output = Path(folder) / "breakdown.json"
    try:
        analyze([sys.argv[1], "--output", str(output)])
    except SystemExit:  # 1: answered, though a made trace is not a profile to be believed
        if not output.exists():
            raise
print("inside:", time.perf_counter() - started)
"""

HTA = """
import sys, time
from pathlib import Path
from hta.trace_analysis import TraceAnalysis
started = time.perf_counter()
path = Path(sys.argv[1])
analysis = TraceAnalysis(trace_files={0: path.name}, trace_dir=str(path.parent))
analysis.get_gpu_kernel_breakdown(visualize=False)
print("inside:", time.perf_counter() - started)
"""


def make_sqlite(path: Path, kernels: int, launches: bool) -> None:
    """An export with `kernels` rows of kernels on two devices with two streams each, and no times of chance."""
    names = [kernel % tile if "%d" in kernel else kernel for tile in TILES for _, _, kernel, _ in LAYER]
    width, pid = len(LAYER), 321 << 24
    with closing(sqlite3.connect(path)) as base, base:
        base.executescript(SCHEMA)
        base.executemany("INSERT INTO StringIds VALUES (?, ?)", enumerate(names, start=10))
        base.executemany("INSERT INTO META_DATA_EXPORT VALUES (?, ?)", [("EXPORT_SCHEMA_VERSION", "3.20.3")])
        cases = " ".join(f"WHEN {place} THEN {us * 1000}" for place, (*_, us) in enumerate(LAYER))
        count = f"WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {kernels - 1})"
        name = f"10 + i / 2 % {width} + {width} * (i / {2 * width} % {len(TILES)})"
        duration = f"(CASE i / 2 % {width} {cases} END) + i * 7919 % 641"
        base.execute(
            f"""{count} INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL (start, "end", deviceId, contextId, streamId,
            correlationId, globalPid, demangledName, shortName, gridX, gridY, gridZ, blockX, blockY, blockZ)
            SELECT s, s + d, i % 2, 1, 7 + 6 * (i % 5 = 0), i + 1, {pid}, m, m, 132, 1, 1, 256, 1, 1
            FROM (SELECT i, 1000000000 + i * 9000 AS s, {duration} AS d, {name} AS m FROM n)"""
        )
        if launches:
            base.execute(
                f"""{count} INSERT INTO CUPTI_ACTIVITY_KIND_RUNTIME
                (start, "end", eventClass, globalTid, correlationId, nameId, returnValue)
                SELECT 999000000 + i * 9000, 999004000 + i * 9000, 0, {pid + 5}, i + 1, 10, 0 FROM n"""
            )
            insert = 'INSERT INTO NVTX_EVENTS (start, "end", eventType, text, globalTid) VALUES (?, ?, 59, ?, ?)'
            layers = ((998_999_000 + first * 9000, first // (2 * width) % 48) for first in range(0, kernels, 2 * width))
            base.executemany(
                insert,
                (
                    (start + part * 9000, start + 2 * width * 9000 - 1000, f"model.layers.{layer}{name}", pid + 5)
                    for start, layer in layers
                    for part, name in ((0, ""), (width, ".mlp.experts"))
                ),
            )


def make_kineto(path: Path, events: int) -> None:
    """A profile of one GPU with `events` events: modules, operations, launches, kernels and the arrows between them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {"schemaVersion": 1, "deviceProperties": [], "distributedInfo": {"rank": 0, "world_size": 1}}
    with path.open("w") as file:
        file.write(json.dumps(head)[:-1] + ', "baseTimeNanoseconds": 1790857026000000000, "traceEvents": [\n')
        file.write(",\n".join(map(json.dumps, kineto_events(events // EVENTS_A_KERNEL))))
        file.write("\n]}\n")


def kineto_events(kernels: int) -> Iterator[dict]:
    host = {"pid": 77, "tid": 77}
    free = 0.0
    yield {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#0", **host, "ts": 4.3e12, "dur": kernels * 20.0}
    for i in range(kernels):
        module, operation, kernel, us = LAYER[i % len(LAYER)]
        kernel = kernel % TILES[i // len(LAYER) % len(TILES)] if "%d" in kernel else kernel
        ts = round(4.3e12 + 20.0 * i, 3)
        free = start = round(max(ts + 9.0, free), 3)
        free += us
        ids = {"External id": i + 1, "correlation": i + 1}
        gpu = {"pid": 0, "tid": 7}
        named = {"ph": "X", "cat": "python_function", "name": f"nn.Module: {module}_{i // len(LAYER) % 48}"}
        yield {**named, **host, "ts": ts, "dur": 18.0, "args": {"Python id": i, "Ev Idx": i}}
        for depth in range(FRAMES):
            frame = {
                "ph": "X",
                "cat": "python_function",
                "name": f"vllm/model_executor/layers/{module}.py({depth}): forward",
            }
            within = {"ts": round(ts + 0.1 * depth, 3), "dur": round(18 - 0.2 * depth, 3)}
            yield {**frame, **host, **within, "args": {"Python parent id": i, "Python id": i + depth, "Ev Idx": i}}
        shapes = {
            "Input Dims": [[512, 2048], [2048, 768], []],
            "Input type": ["c10::BFloat16", "c10::BFloat16", "Scalar"],
        }
        args = {"External id": i + 1, "Record function id": 0, **shapes, "Ev Idx": i}
        call = {"ph": "X", "cat": "cpu_op", **host, "args": args}
        for view in range(VIEWS):
            yield {**call, "name": "aten::view", "ts": round(ts + 1 + 0.5 * view, 3), "dur": 0.4}
        yield {**call, "name": operation, "ts": ts + 2, "dur": 14.0}
        launch = {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", **host, "ts": ts + 3, "dur": 5.0}
        yield {**launch, "args": {**ids, "cbid": 211}}
        yield {"ph": "s", "id": i + 1, **host, "ts": ts + 3, "cat": "ac2g", "name": "ac2g"}
        shape = {"grid": [132, 1, 1], "block": [256, 1, 1], "registers per thread": 64, "shared memory": 0}
        args = {**ids, "queued": 0, "device": 0, "context": 1, "stream": 7, **shape}
        yield {"ph": "X", "cat": "kernel", "name": kernel, **gpu, "ts": start, "dur": float(us), "args": args}
        yield {"ph": "f", "id": i + 1, **gpu, "ts": start, "cat": "ac2g", "name": "ac2g", "bp": "e"}


SCHEMA = """
PRAGMA journal_mode = off;
PRAGMA synchronous = off;
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE META_DATA_EXPORT (name TEXT NOT NULL, value TEXT);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (
    start INTEGER NOT NULL, "end" INTEGER NOT NULL, deviceId INTEGER NOT NULL, contextId INTEGER NOT NULL,
    greenContextId INTEGER, streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
    demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER, launchType INTEGER,
    cacheConfig INTEGER, registersPerThread INTEGER, gridX INTEGER, gridY INTEGER, gridZ INTEGER, blockX INTEGER,
    blockY INTEGER, blockZ INTEGER, staticSharedMemory INTEGER, dynamicSharedMemory INTEGER,
    localMemoryPerThread INTEGER, localMemoryTotal INTEGER, gridId INTEGER, sharedMemoryExecuted INTEGER,
    graphNodeId INTEGER, sharedMemoryLimitConfig INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (
    start INTEGER NOT NULL, "end" INTEGER NOT NULL, eventClass INTEGER NOT NULL, globalTid INTEGER,
    correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL, callchainId INTEGER);
CREATE TABLE NVTX_EVENTS (
    start INTEGER NOT NULL, "end" INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER, category INTEGER, color INTEGER,
    text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER, domainId INTEGER);
"""


if __name__ == "__main__":
    main()
