"""What is sampled while a worker measures, on a machine whose NVML is a stand-in as strict as the real binding, and
what the record is warned of."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pynvml
import pytest

from harness.working.telemetry import REASONS, problems, sampling

# Two GPUs, the second throttled. It refuses whatever the real one would: a call before nvmlInit, a handle that is none.
STAND_IN = """
import os

NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
calls, opened = [], 0

class NVMLError(Exception):
    pass

class c_nvmlUtilization_t:
    def __init__(self, gpu, memory):
        self.gpu, self.memory = gpu, memory

class _Handle:
    def __init__(self, index):
        self.index = index

def nvmlInit():
    global opened
    opened += 1

def nvmlShutdown():
    global opened
    _check()
    opened -= 1

def _check(handle=None):
    if not opened:
        raise NVMLError("Uninitialized")
    if handle is not None and type(handle) is not _Handle:
        raise TypeError(f"{handle!r} is no handle")

def nvmlDeviceGetCount():
    _check()
    return 2

def nvmlDeviceGetHandleByIndex(index):
    _check()
    if type(index) is not int or not 0 <= index < 2:
        raise NVMLError("Invalid Argument")
    return _Handle(index)

def nvmlDeviceGetHandleByUUID(uuid):
    _check()
    raise NVMLError("Not Found")

def nvmlDeviceGetUUID(handle):
    _check(handle)
    return f"GPU-{handle.index}"

def nvmlDeviceGetIndex(handle):
    _check(handle)
    return handle.index

def nvmlDeviceGetClockInfo(handle, type):
    _check(handle)
    calls.append("clock")
    sm = 1980 - (400 * (calls.count("clock") // 8 % 2) if handle.index else 0)
    return {NVML_CLOCK_SM: sm, NVML_CLOCK_MEM: 2619}[type]

def nvmlDeviceGetTemperature(handle, sensor):
    _check(handle)
    return {NVML_TEMPERATURE_GPU: 60 + 30 * handle.index}[sensor]

def nvmlDeviceGetPowerUsage(handle):
    _check(handle)
    if handle.index:
        raise NVMLError("Not Supported")
    return 650500

def nvmlDeviceGetMemoryInfo(handle, version=None):
    _check(handle)
    return type("Memory", (), {"used": 2 << 30})

def nvmlDeviceGetUtilizationRates(handle):
    _check(handle)
    return c_nvmlUtilization_t(97, 40)

def nvmlDeviceGetCurrentClocksEventReasons(handle):
    _check(handle)
    return 0x40 | 0x8 | 0x4 if handle.index else int(os.environ.get("REASONS", "4"))

def nvmlDeviceGetTotalEnergyConsumption(handle):
    _check(handle)
    if "NO_ENERGY" in os.environ:
        raise NVMLError("Not Supported")
    calls.append("energy")
    return 7_000_000 + 300_000 * calls.count("energy")
"""


@pytest.fixture
def stand_in(tmp_path) -> Path:
    """A folder in which `pynvml` is the stand-in."""
    (tmp_path / "pynvml.py").write_text(STAND_IN)
    return tmp_path


@pytest.fixture
def on_gpus(stand_in):
    """What a program prints, as JSON, where there are the stand-in's GPUs."""

    def run(code: str, **env: str) -> dict:
        begin = "import json\nfrom harness import device\ndevice.DRIVERS = ('/proc',)\n"
        paths = os.pathsep.join([str(stand_in), str(Path(__file__).parent)])
        environment = {**os.environ, "PYTHONPATH": paths, **env}
        command = [sys.executable, "-c", begin + textwrap.dedent(code)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


SAMPLED = """
    import sys, threading, time
    from harness.working.telemetry import problems, sampling
    with sampling({gpus}, period_s=0.02) as sampler:
        while len(sampler.host) < 20:
            time.sleep(0.01)
    import pynvml
    summary = sampler.summary()
    left = [thread.name for thread in threading.enumerate()]
    print(json.dumps([summary, problems(summary), pynvml.opened, left, "torch" in sys.modules]))
"""


def test_the_stand_in_has_the_names_arguments_and_values_of_the_real_binding(stand_in):
    spec = importlib.util.spec_from_file_location("stand_in", stand_in / "pynvml.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    public = {name: value for name, value in vars(module).items() if name.lower().startswith(("nvml", "c_nvml"))}
    assert len(public) > 12
    for name, value in public.items():
        real = getattr(pynvml, name)
        if inspect.isfunction(value) and name != "nvmlInit":
            assert list(inspect.signature(value).parameters) == list(inspect.signature(real).parameters), name
        elif isinstance(value, int):
            assert value == real, name
    assert [name for name, _ in pynvml.c_nvmlUtilization_t._fields_] == ["gpu", "memory"]
    assert issubclass(pynvml.NVMLError, Exception)


def test_reasons_are_nvmls_bits():
    words = {
        "gpu_idle": "GpuIdle",
        "application_clocks": "ApplicationsClocksSetting",
        "sw_power_cap": "SwPowerCap",
        "hw_slowdown": "HwSlowdown",
        "sync_boost": "SyncBoost",
        "sw_thermal_slowdown": "SwThermalSlowdown",
        "hw_thermal_slowdown": "HwThermalSlowdown",
        "hw_power_brake": "HwPowerBrakeSlowdown",
        "display_clocks": "DisplayClockSetting",
    }
    for bit, name in REASONS.items():
        if name in words:
            assert getattr(pynvml, f"nvmlClocksThrottleReason{words[name]}") == bit
    assert set(words) <= set(REASONS.values())


def test_every_visible_gpu_is_sampled_and_what_it_cannot_say_is_null(on_gpus):
    summary, said, opened, threads, has_torch = on_gpus(SAMPLED.format(gpus=None), CUDA_VISIBLE_DEVICES="0,1")
    cool, hot = summary["gpus"]
    assert (cool["index"], hot["index"], summary["gpu_problem"], summary["period_s"]) == (0, 1, None, 0.02)
    assert cool["n"] >= 19 and cool["power_w"] == {"min": 650.5, "median": 650.5, "max": 650.5}
    assert cool["sm_clock_mhz"]["median"] == 1980 and cool["memory_clock_mhz"]["max"] == 2619
    assert (cool["temperature_c"]["max"], hot["temperature_c"]["max"]) == (60, 90)
    assert cool["utilisation_percent"]["min"] == 97 and cool["throttle_reasons"] == {"sw_power_cap": 1.0}
    assert hot["power_w"] is None
    assert hot["throttle_reasons"] == dict.fromkeys(["sw_power_cap", "hw_slowdown", "hw_thermal_slowdown"], 1.0)
    about_gpus = [line for line in said if line.startswith("GPU")]
    assert about_gpus == [
        "GPU 1: hardware slowdown in 100% of the samples",
        "GPU 1: thermal throttling by the hardware in 100% of the samples",
        about_gpus[2],
    ]
    assert about_gpus[2].startswith("GPU 1: SM clock between 1580 and 1980 MHz while it had work, 2")
    assert (opened, threads, has_torch) == (0, ["MainThread"], False), "nothing is left open or running"


@pytest.mark.parametrize(("gpus", "visible"), [("[1]", "0"), ("None", "1")])
def test_only_the_gpus_of_the_load_are_sampled(on_gpus, gpus, visible):
    summary, *_ = on_gpus(SAMPLED.format(gpus=gpus), CUDA_VISIBLE_DEVICES=visible)
    assert [gpu["index"] for gpu in summary["gpus"]] == [1]


def test_a_gpu_is_known_whatever_it_is_called_and_by_its_name_where_nvml_does_not_know_it(on_gpus):
    code = "print(json.dumps([device.identities(names) for names in ('1, 0', 'GPU-x', '', '1,7')]))"
    assert on_gpus(code) == [["GPU-1", "GPU-0"], ["GPU-x"], [], ["1", "7"]]


def test_clocks_of_an_idle_gpu_are_not_those_of_the_measurement(on_gpus):
    summary, *_ = on_gpus(SAMPLED.format(gpus="[0]"), REASONS="1")
    assert summary["gpus"][0]["sm_clock_mhz"] is None and summary["gpus"][0]["temperature_c"]["max"] == 60
    assert summary["gpus"][0]["throttle_reasons"] == {"gpu_idle": 1.0}


def test_without_nvml_the_gpus_are_null_with_the_reason_and_the_host_is_still_seen():
    with sampling([], period_s=0.01) as sampler:
        while len(sampler.host) < 10:
            time.sleep(0.01)
        during = sampler.summary()
    summary = sampler.summary()
    assert summary["gpus"] is None and "NVML" in summary["gpu_problem"]
    host = summary["host"]
    assert host["n"] >= during["host"]["n"] >= 10 and host["cores"] == os.cpu_count()
    assert host["load_1min"]["min"] <= host["load_1min"]["median"] <= host["load_1min"]["max"]
    assert 0 <= host["runnable"]["median"] and 0 <= host["stolen_share"] <= 1
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_a_machine_that_others_use_is_said_to_be_so():
    quiet = {"n": 9, "cores": 4, "load_1min": None, "runnable": {"min": 0, "median": 4, "max": 9}, "stolen_share": 0.0}
    assert problems({"gpus": None, "host": quiet}) == []
    busy = {**quiet, "runnable": {"min": 0, "median": 5, "max": 9}, "stolen_share": 0.04}
    assert problems({"gpus": None, "host": busy}) == [
        "host: 5 threads wanted its 4 cores (median); other programs took their time",
        "host: 4% of its CPU time was taken by other virtual machines",
    ]
    unknown = {"n": 0, "cores": None, "load_1min": None, "runnable": None, "stolen_share": None}
    assert problems({"gpus": None, "host": unknown}) == []


ENERGY = """
    import pynvml
    from scripted import Scripted
    from harness.working.inputs import Inputs
    from harness.workloads import perf

    class Session(Scripted):
        def generate(self, prompts, output_len):
            pynvml.calls.append("generate")
            return super().generate(prompts, output_len)

    parameters = {{"batch_size": 2, "input_len": 8, "output_len": 4, "num_iterations": 3, "warmup_iterations": 2}}
    inputs = Inputs(((1,) * 8,) * 2, "ids", "ab" * 32, "ef" * 32)
    results = perf.measure(Session([{ms}] * 5), inputs, parameters, lambda *_: None).results
    print(json.dumps([results, pynvml.calls, pynvml.opened]))
"""


def test_energy_is_read_around_the_timed_iterations_and_shared_out_over_their_tokens(on_gpus):
    results, calls, opened = on_gpus(ENERGY.format(ms=500), CUDA_VISIBLE_DEVICES="1")
    assert calls == ["generate"] * 2 + ["energy"] + ["generate"] * 3 + ["energy"] and opened == 0
    assert (results["raw"]["energy_mj"], results["energy_joules"], results["energy_problem"]) == (300_000, 300, None)
    assert results["joules_per_output_token"] == pytest.approx(300 / (3 * 2 * 4))


def test_energy_of_several_gpus_is_that_of_all(on_gpus):
    results, *_ = on_gpus(ENERGY.format(ms=500), CUDA_VISIBLE_DEVICES="0,1")
    assert results["energy_joules"] == (3 + 4 - 1 - 2) * 300


@pytest.mark.parametrize(
    ("ms", "env", "problem"), [(100, {}, "took 0.30 s"), (500, {"NO_ENERGY": "1"}, "no GPU here whose energy")]
)
def test_energy_that_was_not_measured_is_null_with_the_reason(on_gpus, ms, env, problem):
    results, *_ = on_gpus(ENERGY.format(ms=ms), **env)
    assert results["energy_joules"] is results["joules_per_output_token"] is None
    assert problem in results["energy_problem"]
