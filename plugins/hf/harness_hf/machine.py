"""What a rung changes of the process: the cores it runs on, TF32."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from harness import device

PCI, NODES = Path("/sys/bus/pci/devices"), Path("/sys/devices/system/node")


def allow_tf32() -> None:
    """TF32 for FP32 products and cuDNN; products of BF16 values are not touched."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def bind_to_gpu() -> frozenset[int] | None:
    """Keeps the process on the cores of the first GPU's NUMA node; None where the system does not say which those are,
    or none of them is this process's."""
    with device.opened() as (nvml, handles):
        bus = nvml.nvmlDeviceGetPciInfo(handles[0]).busId if handles else None
    cores = cores_beside(bus.decode() if isinstance(bus, bytes) else bus) if bus else None
    ours = os.sched_getaffinity(0) & cores if cores else None
    if not ours:
        return None
    os.sched_setaffinity(0, ours)
    return cores


def cores_beside(bus: str, pci: Path = PCI, nodes: Path = NODES) -> frozenset[int] | None:
    """Of the NUMA node of a PCI device, named as NVML does ("00000000:1B:00.0")."""
    domain, _, rest = bus.lower().partition(":")
    try:
        node = int((pci / f"{domain[-4:]}:{rest}" / "numa_node").read_text())
        words = (nodes / f"node{node}" / "cpulist").read_text().strip() if node >= 0 else ""
    except (OSError, ValueError):
        return None
    spans = [word.partition("-") for word in words.split(",") if word]
    return frozenset(core for first, _, last in spans for core in range(int(first), int(last or first) + 1)) or None
