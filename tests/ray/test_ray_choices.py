"""What Ray is asked for, and what a node refuses before it loads anything."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from harness_ray import choices, cluster
from harness_ray.choices import Choices

import harness
from harness import device
from harness.cells import Cell, Load, Setup
from harness.device import Device
from harness.errors import UsageError
from harness.launcher import LauncherSpec
from harness.plugins import discover
from harness.precision import Support
from harness.serde import to_json

H200 = Device("cuda", "NVIDIA H200", 8, 141 << 30, 90, "570.1", 700.0)
A100 = Device("cuda", "NVIDIA A100", 4, 80 << 30, 80, "570.1", 400.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colour": "red"}, "the launcher 'ray' has no option colour; it has address"),
        ({"python.nobody": "/bin/python"}, "unknown engine 'nobody'"),
        ({"cpus": "0"}, "cpus=0: expected a number above 0"),
        ({"cpus": "1.5"}, "cpus=1.5: expected a number above 0"),
        ({"wait": "nan"}, "wait=nan: expected a number above 0"),
        ({"address": "ray://head:10001"}, "not Ray's client"),
        ({"runtime_env.hf": "/no/such/file"}, "no runtime environment: [Errno 2]"),
    ],
)
def test_an_option_that_means_nothing_is_refused_by_its_name(options, words):
    with pytest.raises(UsageError) as error:
        choices.parse(options)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["- a\n- b", "pip: {", "colour: red", "env_vars: 3", "!!python/object/apply:os.getcwd []"]
)
def test_a_file_that_is_no_runtime_environment_is_refused(tmp_path, text):
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(UsageError, match="no runtime environment"):
        choices.parse({"runtime_env.hf": str(tmp_path / "file.yaml")})


def test_an_engine_has_one_interpreter(tmp_path):
    (tmp_path / "file.yaml").write_text("pip: [vllm]")
    with pytest.raises(UsageError, match="each names its interpreter"):
        choices.parse({"runtime_env.vllm": str(tmp_path / "file.yaml"), "python.vllm": "/opt/vllm/bin/python"})


def test_a_cluster_that_is_not_there_is_one_line():
    with pytest.raises(UsageError, match="no Ray cluster at 127.0.0.1:1: .*refused"):
        cluster.connect(Choices(address="127.0.0.1:1"))


def test_nodes_of_different_gpus_are_refused_by_name():
    with pytest.raises(UsageError) as error:
        cluster.common({"10.0.0.1": H200, "10.0.0.2": A100}, Choices())
    assert "10.0.0.1 has NVIDIA H200, 10.0.0.2 has NVIDIA A100" in str(error.value)
    assert "--launcher-option gpu=NAME" in str(error.value)


def test_the_device_of_equal_nodes_is_what_is_true_of_each():
    slower = replace(H200, count=4, driver="580.0", power_limit_w=500.0, memory_bytes=140 << 30)
    both = cluster.common({"a": H200, "b": slower}, Choices())
    assert both == replace(H200, count=8, driver=None, power_limit_w=None, memory_bytes=140 << 30)
    cpus = [Device("cpu", "a CPU", count, 1 << 30) for count in (16, 8)]
    assert cluster.common(dict(zip("ab", cpus)), Choices()).count == 8
    assert cluster.common(dict(zip("ab", cpus)), Choices(cpus=4)).count == 4


def test_the_launcher_is_found_by_its_name():
    assert isinstance(discover().launchers["ray"], LauncherSpec)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "0.0.1"}, f"has harness {harness.__version__}, not 0.0.1: install one version everywhere"),
        ({"device": {"kind": "cuda", "name": "a GPU"}}, "the run is of a GPU"),
        ({"python": "/no/such/python"}, "has no /no/such/python: --launcher-option python.echo=PATH"),
        ({"path": "/no/such/model"}, "has no /no/such/model: put it where every node sees it"),
    ],
)
def test_a_node_that_is_not_what_the_plan_was_made_for_refuses_in_one_line(changes, words):
    here = device.detect()
    setup = Setup("echo", "m", changes.get("path", "owner/name"), "bf16")
    load = Load(setup, (Cell(setup, "perf", {}, Support("native")),), "native")
    order = {
        "version": harness.__version__,
        "package": "/nowhere",
        "device": {"kind": here.kind, "name": here.name},
        "cores": None,
        "python": None,
        "timeout": 10.0,
        "apart": False,
        "load": to_json(load),
        "inputs": [],
        **changes,
    }
    host = [sys.executable, "-m", "harness_ray.host"]
    done = subprocess.run(host, input=json.dumps(order) + "\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (line,) = map(json.loads, done.stdout.splitlines())
    assert words in line["refused"] and "\n" not in line["refused"]
