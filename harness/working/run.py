"""A run, from its plan to records: token ids, workers by a launcher, records as they come, ledger.

Workers are waited for in threads; whatever comes of them is done in the thread that called, one thing after another.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from harness import plugins
from harness.cells import Cell, InputFile, Load
from harness.launcher import Control, Job, Launcher, Outcome, Stopped
from harness.model.weights import config_of
from harness.planning.plan import Options, Plan, make_loads
from harness.planning.schedule import Claims, Turn, following
from harness.recording import ledger, profiling, records, roofline, rounds
from harness.recording.records import MEASURED, OutputFolder, Record
from harness.working import inputs

OnEvent = Callable[[Load, dict[str, Any]], None]
Warn = Callable[[str], None]
POLL_S = 0.5  # where another run on the same folder measures all that is left


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


def execute(plan: Plan, options: Options, on_event: OnEvent, warn: Warn) -> Result:
    """Measures every cell of the plan. After Ctrl-C what was finished is kept and no worker is left."""
    spec = plan.ground.registry.launchers[options.launcher]
    with spec.open(plan.ground.device, options.workers, options.launcher_options) as launcher:
        return _Run(plan, options, launcher, on_event, warn).result()


class _Run:
    """What is known while a run goes on. Everything but `_work` happens in one thread."""

    def __init__(self, plan: Plan, options: Options, launcher: Launcher, on_event: OnEvent, warn: Warn) -> None:
        self.plan, self.options, self.launcher, self.on_event, self.warn = plan, options, launcher, on_event, warn
        self.folder = OutputFolder(options.output_dir)
        self.id = uuid.uuid4().hex[:12]  # rounds of one run were measured in turns
        self.problems: list[str] = []
        self.kept: dict[str, Record] = {}
        self.turns: deque[Turn] = deque()
        self.next_round: list[Turn] = []
        self.under_way: list[Turn] = []
        self.profiled: list[tuple[Cell, Path]] = []  # and the path of the profile, without suffix
        self.inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.stop = threading.Event()

    def result(self) -> Result:
        was_interrupted = False
        with closing(Claims(self.folder.root / ".claims")) as self.claims:
            try:
                self._measure()
            except KeyboardInterrupt:
                was_interrupted = True
                self._interrupted()
        try:
            for line in ledger.rebuild(self.folder):
                self.warn(line)
        except OSError as error:
            self.problems.append(f"ledger not written: {error}")
        keys = dict.fromkeys(map(self.plan.key, self.plan.cells))
        found = (self.kept.get(key) or self._on_disk(key) for key in keys)
        return Result([record for record in found if record], self.problems, was_interrupted)

    def _measure(self) -> None:
        for cell in self.plan.cells:
            if cell.skip:
                self._keep(cell, records.make(cell, None, self._version(cell), self.plan.ground.device))
                self._tell(cell)
        to_do = [cell for cell in self.plan.cells if not cell.skip and not self._is_done(cell)]
        files = _prepare_inputs(self.plan, to_do, self.folder)
        for load in make_loads(to_do):
            self.turns.append(Turn(replace(load, inputs=tuple(files[id(cell)] for cell in load.cells))))
        with ThreadPoolExecutor(self.launcher.slots) as pool:
            try:
                while self.turns or self.under_way or self.next_round:
                    if not self.turns and not self.under_way:  # A B, B A, A B: a drift of the machine then cancels
                        self.turns.extend(reversed(self.next_round))
                        self.next_round.clear()
                    self._start_turns(pool)
                    if self.under_way:
                        self.inbox.get()()
                    else:
                        time.sleep(POLL_S)
            except BaseException:
                self.stop.set()
                raise

    def _start_turns(self, pool: ThreadPoolExecutor) -> None:
        """As many as there are slots for. A turn whose cells another run is at goes to the end."""
        for _ in range(len(self.turns)):
            if len(self.under_way) == self.launcher.slots:
                return
            turn = self.turns.popleft()
            if not self.claims.take(map(self.plan.key, turn.load.cells)):
                self.turns.append(turn)
                continue
            left = [cell for cell in turn.load.cells if turn.round or not self._is_done(cell)]
            self.claims.release(self.plan.key(cell) for cell in turn.load.cells if cell not in left)
            if left:
                turn = replace(turn, load=turn.load.only(left))
                self.under_way.append(turn)
                pool.submit(self._work, turn, self._job(turn))

    def _job(self, turn: Turn) -> Job:
        load = turn.load
        setup = load.setup
        name = f"{setup.engine}_{setup.model}_{setup.config}_{setup.precision}_{self.plan.key(load.cells[0])}"
        if self.plan.profiler and turn.round == 0:
            load = profiling.with_profiles(
                load, self.plan.profiler, self.folder, map(self.plan.key, load.cells), self.plan.ground.device
            )
        _notify(self.plan.ground.registry, self.warn, "harness_load_started", load=load)
        log = self.folder.log(name)
        if turn == replace(turn, round=0, attempt=0):
            log.unlink(missing_ok=True)
        return Job(load, self.plan.ground.environments[setup.engine].python, log, self.options.timeout)

    def _work(self, turn: Turn, job: Job) -> None:
        """In a thread of its own: what comes of the job goes into the inbox."""
        control = Control(lambda load, event: self.inbox.put(partial(self._heard, load, event)), self.stop)
        try:
            measured = []
            for cell, outcome in self.launcher.run(job, control):
                measured += [cell] if outcome.failure is None else []
                self.inbox.put(partial(self._measured, turn, cell, outcome))
            for cell in self._to_profile_apart(job, measured):
                failure = self.launcher.profile(replace(job, load=job.load.only([cell])), control)
                if failure:
                    self.inbox.put(partial(self.problems.append, f"no profile of {_words(cell)}: {failure}"))
            self.inbox.put(partial(self._ended, turn, job))
        except Stopped:
            pass
        except BaseException as error:  # of ours: told where a person can see it
            self.inbox.put(partial(_raise, error))

    def _heard(self, load: Load, event: dict[str, Any]) -> None:
        if event["event"] == "profiled":
            self.profiled.append((load.cells[event["cell"]], Path(load.profiles[event["cell"]])))
        if event["event"] == "profile_failed":
            self.problems.append(f"no profile of {_words(load.cells[event['cell']])}: {event['message']}")
        self.on_event(load, event)

    def _measured(self, turn: Turn, cell: Cell, outcome: Outcome) -> None:
        record = records.make(cell, outcome, self._version(cell), self.plan.ground.device)
        before = self.kept[self.plan.key(cell)] if turn.round else None
        try:
            record = rounds.added(record, before, outcome, self.id, turn.round)
        except ValueError as error:  # it costs this round, not what was measured before
            self.problems.append(f"round {turn.round + 1} of {_words(cell)} was not added: {error}")
            return
        self._keep(cell, {**record, **_roofline(record, turn.load)})
        if not self.plan.profiler:
            self._tell(cell)

    def _ended(self, turn: Turn, job: Job) -> None:
        cells = {self.plan.key(cell): cell for cell in turn.load.cells}
        if self.plan.profiler:
            for cell, path in self.profiled:
                if (key := self.plan.key(cell)) in cells:
                    rules, root = self.plan.ground.registry.rules, self.folder.root
                    self._keep(cell, profiling.added(self.kept[key], path, self.plan.profiler.name, rules, root))
            self.profiled = [each for each in self.profiled if self.plan.key(each[0]) not in cells]
            for cell in cells.values():
                self._tell(cell)
        self.under_way.remove(turn)
        self.claims.release(cells)
        policy = self.options.policy
        found = [(cell, self.kept[key]) for key, cell in cells.items()]
        for again in following(turn, policy, found, partial(rounds.wants_more, policy)):
            (self.next_round if again.round > turn.round else self.turns).append(again)
        if policy.fail_fast and any(record["status"] == "failed" for _, record in found):
            if self.turns:
                self.problems.append(f"stopped at the first failure: {len(self.turns)} loads were not started")
            self.turns.clear()

    def _interrupted(self) -> None:
        """Workers have ended. What had come of them is kept; what was under way is recorded as interrupted."""
        while not self.inbox.empty():
            self.inbox.get()()
        for cell in (cell for turn in self.under_way for cell in turn.load.cells):
            is_new = self.plan.key(cell) not in self.kept
            if is_new:
                self._keep(cell, records.interrupted(cell, self._version(cell), self.plan.ground.device))
            if is_new or self.plan.profiler:
                self._tell(cell)

    def _keep(self, cell: Cell, record: Record) -> None:
        self.kept[self.plan.key(cell)] = record
        try:
            self.folder.write(record)
        except OSError as error:
            self.problems.append(f"record of {_words(cell)} not written: {error}")

    def _tell(self, cell: Cell) -> None:
        _notify(self.plan.ground.registry, self.warn, "harness_cell_finished", record=self.kept[self.plan.key(cell)])

    def _is_done(self, cell: Cell) -> bool:
        return self.options.resume and rounds.is_done(cell, self.plan.key(cell), self.folder, self.options.policy)

    def _on_disk(self, key: str) -> Record | None:
        return self.folder.read(key) if self.options.resume else None

    def _version(self, cell: Cell) -> str | None:
        return self.plan.ground.version(cell.setup.engine)

    def _to_profile_apart(self, job: Job, measured: list[Cell]) -> Iterator[Cell]:
        """Measured cells whose profiler starts a worker of its own."""
        if job.load.profiles and self.plan.profiler.command:
            yield from (cell for cell in measured if self.plan.ground.registry.workloads[cell.workload].run_once)


def _raise(error: BaseException) -> None:
    raise error


def _roofline(record: Record, load: Load) -> dict[str, Any]:
    """How near the hardware's limit it came, where speed was measured on a GPU."""
    if record["workload"] != "perf" or record["status"] not in MEASURED or not record["gpu_name"]:
        return {}
    return {"roofline": roofline.of_record(record, config_of(load.setup.source))}


def _words(cell: Cell) -> str:
    return f"{cell.setup.engine} {cell.setup.precision} {cell.workload}"


def _prepare_inputs(plan: Plan, cells: list[Cell], folder: OutputFolder) -> dict[int, InputFile]:
    """Token ids of every cell to attempt, by identity of the cell; equal requests are made once, by the interpreter of
    the first engine that wants them."""
    of_cell, makers = {}, {}
    for cell in cells:
        kind = plan.ground.registry.workloads[cell.workload].inputs
        of_cell[id(cell)] = request = inputs.request_for(kind, cell.setup.path, cell.parameters)
        makers.setdefault(request, plan.ground.environments[cell.setup.engine].python)
    made: dict[inputs.Request, InputFile] = {}
    for python in dict.fromkeys(makers.values()):
        wanted = (request for request, maker in makers.items() if maker == python)
        made |= inputs.made(wanted, folder.root / "inputs", python)
    return {cell: made[request] for cell, request in of_cell.items()}


def _notify(registry: plugins.Registry, warn: Warn, hook: str, **content: Any) -> None:
    for _ in plugins.ask(registry, warn, hook, **content):
        pass
