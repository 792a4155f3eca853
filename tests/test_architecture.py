"""The floors of the house: imports run downhill, nothing heavy in the core, rooms one can read in one sitting."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "harness").rglob("*.py"))
SOURCES = CORE + sorted((ROOT / "plugins").rglob("*.py"))
HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "vllm",
    "tensorrt_llm",
    "sglang",
    "ray",
    "pandas",
    "compressed_tensors",
    "safetensors",
    "mlflow",
    "torch_neuronx",
    "neuronx_distributed",
    "neuronx_distributed_inference",
}

# A module imports only from floors above its own line.
FLOORS = [
    [
        "columns",
        "errors",
        "precision",
        "serde",
        "device",
        "working.supervisor",
        "tensorfile",
        "accuracy.words",
        "accuracy.routing",
        "lint.findings",
        "evaluation.flops",
        "evaluation.wire",
        "profilers.ranges",
    ],
    [
        "cells",
        "names",
        "working.telemetry",
        "jsonfile",
        "working.corpus",
        "failures",
        "provenance",
        "lint.values",
        "evaluation.prompts",
    ],
    ["model.models", "lint.layers", "lint.checkpoint", "evaluation.score", "model.shape"],
    [
        "traces.trace",
        "traces.sqlitefile",
        "kernels.taxonomy",
        "kernels.sweep",
        "kernels.agreement",
        "recording.roofline",
        "model.weights",
        "model.footprint",
    ],
    ["traces.ops", "traces.spans", "traces.marks", "traces.kineto_json", "kernels.position", "kernels.windows"],
    ["traces.kineto", "traces.nsys_ranges", "traces.nsys_stats", "kernels.labelling"],
    ["traces.nsys", "kernels.ledger"],
    ["traces.read", "kernels.validity", "kernels.waterfall"],
    ["kernels.analysis"],
    ["accuracy.baseline", "accuracy.tolerances"],
    ["engine", "working.inputs", "lint.scheme", "planning.preflight"],
    ["workload", "profiler", "recording.metrics", "planning.interpreters", "lint.subject"],
    ["accuracy.rows", "accuracy.subject", "evaluation.report", "recording.stats"],
    ["accuracy.divergence", "accuracy.matching", "accuracy.suspects"],
    ["accuracy.scoring"],
    ["accuracy.beside"],
    ["launcher", "planning.schedule", "sweep.document"],
    ["sweep.matrix"],
    ["hookspecs", "recording.conditions", "lint.parts", "lint.formats", "lint.engines", "lint.scales"],
    [
        "workloads.perf",
        "workloads.ppl",
        "workloads.kl",
        "workloads.baseline",
        "workloads.validate",
        "workloads.generate",
        "profilers.torch",
        "profilers.nsys",
        "lint.report",
        "evaluation.hlo",
        "evaluation.traced",
    ],
    ["workloads.evaluate", "working.process"],
    ["launchers.local"],
    ["plugins"],
    ["working.worker"],
    ["recording.records", "judging.compare"],
    [
        "recording.ledger",
        "judging.expectations",
        "working.progress",
        "judging.table",
        "recording.importers",
        "recording.profiling",
        "kernels.tables",
    ],
    ["judging.pairs", "judging.results", "judging.expectationfile", "judging.breakdown", "planning.plan"],
    ["ladder.steps"],
    ["ladder.rows"],
    ["ladder.show"],
    ["ladder.ledger"],
    ["report.read", "report.page"],
    ["report.rows"],
    ["report.tables", "report.charts", "report.verdict"],
    [
        "report.cells",
        "report.pareto",
        "report.distributions",
        "report.kernels",
        "report.limits",
        "report.scaling",
        "report.ladder",
    ],
    ["report.comment"],
    ["recording.rounds"],
    ["working.run", "sweep.planning", "sweep.show"],
    ["commands.options", "commands.perform", "commands.page", "accuracy.ladder", "ladder.climb", "ladder.batches"],
    ["accuracy.verdict", "evaluation.run"],
    ["commands.baseline", "commands.validate", "commands.generate", "commands.evaluate"],
    [
        "commands.run",
        "commands.report",
        "commands.expect",
        "commands.results",
        "commands.sweep",
        "commands.analyze",
        "commands.compare",
        "commands.explain",
        "commands.kernels",
        "commands.list",
        "commands.doctor",
        "commands.lint_checkpoint",
        "commands.ladder",
        "testing",
    ],
    ["commands.analyze_all"],
    ["cli"],
    ["__main__"],
]
# Run in workers, where torch is there whatever the engine; no other module may reach them.
IN_WORKERS = {
    f"accuracy.{name}" for name in ("rows", "divergence", "matching", "routing", "suspects", "scoring", "beside")
}
IN_WORKERS.add("profilers.ranges")  # of engines
# They hold tables, and are imported where a trace is read, not before; what they are for is not needed to start.
ON_TABLES = {"polars", "msgspec", "adbc_driver_sqlite"}
FLOOR_OF = {name: index for index, names in enumerate(FLOORS) for name in names}


def imports(path: Path, typing: bool = False) -> set[str]:
    """Modules imported anywhere in a file; what only type checkers read is left out unless `typing`."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if not typing and isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            found.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "harness").with_suffix("").parts)


@pytest.mark.parametrize("path", [p for p in CORE if p.name != "__init__.py"], ids=module_name)
def test_imports_run_downhill(path):
    own = FLOOR_OF[module_name(path)]
    inside = {name.removeprefix("harness.") for name in imports(path, typing=True) if name.startswith("harness.")}
    below = {name: FLOOR_OF[name] for name in inside & set(FLOOR_OF)}
    assert all(floor < own for floor in below.values()), {name: floor for name, floor in below.items() if floor >= own}


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_names_no_heavy_package(path):
    if module_name(path) not in IN_WORKERS:
        assert not {name.partition(".")[0] for name in imports(path)} & HEAVY


@pytest.mark.parametrize("path", [p for p in CORE if p.name != "__init__.py"], ids=module_name)
def test_what_needs_torch_is_reached_from_a_workload_only(path):
    if module_name(path) not in IN_WORKERS and not module_name(path).startswith("workloads."):
        assert not {name.removeprefix("harness.") for name in imports(path)} & IN_WORKERS


def test_the_commands_start_without_what_reads_traces():
    code = "import sys; import harness.cli, harness.working.run, harness.commands.analyze, harness.commands.explain; print(*sys.modules)"
    code += "; from harness.plugins import discover; discover(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.partition(".")[0] for name in done.stdout.split()} & (ON_TABLES | HEAVY)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_says_what_it_is_for_and_fits_one_sitting(path):
    assert ast.get_docstring(ast.parse(path.read_text()))
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_function_says_what_it_returns(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if f.returns is None and not f.name.startswith("_")] == []


def test_no_plugin_folder_is_a_package_that_could_shadow_its_engine():
    assert [str(path) for path in (ROOT / "plugins").glob("*/__init__.py")] == []


def test_every_package_of_the_core_is_in_the_wheel():
    listed = (ROOT / "setup.cfg").read_text().partition("packages =")[2].partition("package_dir")[0].split()
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "harness").rglob("__init__.py")}
    assert folders == {name for name in listed if name.partition(".")[0] == "harness"}


def test_no_two_test_files_have_one_name():
    """Without packages pytest tells them apart by their names alone."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py") if "doubles" not in path.parts]
    assert sorted(names) == sorted(set(names))
