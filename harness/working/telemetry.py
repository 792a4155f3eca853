"""What the machine went through while a worker measured: clocks, temperature, power and throttling of its GPUs through
NVML, load and stolen time of the host. Sampled by a thread of the coordinator, never in the process that is timed."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from harness import device

PERIOD_S = 0.1
CLOCK_MOVES = 0.10  # of the SM clock's median, from lowest to highest while the GPU has work
STOLEN = 0.01  # of the host's CPU time
STOP_S = 2.0  # for a call into the driver that hangs; then its thread is left alone

# NVML's bits: nvmlClocksEventReason... in nvml.h, nvmlClocksThrottleReason... before driver 535.
IDLE = "gpu_idle"
REASONS = {
    0x1: IDLE,
    0x2: "application_clocks",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
    0x100: "display_clocks",
    0x200: "board_limit",
    0x400: "reliability",
}
HARMFUL = {  # a power cap is not among them: it is how a GPU is meant to run, and a condition of every record
    "hw_slowdown": "hardware slowdown",
    "sw_thermal_slowdown": "thermal throttling by the driver",
    "hw_thermal_slowdown": "thermal throttling by the hardware",
    "hw_power_brake": "power brake",
}
READINGS: dict[str, Callable[[Any, Any], float]] = {
    "sm_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "memory_clock_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "memory_bytes": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,  # of every process
    "utilisation_percent": lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu,
}
CLOCKS = ("sm_clock_mhz", "memory_clock_mhz")


@contextmanager
def sampling(gpus: Sequence[int | str] | None = None, period_s: float = PERIOD_S) -> Iterator[Sampler]:
    """Samples from here to the end of the `with`, at once and then every `period_s`. `gpus`: as CUDA_VISIBLE_DEVICES
    names them, those of the load; None: every visible one."""
    with device.opened(None if gpus is None else ",".join(map(str, gpus))) as (nvml, handles):
        sampler = Sampler(period_s, nvml, handles)
        thread = threading.Thread(target=sampler.run, name="telemetry", daemon=True)
        thread.start()
        try:
            yield sampler
        finally:
            sampler.stop.set()
            thread.join(STOP_S)


@dataclass
class Sampler:
    """What was seen so far. `summary` may be asked for at any time, and after the end."""

    period_s: float
    nvml: Any  # None where there is none
    handles: list
    stop: threading.Event = field(default_factory=threading.Event)
    gpus: list[list[Mapping[str, Any]]] = field(init=False)  # samples of each GPU
    indices: list[int | None] = field(init=False)  # NVML's
    host: list[tuple[float, int]] = field(default_factory=list)  # load of a minute, runnable threads
    cpu_times: list[tuple[int, int]] = field(default_factory=list)  # stolen and all, at the first and the last sample

    def __post_init__(self) -> None:
        self.gpus = [[] for _ in self.handles]
        self.indices = [_read(self.nvml, lambda nvml, gpu: nvml.nvmlDeviceGetIndex(gpu), one) for one in self.handles]

    def run(self) -> None:
        due = time.monotonic()
        while True:
            for handle, samples in zip(self.handles, self.gpus):
                samples.append(_look(self.nvml, handle))
            self.host += filter(None, [_load()])
            self.cpu_times[1:] = filter(None, [_cpu_times()])
            due = max(due + self.period_s, time.monotonic())  # what was missed is not made up for
            if self.stop.wait(due - time.monotonic()):
                return

    def summary(self) -> dict[str, Any]:
        """`{period_s, gpus, gpu_problem, host}`. Per GPU n, min, median and max of each reading, the clocks' while it
        had work, and the share of samples of each throttle reason; what could not be read is None."""
        gpus = [_of_gpu(index, list(samples)) for index, samples in zip(self.indices, self.gpus)]
        return {
            "period_s": self.period_s,
            "gpus": gpus or None,
            "gpu_problem": None if gpus else "no GPU that NVML can see",
            "host": self._of_host(),
        }

    def _of_host(self) -> dict[str, Any]:
        times, host = list(self.cpu_times), list(self.host)
        (stolen, spent) = (last - first for first, last in zip(times[0], times[-1])) if times else (0, 0)
        return {
            "n": len(host),
            "cores": os.cpu_count(),
            "load_1min": _spread([load for load, _ in host]),
            "runnable": _spread([runnable for _, runnable in host]),
            "stolen_share": stolen / spent if spent else None,
        }


def problems(summary: Mapping[str, Any]) -> list[str]:
    """What in a summary makes times hard to trust, a line each; none where all was well."""
    return [
        *(line for gpu in summary["gpus"] or () for line in _of_a_gpu(gpu)),
        *_of_the_host(summary["host"]),
    ]


def _of_a_gpu(gpu: Mapping[str, Any]) -> Iterator[str]:
    name = f"GPU {gpu['index']}"
    for reason, share in (gpu["throttle_reasons"] or {}).items():
        if reason in HARMFUL:
            yield f"{name}: {HARMFUL[reason]} in {share:.0%} of the samples"
    if clock := gpu["sm_clock_mhz"]:
        moved = (clock["max"] - clock["min"]) / clock["median"] if clock["median"] else 0
        if moved > CLOCK_MOVES:
            yield (
                f"{name}: SM clock between {clock['min']:.0f} and {clock['max']:.0f} MHz while it had work, "
                f"{moved:.0%} of its median; more than {CLOCK_MOVES:.0%}"
            )


def _of_the_host(host: Mapping[str, Any]) -> Iterator[str]:
    runnable, cores = host["runnable"], host["cores"]
    if runnable and cores and runnable["median"] > cores:
        yield f"host: {runnable['median']:g} threads wanted its {cores} cores (median); other programs took their time"
    if host["stolen_share"] is not None and host["stolen_share"] > STOLEN:
        yield f"host: {host['stolen_share']:.0%} of its CPU time was taken by other virtual machines"


def _look(nvml: Any, handle: Any) -> dict[str, Any]:
    """One sample of a GPU. It never raises: a sample that fails must not end the others."""
    found = {name: _read(nvml, reading, handle) for name, reading in READINGS.items()}
    reasons = _read(nvml, _reasons, handle)
    return {**found, "reasons": None if reasons is None else [name for bit, name in REASONS.items() if reasons & bit]}


def _reasons(nvml: Any, handle: Any) -> int:
    try:
        return nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except (AttributeError, nvml.NVMLError):  # a binding or a driver that knows it by its old name
        return nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)


def _read(nvml: Any, reading: Callable[[Any, Any], Any], handle: Any) -> Any:
    try:
        return reading(nvml, handle)
    except nvml.NVMLError:  # not supported here, or the GPU fell off the bus
        return None


def _of_gpu(index: int | None, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = [sample["reasons"] for sample in samples if sample["reasons"] is not None]
    working = [sample for sample in samples if IDLE not in (sample["reasons"] or ())]
    counts = Counter(reason for reasons in known for reason in reasons)
    return {
        "index": index,
        "n": len(samples),
        **{name: _spread([sample[name] for sample in (working if name in CLOCKS else samples)]) for name in READINGS},
        "throttle_reasons": {reason: count / len(known) for reason, count in counts.items()} if known else None,
    }


def _spread(values: Sequence[float | None]) -> dict[str, float] | None:
    values = [value for value in values if value is not None]
    return {"min": min(values), "median": median(values), "max": max(values)} if values else None


def _load() -> tuple[float, int] | None:
    """Load average of a minute, and how many threads want to run now, without this one that asks. See proc(5)."""
    try:
        one, _, _, threads, _ = Path("/proc/loadavg").read_text().split()
    except (OSError, ValueError):
        return None
    return float(one), max(int(threads.partition("/")[0]) - 1, 0)


def _cpu_times() -> tuple[int, int] | None:
    """Stolen CPU time and all of it, in ticks since the host's start. See /proc/stat in proc(5)."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, idle, waiting, irq, softirq, stolen = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return stolen, user + nice + system + idle + waiting + irq + softirq + stolen
