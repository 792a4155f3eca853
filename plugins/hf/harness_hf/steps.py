"""Ways to run a decode step: eagerly, compiled, or replayed from a CUDA graph. It takes [A, T] token ids and a cache.

A: batch, T: tokens fed, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._dynamo.utils import counters
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from harness_hf.caches import keyword

# -> highest logit [A, T], its token [A, T], logits [A, T, V]; the logits' memory is the next step's again
Answer = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Step = Callable[[torch.Tensor, Cache], Answer]


def last(model: PreTrainedModel) -> Step:
    """Runs the model and answers for the last token: T of the answer is 1."""
    return _forward(model, 1)


def every(model: PreTrainedModel) -> Step:
    """Answers for every token fed."""
    return _forward(model, 0)


def _forward(model: PreTrainedModel, keep: int) -> Step:
    name = keyword(model)

    def step(ids_AT: torch.Tensor, cache: Cache) -> Answer:
        logits_ATV = model(input_ids=ids_AT, use_cache=True, logits_to_keep=keep, **{name: cache}).logits
        return (*logits_ATV.max(-1), logits_ATV)

    return step


class Compiled:
    """torch.compile of a step; with `graphs` inductor replays it as CUDA graphs."""

    def __init__(self, step: Step, graphs: bool) -> None:
        self._step = torch.compile(step, mode="reduce-overhead" if graphs else None)
        self.graphs, self._before = graphs, counters["stats"]["unique_graphs"]
        self.calls = 0

    def __call__(self, ids_AT: torch.Tensor, cache: Cache) -> Answer:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        value, token, logits = self._step(ids_AT, cache)
        self.calls += 1
        # A graph writes its answer to the same place at every replay, so each is copied before the next.
        return (value.clone(), token.clone(), logits) if self.graphs else (value, token, logits)

    def compiled(self) -> int:
        """Graphs that dynamo has made since this step was wrapped."""
        return counters["stats"]["unique_graphs"] - self._before

    def recorded(self) -> int:
        """CUDA graphs in inductor's pool on this GPU; 0 where one was skipped."""
        from torch._inductor.cudagraph_trees import get_container

        manager = get_container(torch.cuda.current_device()).tree_manager
        if manager is None or counters["inductor"]["cudagraph_skips"]:
            return 0
        return sum(len(nodes) for nodes in manager.roots.values())


class Captured:
    """A step recorded once per cache and number of tokens, then replayed."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self._graphs: dict[tuple[int, torch.Size], tuple[torch.cuda.CUDAGraph, torch.Tensor, Answer]] = {}
        self.replays = 0

    def __call__(self, ids_AT: torch.Tensor, cache: Cache) -> Answer:
        key = (id(cache), ids_AT.shape)  # caches are kept as long as their decoder
        if key not in self._graphs:
            self._graphs[key] = self._capture(ids_AT, cache)
        graph, place_AT, (value, token, logits) = self._graphs[key]
        place_AT.copy_(ids_AT)
        graph.replay()
        self.replays += 1
        return value.clone(), token.clone(), logits

    def _capture(self, ids_AT: torch.Tensor, cache: Cache) -> tuple[torch.cuda.CUDAGraph, torch.Tensor, Answer]:
        place_AT, lengths = ids_AT.clone(), [layer.cumulative_length.clone() for layer in cache.layers]

        def back() -> None:
            for layer, length in zip(cache.layers, lengths):
                layer.cumulative_length.copy_(length)

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries make their workspaces before a capture, not in it
            for _ in range(2):
                self.step(place_AT, cache)
                back()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            answer = self.step(place_AT, cache)
        return graph, place_AT, answer
