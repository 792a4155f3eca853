"""Profiles of a run: which loads can have one, where it goes, and what it says in the record of its cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cells import Load
from harness.device import Device
from harness.engine import EngineSpec
from harness.errors import HarnessError, UsageError
from harness.jsonfile import Node, load
from harness.kernels.agreement import FAILED
from harness.kernels.agreement import NAME as AGREE
from harness.kernels.taxonomy import Rule
from harness.names import safe_name
from harness.precision import EMULATED
from harness.profiler import ProfilerSpec
from harness.recording.records import OutputFolder, Record, write_json

if TYPE_CHECKING:
    from harness.kernels.analysis import Analysis
    from harness.kernels.ledger import Ledger

ANALYSIS = ".analysis.json"
TRACES = (".json", ".json.gz", ".sqlite")  # what is analysed; of an nsys-rep it is the sqlite beside it
MISSING = "not analysed: pip install 'moe-harness[profile]', then harness analyze it"


def problem(profiler: ProfilerSpec, engines: Iterable[EngineSpec], device: Device) -> str | None:
    """Why a profiler cannot see these engines here, in one line."""
    if found := profiler.problem(device):
        return found
    blind = [engine.name for engine in engines if profiler.needs and profiler.needs not in engine.capabilities]
    return f"{', '.join(blind)} lacks the capability {profiler.needs!r}" if blind else None


def with_profiles(
    load: Load, profiler: ProfilerSpec, folder: OutputFolder, keys: Iterable[str], device: Device
) -> Load:
    """The load with a path for each cell's profile. `keys`: of the cells' records."""
    setup = load.setup
    paths = []
    for cell, key in zip(load.cells, keys):
        name = safe_name(f"{setup.engine}_{setup.model}_{setup.config}_{setup.precision}_{cell.workload}_{key}")
        paths.append(folder.root / "traces" / name / safe_name(f"profile_{setup.precision}_{device.label}"))
    return replace(load, profiler=profiler.name, profiles=tuple(str(path.resolve()) for path in paths))


def added(record: Record, path: Path, profiler: str, rules: Sequence[Rule], root: Path) -> Record:
    """The record with what its profile says; the whole answer lies beside the trace. Where the kernels are not those
    of the label, the record is a mismatch. `path`: of the profile, without suffix; `root`: the output folder."""
    files = sorted(file for file in path.parent.iterdir() if not file.name.endswith(ANALYSIS))
    traces = [file for file in files if file.name.endswith(TRACES)]
    profile: dict[str, Any] = {"profiler": profiler, "files": [str(file.relative_to(root.resolve())) for file in files]}
    if not files:
        return {**record, "profile": {**profile, "problem": f"nothing was left in {path.parent}"}}
    if not traces:
        return {**record, "profile": profile}  # of a profiler whose files are its own affair
    try:
        found = _slowest_rank(traces, record, rules)
        answer = path.with_name(path.name + ANALYSIS)
        write_json(answer, found.to_json())
    except ImportError:
        return {**record, "profile": {**profile, "problem": MISSING}}
    except (HarnessError, OSError) as error:
        return {**record, "profile": {**profile, "problem": str(error)}}
    except Exception as error:  # of ours; the cells still to be measured must not pay for it
        return {**record, "profile": {**profile, "problem": f"not analysed: {type(error).__name__}: {error}"}}
    wrong = [check.reason for check in found.checks if check.name == AGREE and check.status == FAILED]
    is_mismatch = wrong and record["status"] == "ok"
    return {
        **record,
        **({"status": "mismatch", "reason": f"by its kernels: {wrong[0]}"} if is_mismatch else {}),
        "profile": {
            **profile,
            "analysis": str(answer.relative_to(root.resolve())),
            "valid": not found.problems,
            "problems": found.problems,
            "warnings": found.warnings,
            "phases": {one.phase: _phase(one) for one in (found.phases if found.ledger else ()) if one.steps},
        },
    }


def analysis_of(record: Node, path: Path) -> tuple[str, Node]:
    """The answer kept beside the trace of a record, and the record's name in sentences. `path`: of the record, which
    lies anywhere in its output folder. Raises UsageError when there is none, and HarnessError for emulated arithmetic,
    whose times mean nothing."""
    name = " ".join(str(record.at(key).text()) for key in ("engine", "precision"))
    kept = record.at("profile", "analysis").text()
    if kept is None:
        raise UsageError(
            f"{path}: its profile was not analysed: {record.at('profile', 'problem').text() or 'no trace'}"
        )
    if record.at("compute_mode").text() == EMULATED:
        raise HarnessError(f"{path}: {name} is emulated, so the time of its kernels is not that of {name.split()[-1]}")
    batch = record.at("batch_size").count()
    work = str(record.at("workload").text()) if batch is None else f"batch {batch}"
    for folder in path.resolve().parents:
        if (folder / kept).is_file():
            return f"{name} {work}", load(folder / kept)[1][0]
    raise UsageError(f"{path}: {kept} is in no folder above it: keep the record in its output folder")


def _slowest_rank(traces: Sequence[Path], record: Record, rules: Sequence[Rule]) -> Analysis:
    """Of one trace per rank that with the longest window: the others wait for it."""
    from harness.kernels.analysis import analyse

    found = [analyse(trace, rules, _given(record)) for trace in traces]
    return max(found, key=lambda one: (one.ledger is not None and one.ledger.window) or 0)


def _given(record: Record) -> Any:
    """What the record knows of the run that its trace shows."""
    from harness.kernels.validity import Given

    step_ms = {}
    if record.get("itl_ms"):
        step_ms["decode"] = record["itl_ms"]["p50"]
    if record.get("ttft_ms") and record["batch_size"] == 1:  # of many requests some may wait for others
        step_ms["prefill"] = record["ttft_ms"]["mean"]
    return Given(_expert_layers(record["effective"]), step_ms, record["precision"], record["compute_mode"])


def _expert_layers(facts: Mapping[str, Any]) -> int | None:
    """How many layers have experts, from ranges like "0-3, 5"; None where the engine does not say."""
    numbers: set[int] = set()
    for layer in facts.get("layers") or ():
        if layer.get("kind") == "experts" and layer.get("layers"):
            for part in layer["layers"].split(", "):
                first, _, last = part.partition("-")
                numbers.update(range(int(first), int(last or first) + 1))
    return len(numbers) or None


def _phase(ledger: Ledger) -> dict[str, Any]:
    """One step of a phase, in ms; shares of it in percent of its wall time."""
    from harness.kernels.analysis import ledger_json

    whole = ledger_json(ledger)
    steps = len(ledger.steps)
    kept = ("ms_per_step", "percent", "percent_of_window", "kernel_count")
    return {
        "steps": steps,
        "wall": whole["wall"],
        "ms_per_step": whole["steps"]["ms_per_step"],
        "idle_ms": None if ledger.idle is None else ledger.idle / steps / 1e6,
        "categories": {name: {key: share[key] for key in kept} for name, share in whole["categories"].items()},
        "max_speedup": whole["max_speedup"],
        "amdahl": whole["amdahl"],
    }
