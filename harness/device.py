"""What this machine computes with, found without torch: NVIDIA GPUs through NVML, else AWS Neuron devices, else the
CPU and its vector flags."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Instruction sets that decide which low-precision kernels a CPU has, by /proc/cpuinfo's names.
CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
    "sve",
)

DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg")  # the last is the GPU of Windows' Linux
NEURON_DEVICES = Path("/dev")  # holds neuron0, neuron1, ...
MACHINE = Path("/sys/devices/virtual/dmi/id/product_name")  # on EC2 the type, such as trn2.48xlarge


@dataclass(frozen=True)
class Device:
    kind: str  # "cuda", "neuron" or "cpu"
    name: str
    count: int  # GPUs visible, Neuron devices, or CPU cores this process may use
    memory_bytes: int | None  # of one GPU, or of the host
    sm: int | None = None  # compute capability, e.g. 90; None on a CPU
    driver: str | None = None
    power_limit_w: float | None = None  # of one GPU, as it is enforced now
    flags: tuple[str, ...] = ()  # CPU only

    @property
    def label(self) -> str:
        """The device in a file name: `sm90`, `trn2` or `cpu`."""
        return f"sm{self.sm}" if self.sm else self.name.partition(".")[0] if self.kind == "neuron" else "cpu"


def detect() -> Device:
    return _first_gpu() or _neuron() or _cpu()


def gpu_memory_used(gpus: str | None = None) -> int | None:
    """Bytes in use on the first of these GPUs (as CUDA_VISIBLE_DEVICES names them; None: of the visible ones), by every
    process; None without a GPU."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        handles = _visible(nvml, gpus)
        return nvml.nvmlDeviceGetMemoryInfo(handles[0]).used if handles else None


def visible_gpus() -> list[str]:
    """Each visible GPU, in a word that CUDA_VISIBLE_DEVICES takes."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    with _nvml() as nvml:
        count = len(_visible(nvml)) if nvml is not None else 0
    return [word.strip() for word in chosen.split(",")][:count] if chosen else [str(index) for index in range(count)]


def identities(gpus: str) -> list[str]:
    """The UUID of each of these GPUs (as CUDA_VISIBLE_DEVICES names them), whatever it is called there; the names
    themselves where NVML does not say."""
    names = [name.strip() for name in gpus.split(",") if name.strip()]
    with opened(gpus) as (nvml, handles):
        found = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
    return found if len(found) == len(names) else names


@contextmanager
def opened(gpus: str | None = None) -> Iterator[tuple[Any, list]]:
    """pynvml and a handle of each of these GPUs (see `gpu_memory_used`); None and no handle where there is no NVML."""
    with _nvml() as nvml:
        yield nvml, _visible(nvml, gpus) if nvml is not None else []


@contextmanager
def energy_counter() -> Iterator[Callable[[], int | None]]:
    """A function that reads what the visible GPUs have used so far, all together, in mJ; None where NVML does not say.
    NVML stays open between two readings: opening it takes longer than what is measured may."""
    with opened() as (nvml, handles):

        def energy_mj() -> int | None:
            try:
                return sum(map(nvml.nvmlDeviceGetTotalEnergyConsumption, handles)) if handles else None
            except nvml.NVMLError:  # older than Volta, or a virtual GPU
                return None

        yield energy_mj


def _first_gpu() -> Device | None:
    with _nvml() as nvml:
        handles = _visible(nvml) if nvml is not None else []
        if not handles:
            return None
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handles[0])
        return Device(
            kind="cuda",
            name=nvml.nvmlDeviceGetName(handles[0]),
            count=len(handles),
            memory_bytes=nvml.nvmlDeviceGetMemoryInfo(handles[0]).total,
            sm=major * 10 + minor,
            driver=nvml.nvmlSystemGetDriverVersion(),
            power_limit_w=_power_limit(nvml, handles[0]),
        )


def _power_limit(nvml, handle) -> float | None:
    try:
        return nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
    except nvml.NVMLError:  # some boards and virtual machines do not say
        return None


def _visible(nvml, chosen: str | None = None) -> list:
    """GPU handles in the order CUDA would give them. NVML itself does not read CUDA_VISIBLE_DEVICES."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES") if chosen is None else chosen
    if chosen is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    handles = []
    for part in chosen.split(","):
        try:
            part = part.strip()
            handles.append(
                nvml.nvmlDeviceGetHandleByIndex(int(part)) if part.isdigit() else nvml.nvmlDeviceGetHandleByUUID(part)
            )
        except nvml.NVMLError:  # CUDA, too, stops at the first device it cannot find
            break
    return handles


class _nvml:
    """NVML for the length of a `with`; None where there is no driver."""

    def __enter__(self):
        self.nvml = None
        if not any(map(os.path.exists, DRIVERS)):
            return None  # importing NVML's binding to be told so would take longer than all the rest
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # no driver library, no permission: each means "no GPU we can see"
            pass
        else:
            self.nvml = pynvml
        return self.nvml

    def __exit__(self, *error) -> None:
        if self.nvml is not None:
            self.nvml.nvmlShutdown()


def _neuron() -> Device | None:
    if not (count := len(list(NEURON_DEVICES.glob("neuron[0-9]*")))):
        return None
    machine = MACHINE.read_text().strip() if MACHINE.exists() else "neuron"
    return Device("neuron", os.environ.get("NEURON_PLATFORM_TARGET_OVERRIDE") or machine, count, None)


def _cpu() -> Device:
    name, flags = os.uname().machine, set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        name = fields.get("model name", name)
        flags = set(fields.get("flags", fields.get("Features", "")).split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        memory = None
    return Device("cpu", name, cores, memory, flags=tuple(flag for flag in CPU_FLAGS if flag in flags))
