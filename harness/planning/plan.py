"""From options to work: cells, grouped into loads that share one loaded model. Nothing is started here.

A cell that cannot be measured is decided here, with its reason, before any process exists.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import device, plugins
from harness import precision as modes
from harness.cells import AND, DEFAULT, NONE, Cell, Load, Setup
from harness.device import Device
from harness.engine import EngineSpec, applies, rung_problem, settled, support_of
from harness.errors import UsageError
from harness.model import models
from harness.names import check_known
from harness.planning import interpreters
from harness.planning.interpreters import Environment
from harness.planning.preflight import broken_rule
from harness.planning.schedule import Policy
from harness.precision import PRECISIONS, Support
from harness.profiler import ProfilerSpec
from harness.recording import profiling
from harness.workload import WorkloadSpec


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
    rungs: tuple[str, ...] = (DEFAULT,)  # each as Setup.rungs
    disable_fusion: bool = False
    skip_compile: bool = False
    trust_remote_code: bool = False
    timeout: float = 3600.0
    profiler: str | None = None
    launcher: str = "local"
    launcher_options: Mapping[str, str] = field(default_factory=dict)
    workers: int = 1  # loads at once
    policy: Policy = Policy()
    resume: bool = False  # cells that were measured before are left as they are
    device: Device | None = None  # to plan for another machine than this; never to run


@dataclass(frozen=True)
class Ground:
    """What a plan stands on: plugins, the device, and the environment of each engine it may use."""

    registry: plugins.Registry
    device: Device
    environments: Mapping[str, Environment]

    def version(self, engine: str) -> str | None:
        """Of the engine's own distribution."""
        return self.environments[engine].version


@dataclass
class Plan:
    """What will be done, and with what. Nothing has been started and nothing written."""

    ground: Ground
    cells: list[Cell]
    profiler: ProfilerSpec | None = None  # None: nothing is profiled

    def key(self, cell: Cell) -> str:
        return cell.key(self.ground.version(cell.setup.engine), self.ground.device)


def make_plan(options: Options, warn: Callable[[str], None]) -> Plan:
    """Checks every name and finds every interpreter. Raises UsageError before any worker exists."""
    ground = stand(options.engines, options)
    registry = ground.registry
    for environment in ground.environments.values():
        if environment.problem:
            raise UsageError(environment.problem)
    for name in itertools.chain(options.precisions, options.checkpoints):
        check_known("precision", name, PRECISIONS)
    workloads = [registry.workloads[check_known("workload", name, registry.workloads)] for name in options.workloads]
    for engine, rungs in itertools.product(options.engines, options.rungs):
        _check_rungs(registry.engines[engine], rungs, options.precisions)
    chosen_models = [models.resolve(text) for text in options.models]
    profiler = find_profiler(ground, options.profiler, options.engines, warn)
    cells = []
    for model in chosen_models:
        setups = [
            Setup(
                engine=engine,
                model=model.name,
                path=model.path,
                precision=precision,
                weights=options.weights,
                checkpoint=find_checkpoint(ground, warn, options.checkpoints.get(precision), model.path, precision),
                quantize=options.quantize,
                tp=tp,
                ep=ep,
                moe_backend=moe_backend,
                disable_fusion=options.disable_fusion,
                skip_compile=options.skip_compile,
                trust_remote_code=options.trust_remote_code,
                rungs=rungs,
            )
            for engine, tp, ep, moe_backend, rungs, precision in itertools.product(
                options.engines, options.tp, options.ep, options.moe_backends, options.rungs, options.precisions
            )
        ]
        for setup, workload in itertools.product(setups, workloads):
            axes = {name: values for name, values in options.parameters.items() if name in workload.parameters}
            for values in itertools.product(*axes.values()):
                cells.append(make_cell(ground, setup, workload, dict(zip(axes, values)), model.defaults))
    return Plan(ground, distinct(cells), profiler)


def stand(engines: Iterable[str], options: Options) -> Ground:
    """Raises UsageError for an engine, a launcher or an interpreter that is not there."""
    registry = plugins.discover()
    chosen = [registry.engines[check_known("engine", name, registry.engines)] for name in engines]
    for name in options.pythons:
        check_known("engine", name, registry.engines)
    launcher = registry.launchers[check_known("launcher", options.launcher, registry.launchers)]
    environments = {engine.name: interpreters.look(engine, options.pythons) for engine in chosen}
    if options.device:  # what would be there: its engines, too
        there = {name: replace(environment, problem=None) for name, environment in environments.items()}
        return Ground(registry, options.device, there)
    here = launcher.device(options.launcher_options) if launcher.device else device.detect()
    if here.kind == "cpu" and launcher.device is None:
        here = replace(here, count=max(here.count // options.workers, 1))  # workers share the cores out
    return Ground(registry, here, environments)


def make_cell(
    ground: Ground,
    setup: Setup,
    workload: WorkloadSpec,
    given: Mapping[str, Any],
    model_defaults: Mapping[str, Mapping[str, Any]],
) -> Cell:
    """`given` holds what the user said; a parameter not said takes the model's default, then the workload's. Rungs are
    settled. Raises UsageError for a rung that the engine has not."""
    engine = ground.registry.engines[setup.engine]
    setup = replace(setup, rungs=settled_rungs(engine, setup.rungs, setup.precision))
    support = support_of(engine, setup.precision, ground.device, ground.version(setup.engine), setup.rungs)
    parameters = {**workload.parameters, **model_defaults.get(workload.name, {})}
    parameters |= {name: value for name, value in given.items() if name in parameters}
    skip = _skip_reason(ground, setup, workload, parameters, support)
    own = tuple(rung.name for rung in engine.rungs if rung.precisions and rung.name in (setup.rung_names or ()))
    return Cell(setup, workload.name, parameters, support, skip, own)


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """Each once: two may differ in what their workload does not read, or in rungs that come to the same set."""
    return list({(cell.setup, cell.workload, str(cell.parameters)): cell for cell in cells}.values())


def _check_rungs(engine: EngineSpec, said: str, precisions: Iterable[str]) -> None:
    """A rung is left out of precisions that it is not for; one that is for none of those asked for was asked in vain."""
    for name in () if said in (DEFAULT, NONE) or not engine.rungs else map(str.strip, said.split(AND)):
        if not any(applies(engine, name, precision) for precision in precisions):
            raise UsageError(
                f"rung {name} of {engine.name} is not for {', '.join(precisions)}; "
                f"harness list rungs --engine {engine.name} says what for"
            )


def settled_rungs(engine: EngineSpec, said: str, precision: str) -> str:
    """One word for one set of rungs, whatever their order was: with what they need, without what one of them replaces
    and what is for other precisions only. Raises UsageError."""
    if said in (DEFAULT, NONE) or not engine.rungs:
        return said
    found = settled(engine, (name.strip() for name in said.split(AND)))
    return AND.join(name for name in found if applies(engine, name, precision)) or NONE


def find_profiler(
    ground: Ground, name: str | None, engines: Iterable[str], warn: Callable[[str], None]
) -> ProfilerSpec | None:
    """None, with a warning, where it cannot see these engines here."""
    if not name:
        return None
    registry = ground.registry
    profiler = registry.profilers[check_known("profiler", name, registry.profilers)]
    why_not = profiling.problem(profiler, [registry.engines[engine] for engine in engines], ground.device)
    if why_not:
        warn(f"nothing is profiled: {why_not}")
    return None if why_not else profiler


def find_checkpoint(
    ground: Ground, warn: Callable[[str], None], given: str | None, model: str, precision: str
) -> str | None:
    """The one given, as an absolute folder or a hub id; else what a plugin knows of. `model`: a folder or hub id."""
    if given is not None:
        is_folder = given.startswith((".", "~", "/")) or os.path.exists(given)
        return str(Path(given).expanduser().resolve()) if is_folder else given
    hook = "harness_resolve_checkpoint"
    for plugin, answer in plugins.ask(ground.registry, warn, hook, model=model, precision=precision):
        if isinstance(answer, str):
            return answer
        if answer is not None:
            warn(f"plugin {plugin}: {hook} must return a folder, a hub id or None, got {answer!r}")
    return None


def make_loads(cells: Iterable[Cell]) -> list[Load]:
    """Cells to attempt, grouped by setup, in the order given."""
    groups: dict[Setup, list[Cell]] = {}
    for cell in cells:
        if cell.skip is None:
            groups.setdefault(cell.setup, []).append(cell)
    return [Load(setup, tuple(group), group[0].support.mode) for setup, group in groups.items()]


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


def _skip_reason(
    ground: Ground, setup: Setup, workload: WorkloadSpec, parameters: Mapping[str, Any], support: Support
) -> str | None:
    engine, here = ground.registry.engines[setup.engine], ground.device
    if problem := ground.environments[engine.name].problem:
        return problem
    if support.mode == modes.UNSUPPORTED:
        return support.reason
    if workload.needs not in engine.capabilities:
        return f"{engine.name} lacks the capability {workload.needs!r}, which {workload.name} needs"
    if workload.measures == "speed" and support.mode == modes.EMULATED:
        return f"emulated on {here.label}: its accuracy is that of {setup.precision}, its speed would mean nothing"
    if setup.rungs != DEFAULT:
        if not engine.rungs:
            return f"{engine.name} has no rungs (asked for {setup.rungs})"
        if problem := rung_problem(engine, setup.rung_names, setup.precision, here, setup.tp):
            return problem
    if workload.measures == "accuracy" and setup.weights == "dummy":
        return "dummy weights have no accuracy"
    for option, value, default in (
        ("tp", setup.tp, 1),
        ("ep", setup.ep, 1),
        ("moe_backend", setup.moe_backend, "auto"),
        ("disable_fusion", setup.disable_fusion, False),
        ("skip_compile", setup.skip_compile, False),
    ):
        if value != default and option not in engine.options:
            return f"{engine.name} has no --{option.replace('_', '-')} (asked for {value})"
    if max(setup.tp, setup.ep) > here.count and here.kind == "cuda":
        return f"needs {max(setup.tp, setup.ep)} GPUs, {here.count} here"
    return broken_rule(setup, parameters, support.mode, here)
