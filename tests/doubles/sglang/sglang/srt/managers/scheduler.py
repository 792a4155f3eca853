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

from sglang.srt.layers.moe.utils import MoeRunnerBackend
from sglang.srt.managers.io_struct import GenerateReq, ProfileReq
from sglang.srt.server_args import PortArgs, ServerArgs
from sglang.srt.utils import SINS

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
            raise _out_of_memory()
        server_args.check()
        backend = MoeRunnerBackend(server_args.moe_runner_backend)
        from sglang.srt.model_executor.model_runner import ModelRunner  # imports torch: not before it is needed

        self.server_args, self._requests = server_args, port_args.requests
        self.tp_worker = SimpleNamespace(model_runner=ModelRunner(server_args, backend))
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
        self._served, self._seen, self._profile = 0, set(), None

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
        import torch

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
        sampling, length = request.sampling_params, len(prompts[0])
        wanted = min(sampling.max_new_tokens, self.max_req_len - length - 1) - ("stop" in SINS)
        cached = [4 if "cached" in SINS and tuple(prompt) in self._seen else 0 for prompt in prompts]
        self._seen.update(map(tuple, prompts))
        counts = dict.fromkeys(range(len(rids)), 0)  # tokens of those that go on
        for step in self.tp_worker.model_runner.steps(request, prompts, wanted):
            outputs = []
            for row in list(counts):
                counts[row] += 1
                token = step[row].pop("token")
                reason = self._finish(token, counts[row], wanted, sampling)
                if reason:
                    del counts[row]
                said = {"rid": rids[row], "new": [token], "finish_reason": reason, "prompt_tokens": length}
                outputs.append({**said, "cached_tokens": cached[row], **step[row]})
            yield outputs
            if not counts:
                return

    def _finish(self, token: int, count: int, wanted: int, sampling: Any) -> dict[str, Any] | None:
        if not sampling.ignore_eos and token in (self._eos, *(sampling.stop_token_ids or ())):
            return {"type": "stop", "matched": token}
        return {"type": "length", "length": count} if count >= wanted else None


def _out_of_memory() -> Exception:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


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
