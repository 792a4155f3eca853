"""The engine inside the double: a loop of turns, each a step of all requests under way, in the process it is made in."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from trtllm_double import Era, fault
from trtllm_double.draw import drawn
from trtllm_double.model import build
from trtllm_double.outputs import now

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

Give = Callable[[int, dict[str, Any]], None]


@dataclass
class Request:
    """One under way. T: prompt tokens, V: vocabulary."""

    id: int
    prompt: list[int]
    sampling: dict[str, Any]
    arrival: float
    kept: DynamicCache
    cached: int = 0
    logits_TV: torch.Tensor | None = None
    rows: list[torch.Tensor] = field(default_factory=list)  # [V] each, of the tokens
    tokens: list[int] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    stop_reason: int | None = None
    error: str | None = None

    def take(self, row_V: torch.Tensor) -> None:
        self.rows.append(row_V)
        self.tokens.append(drawn(row_V, self.sampling, len(self.tokens)))
        if self.tokens[-1] in (self.sampling["stop_token_ids"] or []):
            self.stop_reason = self.tokens[-1]

    @property
    def is_stopped(self) -> bool:
        is_at_end = not self.sampling["ignore_eos"] and self.tokens[-1:] == [self.sampling["end_id"]]
        return is_at_end or self.stop_reason is not None

    @property
    def is_complete(self) -> bool:
        return self.error is not None or self.is_stopped or len(self.tokens) == self.sampling["max_tokens"]


class ModelEngine:
    """What computes a step: of `scheduled_requests` those in `context_requests` and `generation_requests`."""

    def __init__(self, inside: Callable[[], PreTrainedModel], model: torch.nn.Module) -> None:
        self.model, self._inside = model, inside

    @torch.inference_mode()
    def forward(self, scheduled_requests: Any, resource_manager: Any, new_tensors_device: Any = None) -> None:
        for request in scheduled_requests.context_requests:
            request.logits_TV = self._step(request, request.prompt)
            request.take(request.logits_TV[-1])
            request.times["first_token_time"] = now()
        for request in scheduled_requests.generation_requests:
            request.take(self._step(request, request.tokens[-1:])[-1])

    def _step(self, request: Request, ids: Sequence[int]) -> torch.Tensor:
        logits_TV = self._inside()(torch.tensor([ids]), None, None, request.kept).logits[0].float()
        return logits_TV * float("nan") if fault("nan") else logits_TV


class Engine:
    def __init__(self, args: Any, era: Era) -> None:
        if fault("oom"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 60.00 GiB. GPU 0 has 2.00 GiB free.")
        torch.set_num_threads(1)  # the matrices are small: sharing them costs more than it saves
        self._inside, model = build(args, era)
        self.model_engine = ModelEngine(self._inside, model)
        self.aborted: set[int] = set()
        self._args, self._era = args, era
        self._blocks: set[tuple[int, ...]] = set()

    def serve(self, inbox: queue.SimpleQueue, give: Give) -> None:
        """Until None comes. A turn fetches what has come, and waits for it where nothing is under way; it steps, and gives
        what the turn before completed: the scheduler is a step ahead."""
        active: list[Request] = []
        complete: list[Request] = []
        window = Window()
        while True:
            window.turn()
            if not self._fetch(inbox, active, give, is_idle=not active and not complete):
                break
            scheduled = SimpleNamespace(
                context_requests=[request for request in active if not request.tokens],
                generation_requests=[request for request in active if request.tokens],
            )
            window.saw(scheduled)
            if active:
                self._step(scheduled, active)
            for request in complete:
                give(request.id, self._answer(request))
            complete = [request for request in active if request.is_complete]
            active = [request for request in active if not request.is_complete]
        window.end()

    def _fetch(self, inbox: queue.SimpleQueue, active: list[Request], give: Give, is_idle: bool) -> bool:
        """False: the end."""
        while is_idle or not inbox.empty():
            if (asked := inbox.get()) is None:
                return False
            is_idle = False
            if fault("dies"):
                os._exit(11)
            if asked["id"] in self.aborted:
                give(asked["id"], _found(finish_reason="cancelled"))
                continue
            from transformers import DynamicCache

            request = Request(**asked, kept=DynamicCache(config=self._inside().config))
            request.cached = self._cached(request.prompt)
            active.append(request)
        return True

    def _step(self, scheduled: Any, active: list[Request]) -> None:
        for request in scheduled.context_requests:
            request.times |= {"arrival_time": request.arrival, "first_scheduled_time": now()}
        try:
            self.model_engine.forward(scheduled, None)
        except Exception as error:
            for request in active:
                request.error = f"{type(error).__name__}: {error}"
        for request in active:
            if request.is_complete:
                request.times["last_token_time"] = now()

    def _answer(self, request: Request) -> dict[str, Any]:
        if request.error:
            return {"error": request.error}
        asked, tokens = request.sampling, request.tokens
        is_cut = request.stop_reason is not None and not asked["include_stop_str_in_output"]
        is_timed = asked["return_perf_metrics"] or self._args.return_perf_metrics and not self._era.is_main
        gathers = asked["return_generation_logits"] and self._args.gather_generation_logits
        following = [*request.prompt[1:], tokens[0]]
        return _found(
            token_ids=tokens[:-1] if is_cut else tokens,
            finish_reason="stop" if request.is_stopped else "length",
            stop_reason=request.stop_reason,
            cached_tokens=0 if fault("untold") else request.cached,
            context_logits=request.logits_TV[request.cached :].numpy() if asked["return_context_logits"] else None,
            generation_logits=torch.stack(request.rows).numpy() if gathers else None,
            prompt_logprobs=self._prompt_logprobs(asked["prompt_logprobs"], following, request.logits_TV),
            times=request.times if is_timed else None,
        )

    def _cached(self, prompt: list[int]) -> int:
        """Tokens of leading blocks seen before, the last token never among them."""
        if not (self._args.kv_cache_config.enable_block_reuse or fault("reuse") or fault("untold")):
            return 0
        size = self._args.kv_cache_config.tokens_per_block
        prefixes = [tuple(prompt[: end * size]) for end in range(1, (len(prompt) - 1) // size + 1)]
        cached = next((len(prefix) for prefix in reversed(prefixes) if prefix in self._blocks), 0)
        self._blocks.update(prefixes)
        return cached

    def _prompt_logprobs(self, top: int | None, following: list[int], logits_TV: torch.Tensor) -> list[dict]:
        """Entry i is of what follows token i. Before 1.3 the token that does follow is there only by luck."""
        if not top:
            return []
        logprobs_TV = logits_TV.log_softmax(-1)
        listed = []
        for row, token in zip(logprobs_TV, following):
            values, ids = row.topk(top)
            entry = {i: (value, rank) for rank, (i, value) in enumerate(zip(ids.tolist(), values.tolist()), start=1)}
            if self._era.is_main:
                entry.setdefault(token, (float(row[token]), int((row > row[token]).sum()) + 1))
            listed.append(entry)
        return listed


class Window:
    """TLLM_PROFILE_START_STOP=A-B. Turns count from 0; where B is looked for it is the turn that has just ended, so the
    range holds A to B. What a profiler would see is told on stdout, as there is none for a CPU."""

    def __init__(self) -> None:
        first, _, last = os.environ.get("TLLM_PROFILE_START_STOP", "").partition("-")
        self._first, self._last = (int(number) if number else None for number in (first, last))
        self._it, self._seen = -1, None

    def turn(self) -> None:
        if self._it == self._last:
            self.end()
        self._it += 1
        if self._it == self._first:
            self._seen = []

    def saw(self, scheduled: Any) -> None:
        if self._seen is not None:
            context, generation = scheduled.context_requests, scheduled.generation_requests
            ids = [request.id for request in (*context, *generation)]
            self._seen.append(f"{len(context)} ctx {len(generation)} gen of {ids}")

    def end(self) -> None:
        if self._seen is not None:
            print(
                f"[double] turns {self._first} to {self._it} in the capture range: {'; '.join(self._seen)}", flush=True
            )
        self._seen = None


def _found(**some: Any) -> dict[str, Any]:
    nothing = {"token_ids": [], "finish_reason": None, "stop_reason": None, "cached_tokens": 0, "prompt_logprobs": []}
    return {**nothing, "context_logits": None, "generation_logits": None, "times": None, **some}
