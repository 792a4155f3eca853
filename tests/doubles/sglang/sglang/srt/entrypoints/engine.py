"""The engine: hands requests to a scheduler in a process of its own, and kills everything when that one fails."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from sglang.srt.managers.io_struct import GenerateReq, ProfileReq
from sglang.srt.managers.scheduler import run_scheduler_process
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.server_args import PortArgs, ServerArgs
from sglang.srt.utils import kill_process_tree
from sglang.version import __version__

logger = logging.getLogger(__name__)


class Engine:
    server_args_class = ServerArgs
    run_scheduler_process_func: Callable[..., None] = staticmethod(run_scheduler_process)

    def __init__(self, **kwargs: Any) -> None:
        if "server_args" in kwargs:
            server_args = kwargs["server_args"]
        else:
            kwargs.setdefault("log_level", "error")
            server_args = self.server_args_class(**kwargs)
        if not server_args.skip_tokenizer_init:
            raise NotImplementedError("the double has no tokenizer")
        self.server_args, self._is_running, self._states = server_args, False, {}
        atexit.register(self.shutdown)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGQUIT, server_args.custom_sigquit_handler or self._kill_all)
        else:
            logger.warning("Signal handler is not added because the engine is not in the main thread.")
        self._launch(server_args)

    @staticmethod
    def _kill_all(number: int, frame: object) -> None:
        logger.error("Received sigquit from a child process. It usually means the child failed.")
        kill_process_tree(os.getpid())

    def _launch(self, server_args: ServerArgs) -> None:
        context = multiprocessing.get_context("spawn")
        reader, writer = context.Pipe(duplex=False)
        self._requests, theirs = context.Pipe()
        arguments = (server_args, PortArgs(theirs), 0, 0, 0, None, writer)
        process = context.Process(target=self.run_scheduler_process_func, args=arguments)
        process.start()
        writer.close()
        theirs.close()
        try:
            info = reader.recv()
        except EOFError:
            process.join()
            code = process.exitcode
            raise RuntimeError(f"Rank 0 scheduler died during initialization (exit code: {code}).") from None
        self._scheduler_init_result = SimpleNamespace(scheduler_infos=[info], all_child_pids=[process.pid])

    def generate(
        self,
        prompt: Any = None,
        sampling_params: dict[str, Any] | None = None,
        input_ids: list[list[int]] | list[int] | None = None,
        image_data: Any = None,
        audio_data: Any = None,
        video_data: Any = None,
        return_logprob: bool | None = False,
        logprob_start_len: int | None = None,
        top_logprobs_num: int | None = None,
        token_ids_logprob: Any = None,
        lora_path: Any = None,
        custom_logit_processor: Any = None,
        return_hidden_states: bool = False,
        return_routed_experts: bool = False,
        stream: bool = False,
        rid: Any = None,
        session_params: Any = None,
        priority: int | None = None,
    ) -> Any:
        if prompt is not None or input_ids is None:
            raise ValueError("The engine initialized with skip_tokenizer_init=True cannot accept text prompts.")
        is_single = isinstance(input_ids[0], int)
        prompts = [input_ids] if is_single else input_ids
        sampling = SamplingParams(**(sampling_params or {}))
        sampling.verify()
        limit = self._scheduler_init_result.scheduler_infos[0]["max_req_input_len"]
        for ids in prompts:
            if not isinstance(ids, list) or len(ids) > limit:
                raise ValueError(f"The input ({len(ids)} tokens) is longer than the model's context length ({limit}).")
        rids = [uuid.uuid4().hex for _ in prompts]
        start = -1 if logprob_start_len is None else logprob_start_len
        options = (bool(return_logprob), start, top_logprobs_num or 0, stream)
        chunks = self._stream(GenerateReq(rids, prompts, sampling, *options), is_single)
        if stream:
            return chunks
        last = {chunk["meta_info"]["id"]: chunk for chunk in chunks}
        answers = [last[rid] for rid in rids]
        for answer in answers:
            answer.pop("index", None)
        return answers[0] if is_single else answers

    def _stream(self, request: GenerateReq, is_single: bool) -> Iterator[dict[str, Any]]:
        """A chunk per request and step, with all tokens so far in a list that goes on growing."""
        self._enter_running_phase()
        created = time.perf_counter()
        states = {rid: _State() for rid in request.rids}
        self._requests.send(("generate", request))
        while (outputs := self._receive()) is not None:
            for said in outputs:
                state = states[said["rid"]]
                state.take(said)
                finished = said["finish_reason"] is not None
                ids = list(state.output_ids) if finished else state.output_ids
                chunk = {"output_ids": ids, "meta_info": self._meta(said, state, created, request)}
                if not is_single:
                    chunk["index"] = request.rids.index(said["rid"])
                yield chunk

    def _meta(self, said: dict[str, Any], state: _State, created: float, request: GenerateReq) -> dict[str, Any]:
        meta = {
            "id": said["rid"],
            "finish_reason": said["finish_reason"],
            "prompt_tokens": said["prompt_tokens"],
            "weight_version": "default",
            "num_retractions": 0,
            **(state.logprobs if request.return_logprob else {}),
            "reasoning_tokens": 0,
            "completion_tokens": len(state.output_ids),
            "cached_tokens": said["cached_tokens"],
        }
        if said["finish_reason"] is not None:
            meta["e2e_latency"] = time.perf_counter() - created
            if self.server_args.enable_metrics:
                meta["first_token_latency"] = state.first_token - created
                meta["queue_time"] = 0.0
        return meta

    def _enter_running_phase(self) -> None:
        """From the first request on a failing scheduler kills all, whatever handler was given."""
        if not self._is_running and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGQUIT, self._kill_all)
        self._is_running = True

    def _receive(self) -> Any:
        try:
            return self._requests.recv()
        except EOFError:
            time.sleep(10)  # the signal comes first
            raise RuntimeError("the scheduler is gone") from None

    def _ask(self, kind: str, content: Any) -> tuple[bool, str]:
        self._requests.send((kind, content))
        return self._receive()

    def start_profile(self, **kwargs: Any) -> None:
        is_done, message = self._ask("start_profile", ProfileReq(**kwargs))
        if not is_done:
            raise RuntimeError(message)

    def stop_profile(self) -> None:
        is_done, message = self._ask("stop_profile", None)
        if not is_done:
            raise RuntimeError(message)

    def collective_rpc(self, method: str, **kwargs: Any) -> None:
        is_done, message = self._ask("rpc", (method, kwargs))
        assert is_done, message

    def get_server_info(self) -> dict[str, Any]:
        info = self._scheduler_init_result.scheduler_infos[0]
        return {**self.server_args.resolved_dict(), **info, "version": __version__}

    def shutdown(self) -> None:
        """Kills every child of this process."""
        kill_process_tree(os.getpid(), include_parent=False)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()


@dataclasses.dataclass
class _State:
    """Of a request: what came so far."""

    output_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    first_token: float = 0.0

    def take(self, said: dict[str, Any]) -> None:
        self.first_token = self.first_token or time.perf_counter()
        self.output_ids.extend(said["new"])
        for name, entries in said.items():
            if name.endswith("logprobs"):
                self.logprobs.setdefault(name, []).extend(entries)
