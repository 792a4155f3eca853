"""A loaded HF model: greedy generation with token times, and log-probabilities of given tokens."""

from __future__ import annotations

import gc
import itertools
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from harness import Generation, Load, LoadFailed, Logits, Response, Sampling, Setup, Unsupported, device, provenance
from harness_hf import fp8, fused, machine, proofs, rungs
from harness_hf.checkpoint import local, open_model
from harness_hf.decode import decoder_of, plain_beside
from harness_hf.generation import Generated, OnLogits, ignore
from harness_hf.layers import described, dtype_name
from harness_hf.prefill import Pieces, SharedPrefix
from harness_hf.products import Widened, widened
from harness_hf.projections import fuse
from harness_hf.recording import recording
from harness_hf.regional import CompiledLayers
from harness_hf.routes import Routes
from harness_hf.scoring import LOGIT_ROWS, CompiledBody, Eager
from harness_hf.speculative import Margin, difference

SCORED_TOGETHER = {"cpu": 4096, "cuda": 16384}
BY_LAYER = {"by_layer", "compiled_prefill", "compiled_scoring"}
ONE_THREAD_WIDTH = 512  # hidden size up to which one thread decodes as fast as two
REASONS = {
    "kv_dtype": "no keys and values exist before the first pass",
    "quant_algo": "nothing is quantised",
    "quantize": "nothing is quantised",
    "moe_backend": "the model has no experts",
    "moe_kernel": "the experts' own eager code",
}


class HfSession:
    """See harness.engine.Session."""

    def __init__(self, load: Load) -> None:
        setup = load.setup
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._rungs, self._cores = _prepared(load)
        self._model = open_model(setup, self._device, self._rungs)
        room = self._model.config.get_text_config().max_position_embeddings
        if load.max_sequence > room:
            raise LoadFailed(f"a cell needs sequences of {load.max_sequence} tokens, {setup.model} holds {room}")
        if "fused_step" in self._rungs.on and (why := fused.supports(self._model.config, setup.precision)):
            self._rungs = self._rungs.without("fused_step", why)
        if "fused_projections" in self._rungs.on:
            fuse(self._model)
        self._converted = self._convert(setup)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # the weights as they were before: a record says what measuring needs
        self._kv_dtype: torch.dtype | None = None
        self._max_sequence = load.max_sequence
        few, every = _threads(self._model)
        self._threads = {"generate": few, "score": few if self._converted else every}
        layers = CompiledLayers(self._model) if self._rungs.on & BY_LAYER else None
        self._decoder = decoder_of(self._model, load.max_sequence, self._rungs.on, layers)
        self._scorer = CompiledBody(layers) if "compiled_scoring" in self._rungs.on else Eager()
        self._compared: set[tuple[int, ...]] = set()  # shapes in which speculative decoding was held against plain
        self._unequal: str | None = None
        self._seen: frozenset[str] | None = None

    def _convert(self, setup: Setup) -> dict[str, int]:
        if setup.precision in provenance.PLAIN:
            return {}
        if "fp8" in self._rungs.on and (why := fp8.missing(setup.precision, self._device)):
            self._rungs = self._rungs.without("fp8", why)
        if "fp8" in self._rungs.on:
            return fp8.convert(self._model, setup.precision, setup.quantize)
        from harness_hf.emulate import emulate  # half a second of imports that others need not wait for

        return emulate(self._model, setup.precision, setup.quantize)

    def facts(self) -> dict[str, Any]:
        model, decoder = self._model, self._decoder
        in_force, off = proofs.proven(self._live(), self._rungs)
        whole = "by_layer" not in self._rungs.on
        mode = ("reduce-overhead" if decoder.cuda_graphs else "default") if whole else "one layer for all"
        hits = getattr(proofs.prefill_of(decoder, SharedPrefix), "hits", 0)
        found = {
            "engine_version": transformers.__version__,
            **provenance.summary(provenance.group(described(model))),
            "converted_matrices": self._converted,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "attention_backend": model.config._attn_implementation,
            "kv_dtype": self._kv_dtype and dtype_name(self._kv_dtype),
            "rungs_in_force": in_force,
            "rungs_off": off,
            "prefix_cache": "prefix_cache" in in_force,
            "prefix_cache_hits": hits,  # tokens of the latest batch; without the rung every cache starts empty
            "cuda_graphs": decoder.cuda_graphs,
            "cudagraph_mode": "decode steps" if decoder.cuda_graphs else "none",
            "compiled": decoder.compiled,
            "compile_mode": f"{mode}, decode steps" if decoder.compiled else "none",
            "chunked_prefill": proofs.prefill_of(decoder, Pieces) is not None,
            "max_num_batched_tokens": "no limit",
            "max_num_seqs": "no limit",
            "speculative_decoding": "ngram" if "ngram" in self._rungs.on else "off",
            "clock": decoder.clock,
            "scored_with": "FP32 products of BF16 values" if self._widens() else f"{dtype_name(model.dtype)} products",
            "scored_together_tokens": self._scored_together() or "one sequence",
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "threads": self._threads,
            },
        }
        return {**found, "unread": {name: REASONS.get(name, "") for name, value in found.items() if value is None}}

    def parameters_here(self) -> int:
        """Those on this device; of a model that is cut over several, its part."""
        return sum(parameter.numel() for parameter in map(local, self._model.parameters()))

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Generation:
        tokens, times, started, finished = self._generate(prompts, output_len, ignore)
        responses = tuple(Response(tuple(row), tuple(times)) for row in tokens.tolist())
        return Generation(started, finished, responses)

    def generate_logits(
        self, prompts: Sequence[Sequence[int]], output_len: int, top: int
    ) -> list[tuple[tuple[int, ...], Logits]]:
        steps: list[torch.Tensor] = []
        tokens, *_ = self._generate(prompts, output_len, lambda logits_AV: steps.append(logits_AV.float().clone()))
        rows_ARV = torch.stack(steps, dim=1)
        return [(tuple(row), Logits(logits_RV)) for row, logits_RV in zip(tokens.tolist(), rows_ARV)]

    @torch.inference_mode()
    def sample(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[tuple[int, ...]]:
        """By transformers' own generate, one prompt at a time."""
        torch.set_num_threads(self._threads["generate"])
        torch.manual_seed(sampling.seed)
        is_drawn = sampling.temperature > 0
        drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        config = transformers.GenerationConfig(
            do_sample=is_drawn,
            max_new_tokens=sampling.max_tokens,
            eos_token_id=list(sampling.stop) or None,
            pad_token_id=0,
            **(drawn if is_drawn else {}),
        )
        continued = []
        for prompt in prompts:
            ids_1T = torch.tensor([prompt], device=self._device)
            out_1T = self._model.generate(ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=config)
            continued.append(tuple(out_1T[0, len(prompt) :].tolist()))
        return continued

    def _generate(self, prompts: Sequence[Sequence[int]], output_len: int, on_logits: OnLogits) -> Generated:
        if len({len(prompt) for prompt in prompts}) != 1:
            raise Unsupported("the prompts of one batch must be equally long")
        if len(prompts[0]) + output_len > self._max_sequence:
            raise Unsupported(f"{len(prompts[0])} + {output_len} tokens asked for, loaded for {self._max_sequence}")
        torch.set_num_threads(self._threads["generate"])
        ids_AT = torch.tensor(prompts, device=self._device)
        generated = self._decoder.generate(ids_AT, output_len, on_logits)
        self._kv_dtype = self._decoder.kv_dtype
        if "ngram" in self._rungs.on and (shape := (*ids_AT.shape, output_len)) not in self._compared:
            self._compared.add(shape)
            margin = Margin(generated[0])
            plain_AT, *_ = plain_beside(self._decoder, self._model).generate(ids_AT, output_len, margin)
            self._unequal = self._unequal or difference(generated[0], plain_AT, torch.stack(margin.found, dim=1))
        return generated

    def _live(self) -> proofs.Live:
        # a default load need not wait for a profile, nor the first measurement of any
        if self._rungs.by_name and self._seen is None and self._kv_dtype is not None:
            self._seen = proofs.seen_in_a_pass(self._model)
        return proofs.Live(self._model, self._decoder, self._scorer, self._cores, self._unequal, self._seen)

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[float]]:
        if shared := proofs.prefill_of(self._decoder, SharedPrefix):
            shared.hits = 0  # scoring takes nothing from it
        for ids_AT in self._batches(sequences):
            with widened():
                logprobs_AT = self._score(ids_AT)
            yield from logprobs_AT.tolist()

    @torch.inference_mode()
    def score_logits(self, sequences: Sequence[Sequence[int]], top: int) -> Iterator[Logits]:
        head = self._model.get_output_embeddings()
        for ids_AT in self._batches(sequences):
            with widened(), Routes(self._model) as routes:
                hidden_ATH = self._hidden(ids_AT, Eager())  # compiled layers would not tell their routes
            length = ids_AT.shape[1] - 1
            together = max(1, LOGIT_ROWS // length)  # whole sequences, or parts of one
            for first in range(0, len(ids_AT), together):
                for start in range(0, length, LOGIT_ROWS):
                    rows_ARH = hidden_ATH[first : first + together, start : min(start + LOGIT_ROWS, length)]
                    with widened():
                        logits_ARV = head(rows_ARH).float()
                    for index, logits_RV in enumerate(logits_ARV, start=first):
                        yield Logits(logits_RV, **routes.of(index, start, len(logits_RV), ids_AT.shape))

    def _batches(self, sequences: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """The sequences in order, [A, T] at a time."""
        torch.set_num_threads(self._threads["score"])
        for length, equal in itertools.groupby(sequences, len):
            equal = list(equal)
            at_once = max(1, self._scored_together() // length)
            for start in range(0, len(equal), at_once):
                yield torch.tensor(equal[start : start + at_once], device=self._device)

    def _widens(self) -> bool:
        return self._model.dtype == torch.bfloat16 and isinstance(widened(), Widened)

    def _scored_together(self) -> int:
        """Tokens of one forward pass. An emulated activation has a scale over the whole tensor, which must not depend
        on who else is in the batch: then each sequence goes alone."""
        return 0 if self._converted else SCORED_TOGETHER[self._device.type]

    def _score(self, ids_AT: torch.Tensor) -> torch.Tensor:
        """Log-probability of every token but the first, [A, T - 1]. The body runs once over all tokens; the output
        head, whose FP32 logits are what fills memory, over LOGIT_ROWS at a time."""
        hidden_NH, target_N = self._hidden(ids_AT, self._scorer)[:, :-1].flatten(0, 1), ids_AT[:, 1:].flatten()
        logprobs_N = self._scorer.logprobs(self._model.get_output_embeddings(), hidden_NH, target_N, LOGIT_ROWS)
        return logprobs_N.view(ids_AT.shape[0], -1)

    def _hidden(self, ids_AT: torch.Tensor, scorer: Eager | CompiledBody) -> torch.Tensor:
        """[A, T, H], what the output head reads."""
        hidden_ATH = scorer.body(self._model.get_decoder(), ids_AT)
        self._kv_dtype = hidden_ATH.dtype  # keys and values are products of these, and are not stored
        return hidden_ATH

    def recording(self, profiler: str, folder: Path) -> AbstractContextManager[None]:
        return recording(self._model, self._decoder, profiler, folder)

    def close(self) -> None:
        self._model = self._decoder = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _prepared(load: Load) -> tuple[rungs.Asked, frozenset[int] | None]:
    """The rungs of this load, and the process as they want it: its cores, too, where it was bound to some."""
    setup = load.setup
    here = device.detect()
    if not torch.cuda.is_available():  # PyTorch for CPUs, whatever else the machine has
        here = replace(here, kind="cpu", sm=None)
    asked = rungs.asked(setup.rungs, setup.precision, here)
    if setup.tp > 1:
        asked = _cut(asked, setup.tp)
    if setup.quantize == "linear" and setup.precision not in provenance.PLAIN:
        asked = asked.without("fused_projections", "--quantize linear converts each layer by itself")
        asked = asked.without("fused_step", "--quantize linear: its attention layers are BF16")
    if "tf32" in asked.on:
        machine.allow_tf32()
    return asked, machine.bind_to_gpu() if "numa" in asked.on else None


def _cut(asked: rungs.Asked, tp: int) -> rungs.Asked:
    """What holds where each rank has a part of the model. Raises Unsupported for a rung asked for by its name."""
    lost = [name for name in rungs.NAMES if name in asked.on and name not in rungs.WITH_TP]
    if lost and asked.by_name:
        raise Unsupported(
            f"--tp {tp}: of the hf engine's rungs only {', '.join(rungs.WITH_TP)} hold, not {', '.join(lost)}"
        )
    for name in lost:
        asked = asked.without(name, f"--tp {tp}: not tried on a model that is cut")
    return asked


def _threads(model: torch.nn.Module) -> tuple[int, int]:
    """Of a small and of a large step: one for matrices so small that sharing them costs more than it saves. Where
    another program takes a core, threads that wait for each other at every product would wait for that program."""
    every = torch.get_num_threads()
    is_narrow = model.config.get_text_config().hidden_size <= ONE_THREAD_WIDTH
    return (1 if is_narrow and "OMP_NUM_THREADS" not in os.environ else every), every
