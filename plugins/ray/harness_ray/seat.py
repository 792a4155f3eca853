"""What runs inside Ray's own process on a node: starts the host of a load there, and hands on what it says.

Nothing but JSON text and bytes crosses. The host is a process of its own, because Ray kills the children of an actor
that ends, and only those: the host's death is what the supervisor of the worker below it waits for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import ray

CHUNK = 1 << 20  # bytes of a log or a trace at once
UNDER_WAY = 16  # answers on their way to the driver, at most


def look() -> str:
    """What this node is, as JSON: `version` of its harness and `device`."""
    import harness
    from harness import device
    from harness.serde import to_json

    hidden = os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides all GPUs from one who asks for none
    try:
        return json.dumps({"version": harness.__version__, "device": to_json(device.detect())})
    finally:
        if hidden is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden


class Seat:
    """An actor, for one load. `stop` is called while `run` goes on."""

    def __init__(self) -> None:
        self._change = threading.Lock()
        self._is_stopped = False
        self._host: subprocess.Popen | None = None

    @ray.method(num_returns="streaming", _generator_backpressure_num_objects=UNDER_WAY)
    def run(self, order: str, drop: str) -> Iterator[str | bytes]:
        """The host's lines; one that has a `size` is followed by so many bytes. `drop`: variables Ray set, not we."""
        yield json.dumps({"seated": os.uname().nodename})
        with self._change:
            if self._is_stopped:
                return
            self._host = subprocess.Popen(
                [sys.executable, "-m", "harness_ray.host"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={name: value for name, value in os.environ.items() if name not in drop.split()}
                | {"PYTHONSAFEPATH": "1"},
            )
            try:
                self._host.stdin.write(order.encode() + b"\n")
                self._host.stdin.flush()  # and stays open: it is the host's lifeline
            except BrokenPipeError:
                pass  # its exit status says more
        for line in self._host.stdout:
            yield line.decode()
            left = json.loads(line).get("size", 0)
            while left:
                chunk = self._host.stdout.read(min(left, CHUNK))
                if not chunk:
                    return
                left -= len(chunk)
                yield chunk
        yield json.dumps({"ended": self._host.wait()})

    def stop(self) -> None:
        """The host ends what runs, and `run` with it."""
        with self._change:
            self._is_stopped = True
            if self._host:
                self._host.stdin.close()
