"""Where the engine lives: in this process, or in one it spawns; then only requests and answers go between."""

from __future__ import annotations

import multiprocessing
import queue
import sys
import threading
from typing import Any

from trtllm_double import Era
from trtllm_double.outputs import RequestOutput, now


class GenerationExecutorWorker:
    """In this process: the model can be walked, at `engine.model_engine.model`."""

    def __init__(self, args: Any, era: Era) -> None:
        from trtllm_double.engine import Engine  # here and not above: only who has the model pays for transformers

        print("[TRT-LLM] [I] Using single process worker for TP1", flush=True)
        self.engine = Engine(args, era)
        self._inbox: queue.SimpleQueue = queue.SimpleQueue()
        self._waiting: dict[int, RequestOutput] = {}
        give = lambda number, found: self._waiting.pop(number).answer(found)  # noqa: E731
        self._thread = threading.Thread(target=self.engine.serve, args=(self._inbox, give), daemon=True)
        self._thread.start()

    def submit(self, output: RequestOutput, request: dict[str, Any]) -> None:
        self._waiting[output.request_id] = output
        self._inbox.put({**request, "arrival": now()})

    def cancel(self, number: int) -> None:
        self.engine.aborted.add(number)

    def shutdown(self) -> None:
        self._inbox.put(None)
        self._thread.join()


class GenerationExecutorProxy:
    """In processes of its own, one a rank; nothing of the model is here."""

    def __init__(self, args: Any, era: Era) -> None:
        context = multiprocessing.get_context("spawn")  # imports the main module anew, which therefore needs its guard
        self._pipe, theirs = context.Pipe()
        settings = args.model_dump(exclude_unset=True)
        self._ranks = [context.Process(target=_lead, args=(theirs, settings, era))]
        self._ends = []
        for _ in range(1, args.tensor_parallel_size):
            ours, other = context.Pipe()
            self._ends.append(ours)
            self._ranks.append(context.Process(target=_follow, args=(other,)))
        for rank in self._ranks:
            rank.start()
        theirs.close()
        self._waiting: dict[int, RequestOutput] = {}
        try:
            problem = self._pipe.recv()
        except EOFError:
            problem = RuntimeError("the worker ended before it was ready")
        if problem is not None:
            self._end()
            raise RuntimeError("Executor worker returned error") from problem
        threading.Thread(target=self._read, daemon=True).start()

    def submit(self, output: RequestOutput, request: dict[str, Any]) -> None:
        self._waiting[output.request_id] = output
        try:
            self._pipe.send(request)
        except OSError as error:
            raise RuntimeError("the engine's process is gone") from error

    def cancel(self, number: int) -> None:
        self._pipe.send(number)

    def shutdown(self) -> None:
        try:
            self._pipe.send(None)
        except OSError:
            pass
        self._end()

    def _read(self) -> None:
        try:
            while True:
                number, found = self._pipe.recv()
                self._waiting.pop(number).answer(found)
        except (EOFError, OSError):
            for output in list(self._waiting.values()):
                output.answer({"error": "the engine's process ended"})

    def _end(self) -> None:
        for end in self._ends:
            end.send(None)
        for rank in self._ranks:
            rank.join()


def _lead(pipe: Any, settings: dict[str, Any], era: Era) -> None:
    import tensorrt_llm  # prints, as in every process

    from trtllm_double.engine import Engine

    try:
        engine = Engine(tensorrt_llm.llmapi.llm_args.TorchLlmArgs(**settings), era)
    except Exception as error:
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
        return
    pipe.send(None)
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, inbox, engine), daemon=True).start()
    engine.serve(inbox, lambda number, found: pipe.send((number, found)))
    sys.stdout.flush()


def _receive(pipe: Any, inbox: queue.SimpleQueue, engine: Any) -> None:
    """A request, the number of one to abort, or None: the end."""
    message: Any = 0
    while message is not None:
        try:
            message = pipe.recv()
        except EOFError:
            message = None
        if isinstance(message, int):
            engine.aborted.add(message)
        else:
            inbox.put(message and {**message, "arrival": now()})


def _follow(pipe: Any) -> None:
    """Another rank: it is there, and waits for the end."""
    try:
        pipe.recv()
    except EOFError:
        pass
