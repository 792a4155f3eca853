"""Bad luck on request: the ways an engine can misbehave, for the tests of the harness. No part of the example.

    ECHO_SIN=segfault:fp8:generate,nan:score harness run --engine echo ...

A comma list of sins. The words after a sin say when: each must be the precision or the place, which is one of
load, facts, generate, score and close. Without words it happens everywhere.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness import Generation, Session


def exhaust_memory() -> None:
    """To the last page: whoever handles this MemoryError has no memory either, unless it frees this frame."""
    resource.setrlimit(resource.RLIMIT_AS, (256 << 20, resource.RLIM_INFINITY))
    hoard, size = [], 16 << 20
    while True:
        try:
            hoard.append(bytearray(size))
        except MemoryError:
            size //= 2
            if size < 512:
                raise


def chatter() -> None:
    """What would break a harness that reads its workers' stdout."""
    for stream in (sys.stdout, sys.stderr):
        print(
            '{"event": "done"}\n{"event": "failed", "failure_class": "timeout", "message": "CUDA out of memory"}',
            file=stream,
        )
    os.write(1, b"\x00\xff\xfe[/bold]" + b"x" * 100_000)  # no newline, and no UTF-8
    os.write(2, b'{"event": "measured", "cell": 0, "results": {}')


def fill_disk() -> None:
    """The log is on the disk of the records."""
    try:
        while os.write(1, bytes(1 << 20)):
            pass
    except OSError:
        pass


def leave_session() -> None:
    """As a server that makes itself a daemon: out of the process group, and with nothing in its environment."""
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    subprocess.Popen(["sleep", "600"], start_new_session=True, env={})


def leave_orphan() -> None:
    """Forked twice, each in a session of its own; it never becomes another program, so it holds all that we hold."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        time.sleep(600)
    os._exit(0)


def raise_error() -> None:
    raise RuntimeError("the parrot\nis no more")


SINS = {
    "chatty": chatter,
    "exit": lambda: os._exit(0),
    "fill_disk": fill_disk,
    "hang": lambda: time.sleep(600),
    "leave_child": lambda: subprocess.Popen(["sleep", "600"]),
    "leave_orphan": leave_orphan,
    "leave_session": leave_session,
    "memory_limit": exhaust_memory,
    "raise": raise_error,
    "segfault": lambda: signal.raise_signal(signal.SIGSEGV),
    "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stuck": lambda: ctypes.PyDLL(None).pause(),  # a native call that never lets other Python threads run
    "sys_exit": lambda: sys.exit(0),
}
FACTS = {  # what facts() returns instead, given what it should
    "bare_facts": lambda facts: {},
    "no_facts": lambda facts: None,
    "lame": lambda facts: {**facts, "rungs_in_force": {}, "rungs_off": {"brisk": "its wings are clipped"}},
    "markup_facts": lambda facts: {**facts, "moe_backend": "[/bold]"},
    "wrong_facts": lambda facts: {**facts, "precision": "bf16"},
}


def punctual(generation: Generation, breath: float) -> Generation:
    """Tells the times of a machine that nothing disturbs: half a millisecond a token, and the breath before it."""
    step, started = round(1e9 * breath) + 500_000, generation.started_ns
    told = tuple(
        replace(one, token_ns=tuple(started + step * at for at in range(1, 1 + len(one.token_ns))))
        for one in generation.responses
    )
    return replace(generation, finished_ns=max(one.token_ns[-1] for one in told), responses=told)


def tempted(session: Session, precision: str) -> Session:
    """The session itself when ECHO_SIN is not set, else one that sins."""
    return Sinner(session, precision) if os.environ.get("ECHO_SIN") else session


class Sinner:
    def __init__(self, session: Session, precision: str) -> None:
        self._session, self._precision = session, precision
        self._commit("load")

    def _commit(self, place: str) -> set[str]:
        """Commits the sins that are due here; returns their names, for those that falsify an answer."""
        asked = [sin.split(":") for sin in os.environ["ECHO_SIN"].split(",")]
        due = [name for name, *words in asked if {self._precision, place}.issuperset(words)]
        for name in due:
            SINS.get(name, lambda: None)()
        return set(due)

    def facts(self) -> Any:
        facts = self._session.facts()
        for name in self._commit("facts").intersection(FACTS):
            facts = FACTS[name](facts)
        return facts

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Generation:
        due = self._commit("generate")
        generation = self._session.generate(prompts, output_len - ("short" in due))
        return punctual(generation, self._session.breath) if "punctual" in due else generation

    def score(self, sequences: Sequence[Sequence[int]]) -> Iterator[Sequence[float]]:
        is_nan = "nan" in self._commit("score")
        for values in self._session.score(sequences):
            yield [math.nan] * len(values) if is_nan else values

    def close(self) -> None:
        self._commit("close")
        self._session.close()
