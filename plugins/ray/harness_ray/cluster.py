"""The cluster: reached or started, its nodes asked what they are. Nodes that differ are no one device."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import harness
from harness.device import Device
from harness.errors import UsageError
from harness.serde import from_json
from harness_ray import seat
from harness_ray.choices import Choices

ANSWER_S = 120.0  # for a node to start a process and look around
REACH_S = 10.0
LOOK_S = 1.0  # between two looks at the nodes


@dataclass(frozen=True)
class Node:
    """As Ray sees it."""

    id: str
    address: str
    cpus: float
    gpus: float
    kinds: tuple[str, ...]  # of its GPUs, in Ray's words


def connect(choices: Choices) -> None:
    """Once per process. Raises UsageError where no cluster answers."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that is started here
    _reach(choices.address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=choices.address, log_to_driver=False, logging_level="CRITICAL")
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        words = " ".join(str(error).split())[:300]
        raise UsageError(f"no Ray cluster at {choices.address or 'this machine'}: {words}") from error
    finally:
        if signal.getsignal(signal.SIGTERM) is not handler:  # Ray's own; a stop is ours to be orderly about
            signal.signal(signal.SIGTERM, handler)
    _hush()


def nodes(choices: Choices) -> list[Node]:
    """Those that are alive and take loads: where any has GPUs, those that have; of the kind that was chosen."""
    alive = [_node(row) for row in ray.nodes() if row["Alive"]]
    with_gpus = [node for node in alive if node.gpus]
    if not choices.gpu:
        return with_gpus or [node for node in alive if node.cpus]
    return [node for node in with_gpus if choices.gpu in node.kinds]


def device(choices: Choices) -> Device:
    """The one device of all nodes that take loads. Raises UsageError where they differ or cannot be asked."""
    connect(choices)
    found = nodes(choices)
    if not found:
        kinds = sorted({kind for row in ray.nodes() for kind in _node(row).kinds})
        here = f"no node with gpu={choices.gpu}; it has {', '.join(kinds) or 'none'}" if choices.gpu else "no node"
        raise UsageError(f"the Ray cluster has {here} that could take a load")
    return common({node.address: _here(node, answer) for node, answer in zip(found, _ask(found))}, choices)


@dataclass
class Patience:
    """Of a load that waits for its place. Others may have it for hours; but a node that could hold it must be there."""

    choices: Choices
    num_gpus: int
    num_cpus: int
    looked: float = field(default_factory=time.monotonic)
    seen: float = field(default_factory=time.monotonic)  # when such a node was last there

    def problem(self) -> str | None:
        now = time.monotonic()
        if now - self.looked < LOOK_S:
            return None
        self.looked = now
        if any(node.gpus >= self.num_gpus and node.cpus >= self.num_cpus for node in nodes(self.choices)):
            self.seen = now
        if now - self.seen < self.choices.wait:
            return None
        what = f"{self.num_gpus} GPUs and " if self.num_gpus else ""
        return f"no node of the Ray cluster has {what}{self.num_cpus} cores, for {self.choices.wait:g} s now"


def common(devices: Mapping[str, Device], choices: Choices) -> Device:
    """What is true of the device of every node, None where they disagree. Raises UsageError for nodes that differ."""
    found = list(devices.values())
    is_gpu = found[0].kind == "cuda"
    if len({(each.kind, each.name, each.sm, each.flags) for each in found}) > 1:
        listed = ", ".join(f"{address} has {each.name}" for address, each in sorted(devices.items()))
        choose = "choose a kind with --launcher-option gpu=NAME" if is_gpu else "a run needs equal ones"
        raise UsageError(f"the cluster's nodes differ: {listed}; the records of a run are of one device: {choose}")
    counts = [each.count for each in found]
    return replace(
        found[0],
        count=max(counts) if is_gpu else min(choices.cpus or min(counts), *counts),
        memory_bytes=min((each.memory_bytes for each in found if each.memory_bytes), default=None),
        driver=_same(each.driver for each in found),
        power_limit_w=_same(each.power_limit_w for each in found),
    )


def _same(values: Iterable[Any]) -> Any:
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _node(row: dict[str, Any]) -> Node:
    resources = row.get("Resources") or {}
    kinds = tuple(name.partition(":")[2] for name in resources if name.startswith("accelerator_type:"))
    gpus = resources.get("GPU", 0.0)
    return Node(row["NodeID"], row["NodeManagerAddress"], resources.get("CPU", 0.0), gpus, kinds if gpus else ())


def _ask(found: list[Node]) -> list[dict[str, Any]]:
    """What each node says of itself. Raises UsageError for one that does not answer or has another harness."""
    look = ray.remote(num_cpus=0, max_retries=0)(seat.look)
    pinned = [NodeAffinitySchedulingStrategy(node.id, soft=False) for node in found]
    asked = [look.options(scheduling_strategy=where).remote() for where in pinned]
    answers = []
    for node, reference in zip(found, asked):
        try:
            answer = json.loads(ray.get(reference, timeout=ANSWER_S))
        except (ray.exceptions.RayError, RuntimeError) as error:
            words = str(error).strip().splitlines()[-1]
            raise UsageError(f"Ray node {node.address} has no harness {harness.__version__}: {words[:300]}") from error
        if answer["version"] != harness.__version__:
            theirs = f"harness {answer['version']}, here it is {harness.__version__}"
            raise UsageError(f"Ray node {node.address} has {theirs}: install one version everywhere")
        answers.append(answer)
    return answers


def _here(node: Node, answer: dict[str, Any]) -> Device:
    """As many GPUs or cores as Ray may give away there."""
    found = from_json(Device, answer["device"])
    offered = int(node.gpus if found.kind == "cuda" else node.cpus)
    return replace(found, count=max(min(found.count, offered), 1))


def _reach(address: str | None) -> None:
    """Ray itself would try for minutes. Raises UsageError where nobody listens."""
    host, colon, port = (address or "").rpartition(":")
    if not colon:  # a word of Ray's, such as auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UsageError(f"no Ray cluster at {address}: {error}") from error


def _hush() -> None:
    """Ray prints what befalls the cluster, with a node's log, on the driver's stdout, which is for tables and JSON. What
    befalls our loads is in their records."""
    from ray._private import worker

    worker.print_worker_logs = lambda *_: None
