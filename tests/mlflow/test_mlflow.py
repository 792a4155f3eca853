"""Records as MLflow runs, on a real server with its SQLite store; and servers that are dead, silent or refuse."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import harness_mlflow
import pytest
import scripted

ONE = ["--precision", "bf16", "--workload", "perf"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of `mlflow server`."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--port", port, "--workers", 1]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", folder / "artifacts"]
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)), cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 9)
        process.wait()


@pytest.fixture
def client(server):
    from mlflow.tracking import MlflowClient

    return MlflowClient(server)


def runs(client, experiment: str) -> list:
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_every_record_of_a_run_is_a_run_below_one_parent(harness, client, server):
    harness.env |= {"MLFLOW_TRACKING_URI": server, "MLFLOW_EXPERIMENT_NAME": "moe"}
    done = harness.measure(
        "--precision", "fp8,bf16", "--workload", "perf,ppl", "--json", sin="raise:fp8:score,markup_facts:bf16"
    )
    assert (done.returncode, "warning" in done.stderr) == (1, False), done.stderr
    assert len(json.loads(done.stdout)) == 4  # nothing of MLflow's on stdout
    (parent,) = [run for run in runs(client, "moe") if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == "FINISHED"
    found = {run.data.tags["key"]: run for run in runs(client, "moe") if run is not parent and "key" in run.data.tags}
    records = {record["key"]: record for record in harness.records()}
    assert found.keys() == records.keys()
    for key, record in records.items():
        run = found[key]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["status"] == record["status"]
        assert run.data.params["precision"] == record["precision"]
        assert run.data.params["requested.tp"] == "1"
        text = client.download_artifacts(run.info.run_id, "record.json", str(harness.root))
        with open(text) as file:
            assert json.load(file) == record
        if record["workload"] == "perf":
            assert run.data.metrics["latency_ms.p50"] == record["latency_ms"]["p50"]
            assert run.data.metrics["output_tokens_per_sec"] == record["output_tokens_per_sec"]
            assert record["latency_ms"]["p99"] is None and "latency_ms.p99" not in run.data.metrics
            assert "batch_size" not in run.data.metrics and run.data.params["requested.batch_size"] == "1"
    (failed,) = [run for run in found.values() if run.info.status == "FAILED"]
    assert failed.data.tags["failure_class"] == "crashed"
    assert "the parrot is no more" in failed.data.tags["failure"] and "perplexity" not in failed.data.metrics


def test_a_cell_that_is_measured_again_stays_one_run_and_its_analysis_goes_with_it(
    client, server, monkeypatch, tmp_path
):
    from harness_mlflow.runs import started

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    answer = tmp_path / "profile_fp8_sm90.analysis.json"
    answer.write_text("{}")
    tracked = started("again")
    for factor in (1.0, 1.1):
        tracked.log(scripted.scaled(factor), answer)
    (run,) = [run for run in runs(client, "again") if "key" in run.data.tags]
    history = client.get_metric_history(run.info.run_id, "latency_ms.mean")
    assert [(point.step, round(point.value)) for point in history] == [(0, 100), (1, 110)]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"record.json", answer.name}


def test_installed_but_not_asked_for_it_imports_and_changes_nothing(harness):
    code = "import sys, harness_mlflow as plugin; plugin.harness_cell_finished({}); print('mlflow' in sys.modules)"
    env = {name: value for name, value in harness.env.items() if not name.startswith("MLFLOW")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@contextmanager
def refusing():
    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refuse) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextmanager
def silent():
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def dead():
    yield free_port()


@pytest.mark.parametrize(("trouble", "words"), [(dead, "refused"), (silent, "timed out"), (refusing, "403")])
def test_a_tracker_in_trouble_costs_one_warning_and_no_measurement(harness, trouble, words):
    with trouble() as port:
        harness.env |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}
        done = harness.measure("--precision", "fp8,bf16", "--workload", "perf")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert [record["status"] for record in harness.records()] == ["ok", "ok"]
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1 and "no run is tracked from here on" in warnings[0], done.stderr
    assert words in warnings[0]


def test_a_server_that_drips_is_given_up_after_its_time():
    with pytest.raises(TimeoutError, match="needs more than 0.1 s"):
        harness_mlflow.within(0.1, lambda: time.sleep(5))
