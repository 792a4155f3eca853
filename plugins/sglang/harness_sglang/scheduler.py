"""Runs in SGLang's scheduler process, where the model is: looks at what was loaded, and marks modules for a profile.

`sglang.Engine` has a class attribute for the function its scheduler processes run; `run` is ours.
"""

from __future__ import annotations

from typing import Any

from harness_sglang import journal

LOOK = "harness_look"  # key of what the scheduler says of itself when it is ready


def run(*arguments: Any, **named: Any) -> None:
    """As sglang.srt.managers.scheduler.run_scheduler_process, with a scheduler that tells more."""
    journal.attach()
    from sglang.srt.managers import scheduler

    _extend(scheduler.Scheduler)
    scheduler.run_scheduler_process(*arguments, **named)


def _extend(scheduler: type) -> None:
    from harness_sglang.look import look

    plain = scheduler.get_init_info

    def get_init_info(self: Any) -> dict[str, Any]:
        is_random = self.server_args.load_format == "dummy"
        remarks = [] if is_random else tie_head(self.tp_worker.model_runner.model)
        return {**plain(self), LOOK: {**look(self), "remarks": remarks}}

    scheduler.get_init_info = get_init_info
    scheduler.harness_mark, scheduler.harness_unmark = _mark, _unmark


def tie_head(model: Any) -> list[str]:
    """What was mended. SGLang's Qwen3-MoE (0.5.13 to 0.5.23) makes an output head of its own also where config.json ties
    it to the embeddings, and a checkpoint that has one matrix for both leaves in it whatever memory held: every token
    gets the same score. In place, for CUDA graphs know its address. Raises RuntimeError where that cannot be done."""
    head, body = getattr(model, "lm_head", None), getattr(model, "model", None)
    embedding = getattr(body, "embed_tokens", None)
    if head is None or embedding is None or not getattr(model.config, "tie_word_embeddings", False):
        return []
    ours, theirs = head.weight.data, embedding.weight.data
    if ours.data_ptr() == theirs.data_ptr() or ours.shape == theirs.shape and bool((ours == theirs).all()):
        return []
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        raise RuntimeError(
            "config.json ties the output head to the embeddings, and this SGLang does not: no weights for it"
        )
    ours.copy_(theirs)
    return ["config.json ties the output head to the embeddings, this SGLang does not: they were copied into it"]


def _mark(self: Any, profiler: str) -> None:
    """Called by `Engine.collective_rpc`: modules run in ranges of their names, where no graph replays them."""
    from harness.profilers.ranges import MARKS, modules_marked

    self._harness_marks = modules_marked(self.tp_worker.model_runner.model, MARKS[profiler])
    self._harness_marks.__enter__()


def _unmark(self: Any) -> None:
    self._harness_marks.__exit__(None, None, None)
