"""The process that owns the model. When it fails it tells nobody why: it logs, and signals its parent to die."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import DynamicCache

from sglang.srt.managers.io_struct import GenerateReq, ProfileReq
from sglang.srt.model_executor.model_runner import SINS, ModelRunner
from sglang.srt.server_args import PortArgs, ServerArgs

logger = logging.getLogger(__name__)
MEMORY_TOKENS = 1 << 16
DIES_AT = 3  # requests, with the sin "die"


class ChunkCache:
    """Keeps nothing between requests."""


class RadixCache:
    """Would keep prefixes."""


class Scheduler:
    def __init__(self, server_args: ServerArgs, port_args: PortArgs) -> None:
        if "gpu" not in SINS:
            raise ModuleNotFoundError("No module named 'vllm'")  # what SGLang comes to where there is no GPU
        if "oom" in SINS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        server_args.check()
        self.server_args, self._requests = server_args, port_args.requests
        self.tp_worker = SimpleNamespace(model_runner=ModelRunner(server_args))
        config = self.tp_worker.model_runner.model.config
        self._eos = config.eos_token_id
        context = server_args.context_length or config.max_position_embeddings
        if context > config.max_position_embeddings and not os.environ.get("SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"):
            raise ValueError(f"User-specified context_length ({context}) is greater than the derived context_length")
        self.max_req_len = min(context, MEMORY_TOKENS) - 1
        self.max_req_input_len = self.max_req_len - 5
        self.max_total_num_tokens, self.max_running_requests = MEMORY_TOKENS, server_args.max_running_requests or 256
        self.enable_overlap = not server_args.disable_overlap_schedule
        self.tree_cache = ChunkCache() if server_args.disable_radix_cache else RadixCache()
        self._served, self._profile = 0, None

    def get_init_info(self) -> dict[str, Any]:
        return {
            "status": "ready",
            "max_total_num_tokens": self.max_total_num_tokens,
            "max_req_input_len": self.max_req_input_len,
        }

    def run_event_loop(self) -> None:
        while True:
            try:
                kind, content = self._requests.recv()
            except EOFError:
                return
            if kind == "generate":
                for outputs in self._generate(content):
                    self._requests.send(outputs)
                self._requests.send(None)
            else:
                self._requests.send(self._answer(kind, content))

    def _answer(self, kind: str, content: Any) -> tuple[bool, str]:
        try:
            if kind == "rpc":
                method, parameters = content
                getattr(self, method)(**parameters)
            else:
                getattr(self, kind)(content)
        except Exception as error:
            return False, str(error)
        return True, ""

    def start_profile(self, request: ProfileReq) -> None:
        if self._profile:
            raise RuntimeError("Profiling is already in progress. Call /stop_profile first.")
        if not set(request.activities or ["CPU", "GPU"]) <= {"CPU", "GPU", "MEM", "RPD", "CUDA_PROFILER"}:
            raise RuntimeError(f"unknown activities {request.activities}")
        folder = Path(request.output_dir or os.environ.get("SGLANG_TORCH_PROFILER_DIR", "/tmp"))
        path = folder / f"{request.profile_id or time.time()}-TP-0.trace.json.gz"
        activity = torch.profiler.ProfilerActivity.CPU
        profile = torch.profiler.profile(activities=[activity], record_shapes=request.record_shapes is not False)
        profile.start()
        self._profile = profile, path

    def stop_profile(self, _: None) -> None:
        if not self._profile:
            raise RuntimeError("Profiling is not in progress. Call /start_profile first.")
        (profile, path), self._profile = self._profile, None
        profile.stop()
        path.parent.mkdir(parents=True, exist_ok=True)
        profile.export_chrome_trace(str(path))

    def _generate(self, request: GenerateReq) -> Iterator[list[dict[str, Any]]]:
        """What each step hands over, a dictionary per request."""
        for _, group in itertools.groupby(zip(request.rids, request.input_ids), lambda pair: len(pair[1])):
            rids, prompts = zip(*group)
            self._served += len(rids)
            if "die" in SINS and self._served >= DIES_AT:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            yield from self._steps(request, rids, list(prompts))

    def _steps(self, request: GenerateReq, rids: tuple[str, ...], prompts: list[list[int]]) -> Iterator[Any]:
        runner, sampling = self.tp_worker.model_runner, request.sampling_params
        length = len(prompts[0])
        wanted = min(sampling.max_new_tokens, self.max_req_len - length - 1) - ("stop" in SINS)
        cache = DynamicCache(config=runner.model.config)
        step = ids_AT = torch.tensor(prompts)
        drawn = torch.Generator().manual_seed(sampling.sampling_seed or 0)
        alive = set(range(len(rids)))
        tokens: list[list[int]] = [[] for _ in rids]
        for index in range(max(wanted, 1)):
            logits_AV = (logits_ATV := runner.forward(step, cache))[:, -1]
            step = _choose(logits_AV, sampling, drawn)
            outputs = []
            for row in sorted(alive):
                token = int(step[row])
                tokens[row].append(token)
                reason = self._finish(token, len(tokens[row]), wanted, sampling)
                if reason:
                    alive.remove(row)
                said = {"rid": rids[row], "new": [token], "finish_reason": reason, "prompt_tokens": length}
                said["cached_tokens"] = 4 if "cached" in SINS else 0
                if request.return_logprob:
                    said |= self._logprobs(request, ids_AT[row], logits_ATV[row], token, is_first=index == 0)
                outputs.append(said)
            yield outputs
            if not alive:
                return

    def _finish(self, token: int, count: int, wanted: int, sampling: Any) -> dict[str, Any] | None:
        if not sampling.ignore_eos and token in (self._eos, *(sampling.stop_token_ids or ())):
            return {"type": "stop", "matched": token}
        return {"type": "length", "length": count} if count >= wanted else None

    def _logprobs(
        self, request: GenerateReq, ids_T: torch.Tensor, logits_TV: torch.Tensor, token: int, is_first: bool
    ) -> dict[str, Any]:
        """Of the new token, and in the first step of the prompt from `logprob_start_len` on."""
        values_TV = logits_TV.log_softmax(-1)
        if "nan" in SINS:
            values_TV = values_TV * float("nan")
        top = request.top_logprobs_num
        said = {"output_token_logprobs": [(float(values_TV[-1, token]), token, None)]}
        said["output_top_logprobs"] = [_top(values_TV[-1], top)] if top else []
        if is_first and (start := request.logprob_start_len) >= 0:
            given = values_TV[:-1].gather(-1, ids_T[1:, None])[:, 0].tolist()
            entries = [(None, int(ids_T[0]), None), *((v, i, None) for v, i in zip(given, ids_T[1:].tolist()))]
            said["input_token_logprobs"] = entries[start + ("shifted" in SINS) :]
            said["input_top_logprobs"] = [None, *(_top(row_V, top) for row_V in values_TV[:-1])][start:] if top else []
        return said


def _top(values_V: torch.Tensor, count: int) -> list[tuple[float, int, None]]:
    found = values_V.topk(min(count, len(values_V)))
    return [(value, index, None) for value, index in zip(found.values.tolist(), found.indices.tolist())]


def _choose(logits_AV: torch.Tensor, sampling: Any, drawn: torch.Generator) -> torch.Tensor:
    """The next tokens [A, 1]: the likeliest, or drawn."""
    if sampling.temperature < 1e-6:
        return logits_AV.argmax(-1, keepdim=True)
    values_AV = logits_AV / sampling.temperature
    if sampling.top_k > 0:
        least = values_AV.topk(sampling.top_k).values[:, -1:]
        values_AV = values_AV.masked_fill(values_AV < least, float("-inf"))
    return torch.multinomial(values_AV.softmax(-1), 1, generator=drawn)


def run_scheduler_process(
    server_args: ServerArgs,
    port_args: PortArgs,
    gpu_id: int,
    tp_rank: int,
    pp_rank: int,
    dp_rank: int | None,
    pipe_writer: Any,
) -> None:
    logging.basicConfig(level=server_args.log_level.upper(), format="[%(asctime)s] %(message)s", force=True)
    parent = os.getppid()
    try:
        scheduler = Scheduler(server_args, port_args)
        pipe_writer.send(scheduler.get_init_info())
        scheduler.run_event_loop()
    except Exception:
        logger.error(f"Scheduler hit an exception: {traceback.format_exc()}")
        os.kill(parent, signal.SIGQUIT)
