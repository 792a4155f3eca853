"""One run, from options to records: plan, token ids, one worker after another, records and ledger."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import device, inputs, interpreters, launcher, ledger, models, plugins, profiling, records, roofline
from harness.cells import Cell, InputFile, Load, Setup
from harness.engine import EngineSpec
from harness.errors import HarnessError, UsageError
from harness.interpreters import Environment
from harness.launcher import OnEvent
from harness.names import check_known
from harness.plan import make_cells, make_loads
from harness.precision import PRECISIONS
from harness.profiler import ProfilerSpec
from harness.records import OutputFolder, Record
from harness.weights import config_of


@dataclass(frozen=True)
class Options:
    """What was asked. Lists are axes: every combination is a cell."""

    engines: tuple[str, ...] = ("hf",)
    models: tuple[str, ...] = (models.DEFAULT,)
    precisions: tuple[str, ...] = ("bf16", "fp8", "nvfp4")
    workloads: tuple[str, ...] = ("perf", "ppl")
    parameters: dict[str, tuple[Any, ...]] = field(default_factory=dict)  # only those the user gave
    checkpoints: dict[str, str] = field(default_factory=dict)  # precision -> folder or hub id
    pythons: dict[str, str] = field(default_factory=dict)  # engine -> interpreter
    output_dir: Path = Path("benchmark_results")
    weights: str = "real"
    quantize: str = "experts"
    tp: tuple[int, ...] = (1,)
    ep: tuple[int, ...] = (1,)
    moe_backends: tuple[str, ...] = ("auto",)
    disable_fusion: bool = False
    trust_remote_code: bool = False
    timeout: float = 3600.0
    profiler: str | None = None


@dataclass
class Plan:
    """What will be done, and with what. Nothing has been started and nothing written."""

    registry: plugins.Registry
    device: device.Device
    cells: list[Cell]
    pythons: dict[str, str]
    versions: dict[str, str | None]  # engine -> version of the engine's own distribution
    profiler: ProfilerSpec | None = None  # None: nothing is profiled

    def key(self, cell: Cell) -> str:
        return cell.key(self.versions[cell.setup.engine], self.device)


@dataclass
class Result:
    records: list[Record]
    problems: list[str]  # what could not be kept, in words
    was_interrupted: bool = False

    @property
    def exit_code(self) -> int:
        if self.was_interrupted:
            return 130
        return 1 if self.problems or any(record["status"] == "failed" for record in self.records) else 0


def make_plan(options: Options, warn: Callable[[str], None]) -> Plan:
    """Checks every name and finds every interpreter. Raises UsageError before any worker exists."""
    registry = plugins.discover()
    engines = [_engine(registry, name) for name in options.engines]
    for name in itertools.chain(options.precisions, options.checkpoints):
        check_known("precision", name, PRECISIONS)
    workloads = [registry.workloads[check_known("workload", name, registry.workloads)] for name in options.workloads]
    profiler = options.profiler and registry.profilers[check_known("profiler", options.profiler, registry.profilers)]
    for name in options.pythons:
        check_known("engine", name, registry.engines)
    chosen_models = [models.resolve(text) for text in options.models]
    environments = {engine.name: _environment(engine, options.pythons) for engine in engines}
    versions = {name: environment.version for name, environment in environments.items()}
    here = device.detect()
    if profiler and (why_not := profiling.problem(profiler, engines, here)):
        warn(f"nothing is profiled: {why_not}")
        profiler = None
    cells = []
    for model in chosen_models:
        setups = [
            Setup(
                engine=engine,
                model=model.name,
                path=model.path,
                precision=precision,
                weights=options.weights,
                checkpoint=_checkpoint(registry, warn, options, model, precision),
                quantize=options.quantize,
                tp=tp,
                ep=ep,
                moe_backend=moe_backend,
                disable_fusion=options.disable_fusion,
                trust_remote_code=options.trust_remote_code,
            )
            for engine, tp, ep, moe_backend, precision in itertools.product(
                options.engines, options.tp, options.ep, options.moe_backends, options.precisions
            )
        ]
        cells += make_cells(setups, workloads, options.parameters, model.defaults, registry.engines, versions, here)
    pythons = {name: environment.python for name, environment in environments.items()}
    return Plan(registry, here, cells, pythons, versions, profiler)


def execute(plan: Plan, options: Options, on_event: OnEvent, warn: Callable[[str], None]) -> Result:
    """Measures every cell of the plan. After Ctrl-C what was finished is kept and no worker is left."""
    folder = OutputFolder(options.output_dir)
    result = Result([], [])
    kept: dict[str, Record] = {}
    profiled: list[tuple[Cell, Path]] = []  # and the path of the profile, without suffix

    def keep(cell: Cell, record: Record) -> None:
        kept[plan.key(cell)] = record
        try:
            folder.write(record)
        except OSError as error:
            result.problems.append(f"record of {_words(cell)} not written: {error}")

    def tell(cell: Cell) -> None:
        _notify(plan.registry, warn, "harness_cell_finished", record=kept[plan.key(cell)])

    def heard(load: Load, event: dict[str, Any]) -> None:
        if event["event"] == "profiled":
            profiled.append((load.cells[event["cell"]], Path(load.profiles[event["cell"]])))
        if event["event"] == "profile_failed":
            result.problems.append(f"no profile of {_words(load.cells[event['cell']])}: {event['message']}")
        on_event(load, event)

    under_way: Load | None = None
    try:
        for cell in plan.cells:
            if cell.skip:
                keep(cell, records.make(cell, None, plan.versions[cell.setup.engine], plan.device))
                tell(cell)
        files = _prepare_inputs(plan, folder)
        for under_way in make_loads(plan.cells):
            load = replace(under_way, inputs=tuple(files[id(cell)] for cell in under_way.cells))
            name = f"{load.setup.engine}_{load.setup.model}_{load.setup.config}_{load.setup.precision}_{plan.key(load.cells[0])}"
            if plan.profiler:
                load = profiling.with_profiles(load, plan.profiler, folder, map(plan.key, load.cells), plan.device)
            _notify(plan.registry, warn, "harness_load_started", load=load)
            log = folder.log(name)
            log.unlink(missing_ok=True)
            how = (plan.pythons[load.setup.engine], log, options.timeout, heard)
            for cell, outcome in launcher.run_load(load, *how):
                record = records.make(cell, outcome, plan.versions[cell.setup.engine], plan.device)
                keep(cell, {**record, **_roofline(record, load)})
                if not plan.profiler:
                    tell(cell)
            if plan.profiler:
                for cell in _to_profile_apart(plan, load, kept):
                    if failure := launcher.run_profiler(load.only([cell]), *how):
                        result.problems.append(f"no profile of {_words(cell)}: {failure}")
                for cell, path in profiled:
                    record = kept[plan.key(cell)]
                    keep(cell, profiling.added(record, path, plan.profiler.name, plan.registry.rules, folder.root))
                profiled.clear()
                for cell in load.cells:
                    tell(cell)
    except KeyboardInterrupt:
        result.was_interrupted = True
        for cell in under_way.cells if under_way else ():
            is_new = plan.key(cell) not in kept
            if is_new:
                keep(cell, records.interrupted(cell, plan.versions[cell.setup.engine], plan.device))
            if is_new or plan.profiler:
                tell(cell)
    try:
        ledger.rebuild(folder)
    except OSError as error:
        result.problems.append(f"ledger not written: {error}")
    result.records = [kept[key] for key in dict.fromkeys(map(plan.key, plan.cells)) if key in kept]
    return result


def _to_profile_apart(plan: Plan, load: Load, kept: Mapping[str, Record]) -> list[Cell]:
    """Measured cells whose profiler starts a worker of its own."""
    return [
        cell
        for cell in load.cells
        if plan.profiler.command
        and plan.registry.workloads[cell.workload].run_once
        and kept[plan.key(cell)]["status"] in ("ok", "mismatch")
    ]


def _roofline(record: Record, load: Load) -> dict[str, Any]:
    """How near the hardware's limit it came, where speed was measured on a GPU."""
    if record["workload"] != "perf" or record["status"] not in ("ok", "mismatch") or not record["gpu_name"]:
        return {}
    return {"roofline": roofline.of_record(record, config_of(load.setup.source))}


def _words(cell: Cell) -> str:
    return f"{cell.setup.engine} {cell.setup.precision} {cell.workload}"


def _engine(registry: plugins.Registry, name: str) -> EngineSpec:
    return registry.engines[check_known("engine", name, registry.engines)]


def _environment(engine: EngineSpec, chosen: Mapping[str, str]) -> Environment:
    environment = interpreters.look(engine, chosen)
    if environment.problem:
        raise UsageError(environment.problem)
    return environment


def _checkpoint(
    registry: plugins.Registry, warn: Callable[[str], None], options: Options, model: models.Model, precision: str
) -> str | None:
    given = options.checkpoints.get(precision)
    if given is None:
        for plugin, answer in plugins.ask(
            registry, warn, "harness_resolve_checkpoint", model=model.path, precision=precision
        ):
            if isinstance(answer, str):
                return answer
            if answer is not None:
                warn(
                    f"plugin {plugin}: harness_resolve_checkpoint must return a folder, a hub id or None, got {answer!r}"
                )
        return None
    is_folder = given.startswith((".", "~", "/")) or os.path.exists(given)
    return str(Path(given).expanduser().resolve()) if is_folder else given


def _prepare_inputs(plan: Plan, folder: OutputFolder) -> dict[int, InputFile]:
    """Token ids of every cell to attempt, by identity of the cell; equal requests are made once."""
    made: dict[inputs.Request, InputFile] = {}
    files = {}
    for cell in plan.cells:
        if cell.skip:
            continue
        request = inputs.request_for(plan.registry.workloads[cell.workload].inputs, cell.setup.path, cell.parameters)
        if request not in made:
            made[request] = _prepare(request, folder, plan.pythons[cell.setup.engine])
        files[id(cell)] = made[request]
    return files


def _prepare(request: inputs.Request, folder: OutputFolder, python: str) -> InputFile:
    try:
        path = inputs.prepare(request, (folder.root / "inputs").resolve(), python)
        return InputFile(str(path), longest=max(map(len, inputs.read(path).ids)))
    except UsageError:
        raise
    except (HarnessError, OSError) as error:  # a model that cannot be read, or no room
        return InputFile(None, str(error))


def _notify(registry: plugins.Registry, warn: Callable[[str], None], hook: str, **content: Any) -> None:
    for _ in plugins.ask(registry, warn, hook, **content):
        pass


def parse_pairs(option: str, pairs: Sequence[str]) -> Mapping[str, str]:
    """`NAME=VALUE` options as a mapping. Raises UsageError for a missing `=` or two values."""
    found: dict[str, str] = {}
    for pair in pairs:
        if not all(pair.partition("=")):
            raise UsageError(f"{option} {pair}: expected NAME=VALUE")
        name, value = pair.split("=", 1)
        if found.setdefault(name, value) != value:
            raise UsageError(f"{option}: two values for {name}, {found[name]} and {value}; one run takes one of them")
    return found
