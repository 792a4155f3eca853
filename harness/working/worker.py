"""The child process of one load: loads the engine, measures each cell, and says so on a descriptor of its own.

    PYTHON -m harness.working.worker EVENTS_FD            # the load arrives as one JSON line on stdin
    PYTHON -m harness.working.worker EVENTS_FD profile    # the same, but only the extra pass, under the profiler's own command

stdin stays open as a lifeline: when the launcher closes it, or is gone, all that the worker started goes with it.
stdout and stderr belong to the engine; nothing of ours is ever read from them.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from harness import failures, plugins
from harness.cells import Cell, Load
from harness.engine import EngineSpec, Session
from harness.errors import LoadFailed
from harness.model.weights import identity
from harness.serde import from_json, to_json
from harness.working import inputs
from harness.working.supervisor import supervise

PROGRESS_EVERY_S = 0.1  # a line per iteration would be noise for fast iterations
PASSES_BEFORE = 2
IMPORTED = 10_000  # objects between two collections while an engine loads; Python's 700 go over PyTorch again and again

Do = Callable[["Channel", plugins.Registry, Load, int, Cell, Session], None]


def main(events_fd: int, *what: str) -> int:
    """Under a profiler's command `what` is "record" and the file that holds the load."""
    if cores := os.environ.get("HARNESS_CORES"):  # of several workers at once, each has its own
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    if what[:1] == ("record",):
        return work(Channel(events_fd), Path(what[1]).read_text(encoding="utf-8"), _record)
    line = _take_stdin()
    if what == ("profile",):
        return _start_profiler(events_fd, line)
    _leave(work(Channel(events_fd), line, _measure))


def work(channel: Channel, line: str, do: Do) -> int:
    """Loads the engine and does one thing with each cell."""
    load = from_json(Load, json.loads(line))
    registry = plugins.discover()
    try:
        channel.send("loading")
        started = time.perf_counter()
        with _few_collections():
            session = _engine(registry, load).load(load)
        seconds = time.perf_counter() - started
        channel.send("loaded", facts=_facts(session), load_seconds=seconds, weights=identity(load.setup))
    except BaseException as error:
        return _fail(channel, error, while_loading=True)
    try:
        for index, cell in enumerate(load.cells):
            channel.send("started", cell=index)
            do(channel, registry, load, index, cell, session)
    except BaseException as error:
        return _fail(channel, error, while_loading=False)
    channel.send("done")  # an engine that hangs from here on costs a wait, and no cell
    session.close()
    return 0


@contextmanager
def _few_collections() -> Iterator[None]:
    """Imports make many objects and next to no cycles: looking for those is a fifth of the time that PyTorch and
    transformers, or vLLM, take to import."""
    before = gc.get_threshold()
    gc.set_threshold(IMPORTED)
    try:
        yield
    finally:
        if gc.get_threshold()[0] == IMPORTED:  # else the engine has an idea of its own
            gc.set_threshold(*before)


def _leave(status: int) -> NoReturn:
    """Engines have closed and say their last words; that Python then takes PyTorch apart costs more than a second."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _engine(registry: plugins.Registry, load: Load) -> EngineSpec:
    try:
        return registry.engines[load.setup.engine]
    except KeyError:
        found = "; ".join(registry.problems) or f"it has {', '.join(registry.engines) or 'none'}"
        raise LoadFailed(f"{sys.executable} has no engine {load.setup.engine!r}: {found}") from None


def _start_profiler(events_fd: int, line: str) -> int:
    """Becomes the profiler, which starts this module anew below itself. stdin is not carried through: a file is."""
    load = from_json(Load, json.loads(line))
    path = Path(load.profiles[0])
    _empty(path.parent)
    command = plugins.discover().profilers[load.profiler].command(path)
    file = Path.cwd() / "load.json"  # the launcher's own folder for this worker
    file.write_text(line, encoding="utf-8")
    words = [*command, sys.executable, "-m", "harness.working.worker", str(events_fd), "record", str(file)]
    os.execvp(words[0], words)


def _measure(
    channel: Channel, registry: plugins.Registry, load: Load, index: int, cell: Cell, session: Session
) -> None:
    ids = _ids(load, index)
    workload = registry.workloads[cell.workload]
    measurement = workload.measure(session, ids, cell.parameters, channel.progress)
    conditions = {"token_ids_sha256": ids.sha256, "token_ids_source": ids.source, **measurement.conditions}
    channel.send("measured", cell=index, results=measurement.results, conditions=conditions, facts=_facts(session))
    if load.profiler and workload.run_once and not registry.profilers[load.profiler].command:
        _empty(Path(load.profiles[index]).parent)
        try:
            _record(channel, registry, load, index, cell, session)
        except Exception as error:  # the cell is measured; only its profile is lost
            traceback.print_exception(error)
            channel.send("profile_failed", cell=index, message=f"{type(error).__name__}: {error}")


def _record(channel: Channel, registry: plugins.Registry, load: Load, index: int, cell: Cell, session: Session) -> None:
    """The extra pass. Passes before it compile, capture graphs and settle what the pass itself must not show."""
    ids, run_once = _ids(load, index), registry.workloads[cell.workload].run_once
    folder = Path(load.profiles[index]).parent
    for _ in range(PASSES_BEFORE):
        run_once(session, ids, cell.parameters)
    with registry.profilers[load.profiler].session(session, folder):
        run_once(session, ids, cell.parameters)
    channel.send("profiled", cell=index)


def _empty(folder: Path) -> None:
    """What an earlier run of this cell left must not be taken for this one's."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()


def _ids(load: Load, index: int) -> inputs.Inputs:
    file = load.inputs[index]
    if file.path is None:
        raise LoadFailed(f"no token ids for this model: {file.problem}")
    return inputs.read(file.path)


def _facts(session: Session) -> dict[str, Any]:
    facts = session.facts()
    if not isinstance(facts, dict) or not {"precision", "compute_mode"} <= facts.keys():
        raise LoadFailed(f"facts() must be a dict that holds at least precision and compute_mode, got {facts!r}")
    return facts


def _fail(channel: Channel, error: BaseException, while_loading: bool) -> int:
    """After a failure the engine's state is unknown, so the worker ends; the parent starts another for what is left."""
    traceback.print_exception(error)  # to the log
    failure = failures.of_exception(error, while_loading)
    channel.send("failed", failure_class=failure.failure_class, message=failure.message)
    sys.stderr.flush()
    os._exit(3)  # an engine's exit handlers may hang after an error; the parent kills what they would have ended


class Channel:
    """Events to the parent, one JSON object a line."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # the engine's own children must not keep the channel open
        self._file = os.fdopen(descriptor, "w", encoding="utf-8")
        self._last = 0.0

    def send(self, event: str, **content: Any) -> None:
        self._file.write(json.dumps({"event": event, **to_json(content)}, allow_nan=False) + "\n")
        self._file.flush()

    def progress(self, done: int, of: int) -> None:
        now = time.perf_counter()
        if done == of or now - self._last >= PROGRESS_EVERY_S:
            self._last = now
            self.send("progress", done=done, of=of)


def _take_stdin() -> str:
    """First line of stdin; the rest of it becomes the lifeline, and the engine sees an empty stdin."""
    lifeline = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    line = os.fdopen(os.dup(lifeline), encoding="utf-8").readline()
    supervise(lifeline)
    return line


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
