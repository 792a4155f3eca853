"""Records as runs of an MLflow experiment: one parent run for this process, below it one run for each cell."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

import harness

LONGEST = 500  # characters of a parameter, by the oldest servers
AT_ONCE = 100  # parameters of a request, by the server's own limit
# Not measured: what was asked or found, and what identifies.
ABOUT = ("engine", "model", "weights", "precision", "workload", "config", "compute_mode", "quant_algo", "moe_backend")
NO_METRICS = ("schema_version", "sm_version", "requested", "effective", "conditions", "environment", "raw", *ABOUT)
STATUS = {"ok": "FINISHED", "mismatch": "FINISHED", "skipped": "FINISHED", "failed": "FAILED"}


@dataclass
class Runs:
    client: MlflowClient
    experiment: str  # ids
    parent: str
    of_cells: dict[str, str] = field(default_factory=dict)  # key of the record -> id of its run
    rounds: dict[str, int] = field(default_factory=dict)  # how often a cell was measured; a sweep does so in turns

    def log(self, record: Mapping[str, Any], analysis: Path | None) -> None:
        """A cell that is measured again goes to the run it has, its numbers one step further."""
        key = record["key"]
        step = self.rounds[key] = self.rounds.get(key, -1) + 1
        run = self.of_cells.get(key)
        if run is None:
            name = " ".join(str(record[part]) for part in ("engine", "model", "precision", "workload"))
            tags = {"mlflow.parentRunId": self.parent, "mlflow.source.name": "harness"}
            run = self.client.create_run(self.experiment, run_name=name, tags=tags).info.run_id
            self.of_cells[key] = run
            params = [Param(name, value) for name, value in parameters(record).items()]
            for start in range(0, len(params), AT_ONCE):
                self.client.log_batch(run, params=params[start : start + AT_ONCE])
        now = int(time.time() * 1000)
        self.client.log_batch(
            run,
            metrics=[Metric(name, value, now, step) for name, value in metrics(record).items()],
            tags=[RunTag(name, value) for name, value in tags_of(record).items()],
        )
        self.client.log_text(run, json.dumps(record, indent=1), "record.json")
        if analysis:
            self.client.log_artifact(run, str(analysis))
        is_interrupted = (record["failure"] or {}).get("class") == "interrupted"
        self.client.set_terminated(run, "KILLED" if is_interrupted else STATUS[record["status"]])

    def end(self) -> None:
        self.client.set_terminated(self.parent, "FINISHED")


def started(experiment: str) -> Runs:
    """Raises MlflowException where the server does not answer or refuses."""
    client = MlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        try:
            number = client.create_experiment(experiment)
        except MlflowException:  # another process was faster
            if (found := client.get_experiment_by_name(experiment)) is None:
                raise
    number = found.experiment_id if found else number
    name = f"harness {time.strftime('%Y-%m-%d %H:%M:%S')} {os.uname().nodename}"
    tags = {"mlflow.source.name": "harness", "harness_version": harness.__version__}
    return Runs(client, number, client.create_run(number, run_name=name, tags=tags).info.run_id)


def parameters(record: Mapping[str, Any]) -> dict[str, str]:
    """What was asked, and the conditions; None is left out."""
    found = {name: record.get(name) for name in ABOUT}
    for name in ("requested", "conditions"):
        found |= dict(_leaves(record.get(name) or {}, name))
    return {_name(name): str(value)[:LONGEST] for name, value in found.items() if value is not None}


def metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Every number that was measured, `latency_ms.p50` and the like; what was not measured is left out, never 0."""
    measured = {
        name: value
        for name, value in record.items()
        if name not in NO_METRICS and name not in (record.get("requested") or {})
    }
    return {
        _name(name): float(value)
        for name, value in _leaves(measured)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def tags_of(record: Mapping[str, Any]) -> dict[str, str]:
    failure = record["failure"] or {}
    found = {
        "status": record["status"],
        "reason": record.get("reason"),
        "failure_class": failure.get("class"),
        "failure": failure.get("message"),
        "key": record["key"],
        "engine_version": record["engine_version"],
        "gpu_name": record.get("gpu_name"),
        "harness_version": record["environment"].get("harness_version"),
    }
    return {name: str(value)[:LONGEST] for name, value in found.items() if value is not None}


def _leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Names joined by dots. Lists of samples are in the artefact."""
    for name, each in value.items():
        path = f"{above}.{name}" if above else str(name)
        if isinstance(each, Mapping):
            yield from _leaves(each, path)
        elif not isinstance(each, (list, tuple)):
            yield path, each


def _name(text: str) -> str:
    """MLflow's alphabet."""
    return re.sub(r"[^A-Za-z0-9_\-. /]", "_", text)[:250]
