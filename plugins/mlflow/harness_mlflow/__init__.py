"""Every record as an MLflow run, where MLFLOW_TRACKING_URI names a server; without it this plugin does nothing.

A tracker that fails, hangs or is slow costs one warning and no more of a run's time than LIMIT_S; the records are on
disk before it is told of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.hookspecs import hookimpl

if TYPE_CHECKING:
    from harness.cells import Load
    from harness_mlflow.runs import Runs

LIMIT_S = 15.0  # for a record; the first one imports mlflow, too
DEFAULTS = {  # what is not in the environment; mlflow's own are 120 s, seven tries, a line on stdout, and word home
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@hookimpl
def harness_load_started(load: Load) -> None:
    """Profiles lie in traces/NAME of the output folder, whose name no record holds."""
    _tracker().folders.update(Path(path).parents[2] for path in load.profiles)


@hookimpl
def harness_cell_finished(record: Mapping[str, Any]) -> None:
    """Raises what went wrong, once; the harness warns of it. After that nothing is tried any more."""
    tracker = _tracker()
    if not os.environ.get("MLFLOW_TRACKING_URI") or tracker.is_given_up:
        return
    try:
        within(LIMIT_S, lambda: tracker.runs().log(record, _analysis(record, tracker.folders)))
    except BaseException as error:
        tracker.is_given_up = True
        words = " ".join(f"{type(error).__name__}: {error}".split())
        if len(words) > 300:  # of requests' words the last say what happened
            words = f"{words[:100]} ... {words[-200:]}"
        raise RuntimeError(f"no run is tracked from here on: {words}") from error


@dataclass
class Tracker:
    """What this process knows of its tracking server."""

    folders: set[Path] = field(default_factory=set)  # output folders
    is_given_up: bool = False
    _runs: Runs | None = None

    def runs(self) -> Runs:
        if self._runs is None:
            import atexit

            for name, value in DEFAULTS.items():
                os.environ.setdefault(name, value)
            from harness_mlflow.runs import started

            self._runs = started(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "harness")
            atexit.register(self._end)
        return self._runs

    def _end(self) -> None:
        if not self.is_given_up:
            try:
                within(LIMIT_S, self._runs.end)
            except Exception:  # every record is there; the run above them stays open
                pass


@cache
def _tracker() -> Tracker:
    return Tracker()


def within(seconds: float, do: Callable[[], None]) -> None:
    """Does it, or raises TimeoutError and leaves it to itself: no timeout of a library covers a server that drips."""
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            do()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"the server needs more than {seconds:g} s for one record")
    if errors:
        raise errors[0]


def _analysis(record: Mapping[str, Any], folders: set[Path]) -> Path | None:
    """The analysis of its profile; None where there is none."""
    name = (record.get("profile") or {}).get("analysis")
    return next((folder / name for folder in folders if (folder / name).is_file()), None) if name else None
