"""Workers on the nodes of a Ray cluster: each load is one actor, on the node that Ray finds for it.

driver (harness run)      a node                       its engine's own interpreter
launcher.Cluster   <->   seat.Seat (Ray actor)   <->   host, which runs harness.working.worker
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from harness.hookspecs import hookimpl
from harness.launcher import Launcher, LauncherSpec

if TYPE_CHECKING:
    from harness.device import Device


@hookimpl
def harness_register_launchers() -> list[LauncherSpec]:
    return [
        LauncherSpec(
            name="ray",
            summary="the nodes of a Ray cluster: each load gets GPUs, or cores, of one of them",
            open=open_ray,
            device=device,
        )
    ]


def open_ray(device: Device, workers: int, options: Mapping[str, str]) -> AbstractContextManager[Launcher]:
    """Raises UsageError for an option it does not know, and where there is no cluster."""
    from harness_ray import launcher

    return launcher.opened(device, workers, options)


def device(options: Mapping[str, str]) -> Device:
    """Of the cluster's nodes. Raises UsageError, for nodes that differ, too."""
    from harness_ray import choices, cluster

    return cluster.device(choices.parse(options))
