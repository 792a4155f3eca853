"""One load on a node: runs it as the local launcher does, and says what comes of it in lines of JSON on stdout.

    PYTHON -m harness_ray.host      # the order arrives as one JSON line on stdin, which stays open as a lifeline

A line that has a `size` is followed by so many bytes: the log, or a file of a profile. They leave when the load is
done, not while something is timed.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import harness
from harness import device
from harness.cells import InputFile, Load
from harness.launcher import Control, Job, Stopped
from harness.launchers.local import open_local
from harness.serde import from_json, to_json

POLL_S = 0.2
PACKAGE = Path(harness.__file__).parent  # holds the embedded model

Send = Callable[..., None]


def main() -> int:
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else prints does so in Ray's log
    order = json.loads(sys.stdin.buffer.readline())
    stop = threading.Event()
    threading.Thread(target=_await_end, args=(stop,), daemon=True).start()

    def send(content: bytes | Path = b"", **line: Any) -> None:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        output.write(json.dumps({**line, **({"size": size} if size else {})}, allow_nan=False).encode() + b"\n")
        if isinstance(content, Path):
            _copy(content, size, output)
        else:
            output.write(content)
        output.flush()

    with tempfile.TemporaryDirectory(prefix="harness-ray-", ignore_cleanup_errors=True) as folder:
        try:
            serve(order, Path(folder), stop, send)
        except Stopped:
            send(stopped=True)
    return 0


def serve(order: Mapping[str, Any], folder: Path, stop: threading.Event, send: Send) -> None:
    """Sends `refused`, or every `event` and `outcome`, then the files. Raises Stopped when nothing of it runs."""
    here = device.detect()
    load = _moved(order, folder)
    python = _python(order)
    if why_not := _refusal(order, here, load, python):
        send(refused=why_not)
        return
    numbers = {id(cell): number for number, cell in enumerate(load.cells)}
    profiled: list[dict[str, Any]] = []

    def tell(part: Load, event: dict[str, Any]) -> None:
        if "cell" in event:
            event = {**event, "cell": numbers[id(part.cells[event["cell"]])]}
        if event["event"] == "profiled":
            profiled.append(event)  # told when its files have come home
            send(profiled=event["cell"])
        else:
            send(event=event)

    job = Job(load, python, folder / "log", order["timeout"])
    job.log.touch()
    control = Control(tell, stop)
    try:
        with _cores(order["cores"], stop), open_local(here, 1, {}) as local:
            if order["apart"]:
                send(problem=local.profile(job, control))
            else:
                for cell, outcome in local.run(job, control):
                    send(cell=numbers[id(cell)], outcome=to_json(outcome))
    finally:
        send(job.log, log=True)
        for number, path in enumerate(load.profiles):
            for file in sorted(Path(path).parent.glob("*")):
                if file.is_file() and not file.is_symlink():
                    send(file, file=file.name, of=number)
        for event in profiled:
            send(event=event)


def _await_end(stop: threading.Event) -> None:
    """Of stdin: whoever started this process closed it, or is gone."""
    while os.read(0, 1):  # not through sys.stdin, whose lock this thread would hold when the interpreter ends
        pass
    stop.set()


def _moved(order: Mapping[str, Any], folder: Path) -> Load:
    """The load with its token ids and profiles in a folder of this node, and the embedded model where it is here."""
    load = from_json(Load, order["load"])
    files: list[InputFile] = []
    for number, (file, content) in enumerate(zip(load.inputs, order["inputs"])):
        if content is not None:
            (folder / f"{number}.json").write_text(content, encoding="utf-8")
            file = replace(file, path=str(folder / f"{number}.json"))
        files.append(file)
    profiles = []
    for number, path in enumerate(load.profiles):
        (folder / f"profile-{number}").mkdir()
        profiles.append(str(folder / f"profile-{number}" / Path(path).name))
    path = load.setup.path
    if Path(path).is_relative_to(order["package"]):
        path = str(PACKAGE / Path(path).relative_to(order["package"]))
    return replace(load, setup=replace(load.setup, path=path), inputs=tuple(files), profiles=tuple(profiles))


def _python(order: Mapping[str, Any]) -> str:
    """Of the engine: the one named; where that is the driver's own, ours."""
    return order["python"] or sys.executable


def _refusal(order: Mapping[str, Any], here: device.Device, load: Load, python: str) -> str | None:
    node = os.uname().nodename
    if harness.__version__ != order["version"]:
        return f"node {node} has harness {harness.__version__}, not {order['version']}: install one version everywhere"
    if (here.kind, here.name) != (order["device"]["kind"], order["device"]["name"]):
        return f"node {node} is {here.name}, the run is of {order['device']['name']}"
    if not os.access(python, os.X_OK):
        return f"node {node} has no {python}: --launcher-option python.{load.setup.engine}=PATH names one that it has"
    source = load.setup.source
    if os.path.isabs(source) and not os.path.exists(source):
        return f"node {node} has no {source}: put it where every node sees it, or name the model by its hub id"
    return None


@contextmanager
def _cores(count: int | None, stop: threading.Event) -> Iterator[None]:
    """So many cores of this machine, which no other load on Ray has; None or as many as there are: no matter which."""
    if not hasattr(os, "sched_setaffinity") or not count or count >= len(os.sched_getaffinity(0)):
        yield
        return
    while not (held := _claimed(count)):
        if stop.wait(POLL_S):
            raise Stopped
    try:
        os.sched_setaffinity(0, held.keys())
        yield
    finally:
        for file in held.values():
            file.close()


def _claimed(count: int) -> dict[int, IO]:
    """So many cores and their locks; none at all where others hold too many, or two would wait for each other."""
    held: dict[int, IO] = {}
    for core in sorted(os.sched_getaffinity(0)):
        if file := _locked(core):
            held[core] = file
        if len(held) == count:
            return held
    for file in held.values():
        file.close()
    return {}


def _locked(core: int) -> IO | None:
    """The kernel lets go of the lock when its holder dies."""
    path = Path(tempfile.gettempdir()) / f"harness-core-{core}.lock"
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _copy(path: Path, size: int, output: IO[bytes]) -> None:
    """Exactly `size` bytes: a log may still grow, or be cut."""
    with path.open("rb") as file:
        while size:
            chunk = file.read(min(size, 1 << 20)) or bytes(min(size, 1 << 20))
            output.write(chunk)
            size -= len(chunk)


if __name__ == "__main__":
    sys.exit(main())
