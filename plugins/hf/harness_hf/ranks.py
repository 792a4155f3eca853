"""Tensor parallelism: rank 0 measures, and each further rank is a process that does what rank 0 does.

    python -m harness_hf.ranks RANK PORT    # the load, then calls, a line of JSON each on stdin; a line of answer to each

transformers cuts the model by its own plans (harness_hf.checkpoint). Every call of a session is made on all ranks, which
meet before it, so that none is timed waiting for another to begin; afterwards what they found must be the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from harness import BadOutput, Generation, Load, Logits, Sampling, Unsupported
from harness.errors import CellError
from harness.failures import is_out_of_memory
from harness.provenance import PLAIN
from harness.serde import from_json, to_json
from harness_hf.session import HfSession

HOST = "127.0.0.1"
READY, FAILED = "ready", "failed: "
WATCH_S = 0.5
END_S = 5.0  # for a rank to end of its own accord
LOST_S = 10.0  # for rank 0 to notice by itself that another has ended; NCCL would wait for ten minutes
PR_SET_PDEATHSIG = 1


class RankEnded(RuntimeError):
    """A further rank is no more."""


class Ranks:
    """All ranks as one session; see harness.engine.Session. Raises Unsupported for what cannot be cut here; after any
    other error all further ranks are gone, and only `close` is left."""

    def __init__(self, load: Load) -> None:
        _refuse(load)
        self._ended = False
        store = dist.TCPStore(HOST, 0, load.setup.tp, is_master=True, wait_for_workers=False)
        self._others = [_started(rank, store.port, load) for rank in range(1, load.setup.tp)]
        threading.Thread(target=self._watch, daemon=True).start()
        with self._all_or_none():
            for rank in range(1, load.setup.tp):  # a rank that cannot start is not waited for in vain
                self._answer(rank)
            self._session = _joined(load, 0, store)
            parameters = [int(self._answer(rank)) for rank in range(1, load.setup.tp)]
        self._parameters = [self._session.parameters_here(), *parameters]

    def facts(self) -> dict[str, Any]:
        found = self._on_all("facts")
        return {**found, "ranks": len(self._parameters), "parameters_of_each_rank": self._parameters}

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Generation:
        return self._on_all("generate", prompts, output_len)

    def generate_logits(
        self, prompts: Sequence[Sequence[int]], output_len: int, top: int
    ) -> list[tuple[tuple[int, ...], Logits]]:
        return self._on_all("generate_logits", prompts, output_len, top)

    def sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[tuple[int, ...]]:
        return self._on_all("sample", prompts, sampling)

    def score(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[float]]:
        yield from self._on_all("score", sequences)

    def score_logits(self, sequences: Sequence[Sequence[int]], top: int) -> Iterator[Logits]:
        with self._all_or_none():
            self._call("score_logits", sequences, top)
            pieces = self._session.score_logits(sequences, top)
            with contextlib.suppress(GeneratorExit):  # the others go to the end, whether the caller does or not
                for piece in pieces:
                    yield piece
            self._compare(_agreed("score_logits", pieces))

    def recording(self, profiler: str, folder: Path) -> AbstractContextManager[None]:
        """Of rank 0; below nsys, which follows processes, of all."""
        return self._session.recording(profiler, folder)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
        self._session = None  # the group goes with its processes: to end it, NCCL waits for graphs that hold its sums
        self._end()

    def _on_all(self, name: str, *args: Any) -> Any:
        with self._all_or_none():
            self._call(name, *args)
            found = getattr(self._session, name)(*args)
            found = list(found) if name == "score" else found
            self._compare(_agreed(name, found))
        return found

    def _call(self, name: str, *args: Any) -> None:
        for other in self._others:
            _send(other, (name, args))
        dist.barrier()

    def _compare(self, agreed: str) -> None:
        differing = [rank for rank in range(1, len(self._parameters)) if self._answer(rank) != agreed]
        if differing:
            raise BadOutput(f"ranks {', '.join(map(str, differing))} found something else than rank 0")

    def _answer(self, rank: int) -> str:
        """Its next line. Raises RankEnded with its last words, or how it ended."""
        other = self._others[rank - 1]
        line = other.stdout.readline().decode().rstrip("\n")
        if line.startswith(FAILED):
            raise RankEnded(f"rank {rank} {line}")
        if not line:
            status = other.wait()
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            raise RankEnded(f"rank {rank} {how}")
        return line

    @contextlib.contextmanager
    def _all_or_none(self) -> Iterator[None]:
        """A rank that fails takes all with it, and the error raised is its own: the others only lost their connection."""
        try:
            yield
        except Exception as error:
            try:
                if not isinstance(error, (CellError, RankEnded)) and not is_out_of_memory(str(error)):
                    self._blame()
            finally:
                self._end()
            raise

    def _blame(self) -> None:
        """Raises RankEnded for a rank that has ended, if one has: a lost connection is noticed first."""
        deadline = time.monotonic() + END_S
        while time.monotonic() < deadline:
            for rank, other in enumerate(self._others, 1):
                while other.poll() is not None:  # until there is no answer left
                    self._answer(rank)
            time.sleep(0.05)

    def _watch(self) -> None:
        """Ends this process where it still waits for a rank that is no more: nothing else interrupts a collective."""
        while not self._ended:
            time.sleep(WATCH_S)
            if any(other.poll() is not None for other in self._others):
                time.sleep(LOST_S)
                break
        if not self._ended:
            print("a rank ended, and rank 0 waits for it", file=sys.stderr, flush=True)
            os._exit(3)

    def _tell_the_end(self) -> None:
        for other in self._others:
            with contextlib.suppress(OSError):  # what was not yet sent
                other.stdin.close()

    def _end(self) -> None:
        self._ended = True
        self._tell_the_end()
        for other in self._others:
            try:
                other.wait(END_S)
            except subprocess.TimeoutExpired:
                other.kill()
                other.wait()


def follow(rank: int, port: int) -> None:
    """What a further rank does until its stdin ends. Ends the process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # in the middle of a collective, too
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # whatever is printed goes to the log

    def say(line: object) -> None:
        print(line, file=answers, flush=True)

    try:
        load = from_json(Load, json.loads(calls.readline()))
        say(READY)
        session = _joined(load, rank, dist.TCPStore(HOST, port, load.setup.tp, is_master=False))
        say(session.parameters_here())
        for name, args in map(json.loads, calls):
            args = [args[0], from_json(Sampling, args[1])] if name == "sample" else args
            dist.barrier()
            say(_agreed(name, getattr(session, name)(*args)))
        os._exit(0)
    except BaseException as error:
        traceback.print_exception(error)
        say(FAILED + " ".join(f"{type(error).__name__}: {error}".split()))
        os._exit(3)


def _refuse(load: Load) -> None:
    setup = load.setup
    if setup.precision not in PLAIN:
        raise Unsupported(f"--tp {setup.tp}: the hf engine cuts bf16 and fp32, not {setup.precision}")
    if importlib.util.find_spec("accelerate") is None:
        raise Unsupported("--tp: transformers cuts a model only where accelerate is installed: pip install accelerate")
    if torch.cuda.is_available() and torch.cuda.device_count() < setup.tp:
        raise Unsupported(f"--tp {setup.tp}: PyTorch sees {torch.cuda.device_count()} GPUs")


def _started(rank: int, port: int, load: Load) -> subprocess.Popen:
    command = [sys.executable, "-m", "harness_hf.ranks", str(rank), str(port)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    _send(other, load)
    return other


def _send(other: subprocess.Popen, what: Any) -> None:
    other.stdin.write(json.dumps(to_json(what)).encode() + b"\n")
    other.stdin.flush()


def _joined(load: Load, rank: int, store: dist.Store) -> HfSession:
    """This rank's part of the model, in a group of all ranks. On a CPU they share its cores."""
    os.environ["LOCAL_RANK"] = str(rank)  # which GPU transformers takes
    place: dict[str, Any] = {"backend": "gloo"}
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        place = {"backend": "nccl", "device_id": torch.device("cuda", rank)}
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // load.setup.tp))
    dist.init_process_group(store=store, rank=rank, world_size=load.setup.tp, **place)
    return HfSession(load)


def _agreed(name: str, found: Any) -> str:
    """Of an answer what must be the same on all ranks: tokens, log-probabilities, what the model is. Takes all of it."""
    if name == "score":
        found = list(found)
    if name == "score_logits":
        found = sum(0 for _ in found)  # too many to keep
    if name == "generate":
        found = [response.token_ids for response in found.responses]
    if name == "generate_logits":
        found = [token_ids for token_ids, _ in found]
    if name == "facts":
        found = [found["parameters"], found["layers"], found["kv_dtype"], sorted(found["rungs_in_force"])]
    return hashlib.sha256(repr(found).encode()).hexdigest()


if __name__ == "__main__":
    follow(int(sys.argv[1]), int(sys.argv[2]))
