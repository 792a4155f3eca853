"""Finds plugins and what they register. One broken plugin is named and left out; the others never notice.

pluggy's own entry-point loader is not used: it drops the second of two equal names in silence and lets one
exception during import end the program.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

import pluggy

from harness import hookspecs
from harness.engine import EngineSpec
from harness.evaluation.flops import KernelFlopProvider
from harness.kernels.taxonomy import KernelRules, Rule
from harness.launcher import LauncherSpec
from harness.profiler import ProfilerSpec
from harness.workload import WorkloadSpec

BUILTIN = (
    *(f"harness.workloads.{name}" for name in ("perf", "ppl", "kl", "baseline", "validate", "generate", "evaluate")),
    "harness.evaluation.hlo",
    "harness.evaluation.traced",
    *(f"harness.profilers.{name}" for name in ("torch", "nsys")),
    "harness.launchers.local",
)
KINDS = {
    "engines": EngineSpec,
    "workloads": WorkloadSpec,
    "profilers": ProfilerSpec,
    "launchers": LauncherSpec,
    "kernel_rules": KernelRules,
    "kernel_flop_providers": KernelFlopProvider,
}


@dataclass(frozen=True)
class Plugin:
    """A row of `harness list plugins`."""

    name: str
    source: str  # module, and the distribution it came from
    provides: tuple[str, ...] = ()
    problem: str | None = None  # why it, or a part of it, was left out


@dataclass
class Registry:
    """Everything found, by name."""

    hook: Any  # pluggy's caller, for the notifications and harness_resolve_checkpoint
    engines: dict[str, EngineSpec] = field(default_factory=dict)
    workloads: dict[str, WorkloadSpec] = field(default_factory=dict)
    profilers: dict[str, ProfilerSpec] = field(default_factory=dict)
    launchers: dict[str, LauncherSpec] = field(default_factory=dict)
    kernel_rules: dict[str, KernelRules] = field(default_factory=dict)
    kernel_flop_providers: dict[str, KernelFlopProvider] = field(default_factory=dict)
    plugins: list[Plugin] = field(default_factory=list)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Of kernels, those that plugins added."""
        return tuple(rule for added in self.kernel_rules.values() for rule in added.rules)

    @property
    def problems(self) -> list[str]:
        return [
            f"plugin {plugin.name} ({plugin.source}): {plugin.problem}" for plugin in self.plugins if plugin.problem
        ]


@cache
def discover() -> Registry:
    """Loads every plugin once per process."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    registry = Registry(hook=manager.hook)
    for name in BUILTIN:
        _add(registry, manager, name.rpartition(".")[2], "built in", lambda name=name: importlib.import_module(name))
    seen: dict[str, str] = {}
    for point in sorted(
        metadata.entry_points(group=hookspecs.PROJECT), key=lambda point: (not _is_ours(point), point.name)
    ):
        distribution = point.dist.metadata["Name"] if point.dist else "unknown distribution"
        source = f"{point.value} of {distribution}"
        if point.name in seen:
            problem = f"left out: the plugin name {point.name!r} is taken by {seen[point.name]}"
            registry.plugins.append(Plugin(point.name, source, problem=problem))
            continue
        seen[point.name] = source
        _add(registry, manager, point.name, source, point.load)
    return registry


def _is_ours(point: metadata.EntryPoint) -> bool:
    """Ours come first: nobody takes the name of an engine that the harness brings."""
    return point.dist is not None and point.dist.metadata["Name"] == "moe-harness"


def ask(registry: Registry, warn: Callable[[str], None], hook: str, **content: Any) -> Iterator[Any]:
    """Each plugin's own answer to a hook. One that raises costs a warning that names it; the others are asked all the same."""
    for implementation in reversed(getattr(registry.hook, hook).get_hookimpls()):
        try:
            yield (
                implementation.plugin_name,
                implementation.function(**{name: content[name] for name in implementation.argnames}),
            )
        except (Exception, SystemExit) as error:
            name, _, source = implementation.plugin_name.partition("|")
            warn(f"plugin {name} ({source}) failed in {hook}: {type(error).__name__}: {error}")


def _add(registry: Registry, manager: pluggy.PluginManager, name: str, source: str, load: Callable[[], Any]) -> None:
    """All of a plugin or nothing of it: half a plugin would be a puzzle."""
    try:
        plugin = load()
        manager.register(plugin, name=f"{name}|{source}")
        found = {kind: _registered(manager, plugin, f"harness_register_{kind}") for kind in KINDS}
        for kind, specs in found.items():
            _check(specs, kind, taken=getattr(registry, kind))
    except BaseException as error:  # a plugin may even call sys.exit at import; only Ctrl-C is ours
        if isinstance(error, KeyboardInterrupt):
            raise
        if manager.has_plugin(f"{name}|{source}"):
            manager.unregister(name=f"{name}|{source}")
        problem = f"left out: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        registry.plugins.append(Plugin(name, source, problem=problem))
        return
    for kind, specs in found.items():
        getattr(registry, kind).update({spec.name: spec for spec in specs})
    provides = tuple(f"{_one(kind)} {spec.name}" for kind, specs in found.items() for spec in specs)
    registry.plugins.append(Plugin(name, source, provides))


def _registered(manager: pluggy.PluginManager, plugin: Any, hook: str) -> list[Any]:
    others = [other for other in manager.get_plugins() if other is not plugin]
    answers = manager.subset_hook_caller(hook, others)()
    for answer in answers:
        if isinstance(answer, (str, bytes)) or not isinstance(answer, Iterable):
            raise TypeError(f"{hook} must return a list of specs, got {type(answer).__name__}")
    return [spec for answer in answers for spec in answer]


def _check(specs: list[Any], kind: str, taken: Mapping[str, Any]) -> None:
    names = set(taken)
    for spec in specs:
        if not isinstance(spec, KINDS[kind]):
            raise TypeError(f"harness_register_{kind}: expected {KINDS[kind].__name__}, got {type(spec).__name__}")
        if not isinstance(spec.name, str) or not spec.name:
            raise TypeError(f"harness_register_{kind}: a name must be a word, got {spec.name!r}")
        if spec.name in names:
            raise ValueError(f"the {_one(kind)} name {spec.name!r} is already taken")
        names.add(spec.name)


def _one(kind: str) -> str:
    return kind[:-1].replace("_", " ")
