"""What this machine computes with, found without torch: NVIDIA GPUs through NVML, else the CPU and its vector flags."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Device:
    kind: str  # "cuda" or "cpu"
    name: str
    count: int  # GPUs visible, or CPU cores this process may use
    memory_bytes: int | None  # of one GPU, or of the host
    sm: int | None = None  # compute capability, e.g. 90; None on a CPU
    driver: str | None = None
    power_limit_w: float | None = None  # of one GPU, as it is enforced now
    flags: tuple[str, ...] = ()  # CPU only

    @property
    def label(self) -> str:
        """The device in a file name: `sm90` or `cpu`."""
        return f"sm{self.sm}" if self.sm else "cpu"


def detect() -> Device:
    return _first_gpu() or _cpu()


def gpu_memory_used() -> int | None:
    """Bytes in use on the first visible GPU, by every process; None without a GPU."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        handles = _visible(nvml)
        return nvml.nvmlDeviceGetMemoryInfo(handles[0]).used if handles else None


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


def _visible(nvml) -> list:
    """GPU handles in the order CUDA would give them. NVML itself does not read CUDA_VISIBLE_DEVICES."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
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
