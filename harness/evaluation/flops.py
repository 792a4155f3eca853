"""The interface of kernel FLOP ratio providers: which share of a model's arithmetic runs in hand-written kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class KernelFlops:
    """What a provider counted, in multiply-accumulates (one MAC is two FLOPs, so the ratio is the same)."""

    kernel_macs: int
    total_macs: int  # includes kernel_macs
    sources: tuple[str, ...] = ()  # what was read, e.g. file names
    notes: tuple[str, ...] = ()  # what is not in the counts, in words; nothing is left out in silence

    @property
    def ratio(self) -> float | None:
        """None when nothing was counted: 0 of 0 says nothing."""
        return self.kernel_macs / self.total_macs if self.total_macs else None


@dataclass(frozen=True)
class KernelFlopProvider:
    """`ratio` is given what the user points at (a file or a folder) and raises UsageError when it cannot read that."""

    name: str
    summary: str
    ratio: Callable[[Path], KernelFlops]
