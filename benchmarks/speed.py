"""Eager, ladder top, FP8, vLLM, scoring and start side by side on one GPU: targets in one table, by one call.

    python benchmarks/speed.py --model FOLDER_WITH_CONFIG_JSON --output speed
    python benchmarks/speed.py --output speed --hf-best default --hf-scoring default --batch-size 1 --scored 4x128 # CPU

Random weights. Every figure is of a process of its own and of a record that is `ok`: of `harness run`, or for scoring
of a child that loads an engine through its public interface. What fails costs its own rows only. speed.json and
speed.md are written anew after every process; logs and records lie in `runs` beside them.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from harness import BadOutput, Cell, Load, Setup, Support, device, failures
from harness.launcher import Outcome
from harness.model import models
from harness.planning.interpreters import python_for, versions
from harness.planning.plan import settled_rungs
from harness.plugins import discover
from harness.precision import NATIVE
from harness.recording import records
from harness.serde import to_json
from harness.working import inputs
from harness.working.telemetry import IDLE, sampling

SAFE = {"PYTHONSAFEPATH": "1"}  # names of files beside this one are not those of modules
RUN = ("-m", "harness", "run", "--workload", "perf", "--weights", "dummy", "--json")
JUDGED = "H200"  # the targets are for it
EAGER_OUT, EAGER_TIMED = 32, 2  # a token takes 165 ms
WARM, TIMED = 1, 5  # passes of scoring; a round has as many warm-ups
COLUMNS = ("demand", "measured", "ratio or value", "target", "verdict")
OPTIONS = {
    "model": models.DEFAULT,
    "only": "perf,scoring,start",  # in this order
    "vllm": "bf16,fp8",  # the precisions to put beside it; "": no vLLM
    "hf-best": "sdpa+grouped_experts+static_cache+cuda_graphs+fused_step",  # in FP8 with fp8
    "hf-scoring": "sdpa+grouped_experts+compiled_scoring",
    **{"batch-size": "1,16,64", "input-len": 512, "output-len": 256, "num-iterations": 4, "rounds": 2},
    **{"scored": "8x2048", "timeout": 420},  # sequences x tokens; seconds of one process
}


@dataclass(frozen=True)
class Run:
    """One figure of one process."""

    what: str  # "ITL", ms; "scoring", tokens/s; "start", s
    contestant: str
    round: int
    batch: int
    value: float | str  # or why there is none
    sm_clock_mhz: float | None = None  # median while the SMs had work; of scoring and start, loading included
    throttled: str | None = None
    rungs: str | None = None  # that the engine proved


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    for name, default in OPTIONS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"[{default}]")
    options = parser.parse_args()
    options.batches = sorted({1, *map(int, options.batch_size.split(","))})
    parts = [{"perf": perf, "scoring": scoring, "start": start}[name] for name in options.only.split(",")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no child outlives this
    requires = {name: discover().engines[name].requires[-1] for name in ["hf", *["vllm"] * bool(options.vllm)]}
    there = {name: versions(python_for(name, {}), ("torch", "triton", requires[name])) for name in requires}
    about = {"date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "device": to_json(device.detect())}
    about |= {"versions": there, "options": {name: str(value) for name, value in vars(options).items()}}
    runs: list[Run] = []
    for found in (found for part in parts for found in part(options)):
        runs += found
        text = save(options, about, runs)
    print(text)


def perf(options: Namespace) -> Iterator[list[Run]]:
    """Eager once and short, then the others in turn. Who had no figure at all is not tried again."""
    short = {"output-len": min(EAGER_OUT, options.output_len), "num-iterations": EAGER_TIMED, "warmup-iterations": 1}
    yield harness_run(options, ("hf", "bf16", "none"), ("ITL", "hf eager", 0), [1], short)
    fp8 = options.hf_best if options.hf_best in ("default", "none") else f"{options.hf_best}+fp8"
    vllm = [("vllm", precision, "default") for precision in options.vllm.split(",") if precision]
    left = [("hf", "bf16", options.hf_best), ("hf", "fp8", fp8), *vllm]
    for turn in range(options.rounds):
        for who in left[:: -1 if turn % 2 else 1]:
            found = harness_run(options, who, ("ITL", f"{who[0]} {who[1]}", turn), options.batches, {})
            if all(isinstance(run.value, str) for run in found):
                left.remove(who)
            yield found


def scoring(options: Namespace) -> Iterator[list[Run]]:
    left = [("hf best", "hf", options.hf_scoring), ("hf default", "hf", "default")]
    for name, engine, rungs in left + [("vllm", "vllm", "default")] * bool(options.vllm):
        folder = options.output.resolve() / "runs" / f"scoring-{name.replace(' ', '-')}"
        command = [python_for(engine, {}), __file__, "--score", engine, options.model, rungs, options.scored, folder]
        with sampling() as seen:
            _, end, found = child(command, folder, options.timeout)
        record = found[0] if found else None
        yield [run_of(record, end, ("scoring", name, 0, 1), lambda _: record["tokens_per_s"], seen.summary())]


def start(options: Namespace) -> Iterator[list[Run]]:
    """From the start of the command until its record stands, which proves its rungs: one iteration after one warm-up,
    compile caches empty and then filled."""
    who, once = ("hf", "bf16", options.hf_best), {"num-iterations": 1, "warmup-iterations": 1}
    with tempfile.TemporaryDirectory() as caches:
        env = {f"{name}_CACHE_DIR": f"{caches}/{name.lower()}" for name in ("TORCHINDUCTOR", "TRITON")}
        for turn, name in enumerate(("empty", "filled")):
            yield harness_run(options, who, ("start", name, turn), [1], once, env)


def harness_run(options: Namespace, who: tuple, which: tuple, batches: list, given: dict, env: dict = {}) -> list[Run]:
    """A figure per batch size. `who`: engine, precision, rungs. `which`: as Run begins."""
    folder = options.output / "runs" / "-".join(map(str, which)).replace(" ", "-")
    said = dict(zip(("engine", "precision", "rungs"), who), model=options.model, **{"output-dir": folder})
    said |= {"batch-size": ",".join(map(str, batches)), "input-len": options.input_len, "warmup-iterations": WARM}
    said |= {"output-len": options.output_len, "num-iterations": options.num_iterations, **given}
    pairs = [word for option, value in said.items() for word in (f"--{option}", str(value))]
    seconds, end, found = child([sys.executable, *RUN, *pairs], folder, options.timeout, env)
    value = (lambda _: seconds) if which[0] == "start" else (lambda record: (record["itl_ms"] or {}).get("p50"))
    by_batch = {record["batch_size"]: record for record in found}
    return [run_of(by_batch.get(batch), end, (*which, batch), value) for batch in batches]


def child(command: list[str], folder: Path, timeout: float, env: dict = {}) -> tuple[float, str, list[dict]]:
    """Seconds until its first record stood, how it ended in words, and all the records it left in `folder`, which is
    emptied before."""
    print(f"{time.strftime('%H:%M:%S')} {folder.name}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.time()
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
        process = subprocess.Popen(command, **streams, env={**os.environ, **SAFE, **env}, start_new_session=True)
        try:
            end = f"exit status {process.wait(timeout)}"
        except subprocess.TimeoutExpired:
            end = f"not done after {timeout:g} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    why = ": ".join([end, *failures.tail(folder / "stderr").splitlines()[-1:]])
    stood = [file.stat().st_mtime - started for file in (folder / "records").glob("*.json")]
    return min(stood, default=math.nan), why, list(records.read_folder(folder))


def run_of(record: dict | None, end: str, which: tuple, value: Callable, seen: dict | None = None) -> Run:
    """`which`: the first fields of Run. `seen`: telemetry, where the record has none."""
    if record and record["status"] == "ok" and value(record) is not None:
        gpu = ((seen or record["rounds"][-1]["telemetry"] or {}).get("gpus") or [{}])[0]
        reasons = [f"{name} {share:.0%}" for name, share in (gpu.get("throttle_reasons") or {}).items() if name != IDLE]
        clock, rungs = (gpu.get("sm_clock_mhz") or {}).get("median"), record["effective"].get("rungs_in_force") or ()
        return Run(*which, value(record), clock, (", ".join(reasons) or "never") if gpu else None, "+".join(rungs))
    if record:
        failure = record["failure"] or {"class": record["status"], "message": record["reason"] or "it has no such time"}
        end = f"{failure['class']}: {failure['message']}"
    return Run(*which, "not measured: " + " ".join(end.split())[:300])


def score(engine_name: str, model_name: str, wanted: str, scored: str, folder: str) -> None:
    """In a child: writes a record of the median pass, which says of itself whether what was asked for is what ran."""
    model, engine = models.resolve(model_name), discover().engines[engine_name]
    rungs = settled_rungs(engine, wanted, "bf16")
    setup = Setup(engine_name, model.name, model.path, "bf16", weights="dummy", rungs=rungs)
    count, length = map(int, scored.split("x"))
    cell = Cell(setup, "scoring", {"batch_size": count, "input_len": length}, Support(NATIVE))
    session = engine.load(Load(setup, (cell,), NATIVE))
    ids = inputs.make(inputs.Request(model.path, "prompts", count, length)).ids
    seconds = []
    for _ in range(WARM + TIMED):
        started = time.perf_counter()
        found = [list(row) for row in session.score(ids)]
        seconds.append(time.perf_counter() - started)
        if list(map(len, found)) != [length - 1] * count or not math.isfinite(sum(map(sum, found))):
            raise BadOutput("not a finite log-probability for every token but the first")
    results = {"tokens_per_s": count * length / median(seconds[WARM:]), "pass_seconds": seconds}
    outcome = Outcome(facts=session.facts(), results=results)
    records.write_json(Path(folder, "records", "scoring.json"), records.make(cell, outcome, None, device.detect()))
    os._exit(0)  # an engine's exit handlers may hang; the parent ends what is left


def demands(options: Namespace, runs: list[Run]) -> Iterator[tuple]:
    """What is asked, all figures, the one or the two whose ratio is judged, format, sign ("": not judged), limit."""

    def of(what: str, name: str, batch: int = 1) -> float | str:
        found = [run.value for run in runs if (run.what, run.contestant, run.batch) == (what, name, batch)]
        values = [value for value in found if not isinstance(value, str)]
        return median(values) if values else (found or ["not measured: not run"])[0]

    if "perf" in options.only:
        best, eager, vllm = of("ITL", "hf bf16"), of("ITL", "hf eager"), of("ITL", "vllm bf16")
        shown = {f"eager ({min(EAGER_OUT, options.output_len)} out, {EAGER_TIMED} iterations)": eager, "top": best}
        yield "ITL ms, batch 1: hf eager / ladder top", shown, (eager, best), "{:.1f} x", ">=", 40
        yield "ITL ms, batch 1: hf BF16 / vLLM BF16", {"hf": best, "vllm": vllm}, (best, vllm), "{:.3f}", "<=", 1
        yield "ITL ms, batch 1: hf BF16", {"hf": best}, (best,), "{:.2f} ms", "<=", 2.9
        for engine, batch in [(e, b) for b in options.batches for e in ["hf", *["vllm"] * bool(options.vllm)]]:
            shown = {name: of("ITL", f"{engine} {name}", batch) for name in ("bf16", "fp8")}
            sign = ">" if engine == "hf" else ""
            yield f"ITL ms, batch {batch}: {engine} BF16 / FP8", shown, tuple(shown.values()), "{:.2f} x", sign, 1
    if "scoring" in options.only:
        shown = {name: of("scoring", name) for name in ("hf best", "hf default", "vllm")}
        yield f"scoring {options.scored}, BF16, tokens/s", shown, (shown["hf best"],), "{:,.0f}", ">=", 65_000
    for name, limit in {"empty": 60, "filled": 20}.items() if "start" in options.only else ():
        shown = {"hf BF16": of("start", name)}
        yield f"start to first measurement, caches {name}, s", shown, (*shown.values(),), "{:.1f} s", "<=", limit


def row(what: str, shown: dict, judged: tuple, form: str, sign: str, limit: float, is_judged: bool) -> list[str]:
    figures = "; ".join(f"{name} {words(one)}" for name, one in shown.items())
    target = f"{sign} {form.format(limit)}" if sign else ""
    if any(isinstance(figure, str) for figure in judged):
        return [what, figures, "", target, "not measured"]
    value = judged[0] / (*judged, 1)[1]
    holds = {">=": value >= limit, "<=": value <= limit, ">": value > limit, "": None}[sign]
    return [what, figures, form.format(value), target, ("met" if holds else "missed") if sign and is_judged else "-"]


def save(options: Namespace, about: dict, runs: list[Run]) -> str:
    """Both files; returns what is printed."""
    here = about["device"]
    rows = [COLUMNS, *(row(*demand, JUDGED in here["name"]) for demand in demands(options, runs))]
    records.write_json(options.output / "speed.json", {**about, "rows": rows, "runs": to_json(runs)})
    lines = [
        f"{about['date']}, {here['name']}, driver {here['driver']}, power limit {here['power_limit_w']} W",
        f"{about['versions']}, Python {sys.version.split()[0]}",
        f"{options.model}, random weights, {options.input_len} in, {options.output_len} out; rounds: {options.rounds}; "
        f"medians of {options.num_iterations} iterations, {TIMED} scoring passes\n",
        *grid(rows),
        "" if JUDGED in here["name"] else f"\nNothing is judged: the targets are for an {JUDGED}.\n",
        *grid([list(Run.__annotations__), *(vars(run).values() for run in runs)]),
    ]
    records.write_text(options.output / "speed.md", text := "\n".join([*lines, ""]))
    return text


def grid(rows: list) -> list[str]:  # the first holds the names
    lines = [f"| {' | '.join(words(cell).replace('|', '/') for cell in row)} |" for row in rows]
    return [lines[0], "| --- " * len(rows[0]) + "|", *lines[1:]]


def words(value: object) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    score(*sys.argv[2:]) if sys.argv[1:2] == ["--score"] else main()
