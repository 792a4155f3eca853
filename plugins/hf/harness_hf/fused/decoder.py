"""Greedy decoding by the fused step: transformers' own prefill into the step's cache, then one CUDA graph a token.

Same interface as harness_hf.decode.Decoder. Where there is no GPU (Triton's interpreter, in tests) steps run unheld.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from harness import Unsupported
from harness_hf.clocks import CudaClock, HostClock
from harness_hf.fused.step import Step, weights_of
from harness_hf.generation import DECODE, PREFILL, Generated, Mark, OnLogits, check, ignore, unmarked
from harness_hf.steps import Step as Prefill
from harness_hf.steps import last


class FusedDecoder:
    """The decode step is one graph per batch size, with the token fed back on the device."""

    compiled = False

    def __init__(
        self, model: PreTrainedModel, max_sequence: int, precision: str = "bf16", prefill: Prefill | None = None
    ) -> None:
        self.prefill = prefill or last(model)
        self._weights = weights_of(model, precision)
        self._rotation = _rotation(model, max_sequence)
        self._steps: dict[int, tuple[Step, Any]] = {}
        self.cuda_graphs = model.device.type == "cuda"
        self._timer = CudaClock() if self.cuda_graphs else HostClock()
        self.clock = self._timer.name
        self.mark: Mark = unmarked
        self.kv_dtype = self._weights.table_VH.dtype
        self.replays = 0  # of graphs, since the start: what proves that they were used

    @torch.inference_mode()
    def generate(self, ids_AT: torch.Tensor, output_len: int, on_logits: OnLogits = ignore) -> Generated:
        """Raises BadOutput, Unsupported."""
        batch_size, length = ids_AT.shape
        if length + output_len > (room := self._rotation[0].shape[0]):  # kernels would write beyond the cache
            raise Unsupported(f"{length} + {output_len} tokens asked for, there is room for {room}")
        step, run = self._step_for(batch_size)
        self._timer.start(output_len)
        for index in range(output_len):
            with self.mark(DECODE if index else PREFILL):
                if index:
                    run()
                    on_logits(step.logits_AV)
                else:
                    cache = Cache(layers=[_Front(keys, values) for keys, values in step.cache])
                    highest_A1, token_A1, logits_A1V = self.prefill(ids_AT, cache)
                    step.start(token_A1[:, 0], length)
                    step.highest_AS[:, length].copy_(highest_A1[:, 0])
                    on_logits(logits_A1V[:, 0])
            self._timer.tick()
        times, started, finished = self._timer.stop()
        self.replays += (output_len - 1) * self.cuda_graphs
        made = slice(length, length + output_len)
        check(step.highest_AS[:, made])
        return step.history_AS[:, made].clone(), times, started, finished

    def _step_for(self, batch_size: int) -> tuple[Step, Any]:
        """The step of a batch size and what runs it, kept: a graph is bound to the addresses of its step."""
        if batch_size not in self._steps:
            step = Step(self._weights, self._rotation, batch_size)
            self._steps[batch_size] = step, _captured(step) if self.cuda_graphs else step
        return self._steps[batch_size]


def _captured(step: Step) -> Any:
    """Compiles the kernels in plain runs, on a stream of their own as capture wants it, then records one step."""
    step.start(step.token_A.clone(), 0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.inference_mode()
def _rotation(model: PreTrainedModel, room: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every position as the model itself rounds them, [S, D / 2] each."""
    body = model.get_decoder()
    hidden = body.embed_tokens.weight[:1][None]
    half = body.layers[0].self_attn.head_dim // 2
    cos, sin = body.rotary_emb(hidden, position_ids=torch.arange(room, device=model.device)[None])
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


class _Front(CacheLayerMixin):
    """One layer's room [A, H, S, D] as prefill sees it: it writes to the front and attends to what it wrote, so that
    attention needs no mask over the empty rest."""

    is_sliding = False

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is lazy here."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length = key_states.shape[-2]
        self.keys[:, :, :length].copy_(key_states)
        self.values[:, :, :length].copy_(value_states)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self.keys.shape[-2]

    get_max_cache_shape = get_max_length  # its name before transformers 5.17
