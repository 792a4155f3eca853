"""The engine inside the double: serves requests one after the other, in the process it is made in."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers import DynamicCache

from trtllm_double import Era, fault
from trtllm_double.model import build

EPOCH_S = 250_000.0  # its steady clock has a zero of its own, so that only differences mean anything
Give = Callable[[int, dict[str, Any]], None]


class Engine:
    def __init__(self, args: Any, era: Era) -> None:
        if fault("oom"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 60.00 GiB. GPU 0 has 2.00 GiB free.")
        torch.set_num_threads(1)  # the matrices are small: sharing them costs more than it saves
        self._inside, model = build(args, era)
        self.model_engine = SimpleNamespace(model=model)
        self.aborted: set[int] = set()
        self._args, self._era = args, era
        self._blocks: set[tuple[int, ...]] = set()

    def serve(self, inbox: queue.SimpleQueue, give: Give) -> None:
        """Until None comes."""
        while (request := inbox.get()) is not None:
            if fault("dies"):
                os._exit(11)
            try:
                found = self._answer(request)
            except Exception as error:
                found = {"error": f"{type(error).__name__}: {error}"}
            give(request["id"], found)

    @torch.inference_mode()
    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        scheduled = _now()
        prompt, asked = request["prompt"], request["sampling"]
        if request["id"] in self.aborted:
            return _found(is_cancelled=True)
        cached = self._cached(prompt)
        kept = DynamicCache(config=self._inside.config)
        logits_TV = self._inside(torch.tensor([prompt]), past_key_values=kept).logits[0].float()
        if fault("nan"):
            logits_TV = logits_TV * float("nan")
        rows, tokens = [logits_TV[-1]], [int(logits_TV[-1].argmax())]
        first = _now()
        while len(tokens) < asked["max_tokens"]:
            if not asked["ignore_eos"] and tokens[-1] == asked["end_id"]:
                break
            step = self._inside(torch.tensor([tokens[-1:]]), past_key_values=kept).logits[0, -1].float()
            rows.append(step)
            tokens.append(int(step.argmax()))
        timed = asked["return_perf_metrics"] or self._args.return_perf_metrics and not self._era.is_main
        times = {"arrival_time": request["arrival"], "first_scheduled_time": scheduled}
        times |= {"first_token_time": first, "last_token_time": _now()}
        return _found(
            token_ids=tokens,
            cached_tokens=0 if fault("untold") else cached,
            context_logits=logits_TV[cached:].numpy() if asked["return_context_logits"] else None,
            generation_logits=self._generation_logits(asked, rows),
            prompt_logprobs=self._prompt_logprobs(asked["prompt_logprobs"], [*prompt[1:], tokens[0]], logits_TV),
            times=times if timed else None,
        )

    def _generation_logits(self, asked: dict[str, Any], rows: list[torch.Tensor]) -> Any:
        wanted = asked["return_generation_logits"] and self._args.gather_generation_logits
        return torch.stack(rows).numpy() if wanted else None

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


def arrival() -> float:
    return _now()


def _now() -> float:
    return EPOCH_S + time.monotonic()


def _found(**some: Any) -> dict[str, Any]:
    nothing = {"token_ids": [], "is_cancelled": False, "cached_tokens": 0, "prompt_logprobs": []}
    return {**nothing, "context_logits": None, "generation_logits": None, "times": None, **some}
