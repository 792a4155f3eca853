"""One Ray cluster for all tests here: a head that takes no load, and two nodes of one core."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys

import pytest

MEMORY = 75 << 20  # bytes of each node's object store
# Nobody else's cluster, nor anything in the home folder. Ray reads this when it is imported, so it is said here.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
QUICK = {  # how soon a node that says nothing counts as lost
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Nodes:
    """A cluster of real processes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False, "_system_config": QUICK}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self.cluster.address
        self.nodes = [self.add(), self.add()]

    def add(self):
        return self.cluster.add_node(wait=False, num_cpus=1, object_store_memory=MEMORY)

    def kill(self, raylet: int) -> None:
        """With SIGKILL, the node whose raylet has this process id."""
        for node in self.nodes:
            process = node.all_processes["raylet"][0].process
            if process.pid == raylet:
                process.kill()
                process.wait()  # what is below it looks whether it is still there
                return
        raise ValueError(f"{raylet} is the raylet of no node that takes loads")


@pytest.fixture(scope="session")
def nodes(site):
    env = {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    before = {name: os.environ.get(name) for name in env}
    os.environ |= env
    try:
        nodes = Nodes()
        nodes.cluster.wait_for_nodes()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    yield nodes
    nodes.cluster.shutdown()


DRIVER = """
import json, sys
from pathlib import Path
from harness.commands.perform import perform
from harness.planning.plan import Options

given = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(sys.argv[1]).items()}
parameters = {name: tuple(values) for name, values in given.pop("parameters").items()}
result = perform(Options(launcher="ray", output_dir=Path("out"), parameters=parameters, **given))
print(json.dumps(result.records))
sys.exit(result.exit_code)
"""
SMALL = {"input_len": [8], "output_len": [4], "num_iterations": [2], "warmup_iterations": [1], "num_chunks": [2]}


class OnRay:
    """A run whose loads go to the cluster; what runs there carries the mark of the test."""

    def __init__(self, harness, nodes: Nodes) -> None:
        self.harness, self.address = harness, nodes.address

    def start(self, sin: str = "", engine: str = "echo", **options) -> subprocess.Popen:
        text, environment = self.harness.root / "text", self.harness.root / "environment.yaml"
        text.write_text("Every token is as likely as the next. " * 20)
        mark = self.harness.env["HARNESS_TEST_MARK"]
        environment.write_text(f"env_vars:\n  HARNESS_TEST_MARK: '{mark}'\n  ECHO_SIN: '{sin}'\n")
        given = {
            "engines": [engine],
            "parameters": {**SMALL, "dataset": [f"file:{text}"]},
            "launcher_options": {"address": self.address, f"runtime_env.{engine}": str(environment)},
            **options,
        }
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(given)],
            cwd=self.harness.folder,
            env=self.harness.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self.harness.root / "stderr").open("w"),
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def __call__(self, **options) -> tuple[int, str]:
        """Exit status and stdout."""
        process = self.start(**options)
        stdout, _ = process.communicate(timeout=180)
        return process.returncode, stdout


@pytest.fixture
def on_ray(harness, nodes):
    return OnRay(harness, nodes)
