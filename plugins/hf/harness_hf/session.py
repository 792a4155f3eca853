"""A loaded HF model: greedy generation with token times, and log-probabilities of given tokens."""

from __future__ import annotations

import gc
import itertools
import os
import platform
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers

from harness import Generation, Load, LoadFailed, Response, Unsupported
from harness_hf.checkpoint import fingerprint, open_model
from harness_hf.decode import CpuDecoder, CudaDecoder
from harness_hf.emulate import emulate
from harness_hf.products import Widened, widened

SCORED_TOGETHER = {"cpu": 4096, "cuda": 16384}
ONE_THREAD_WIDTH = 512  # hidden size up to which one thread decodes as fast as two
LOGIT_ROWS = 1024  # tokens whose full-vocabulary FP32 logits exist at once
QUANT_ALGO = {"fp8": "FP8", "fp8_block": "FP8_BLOCK_SCALES", "nvfp4": "NVFP4", "mxfp4": "MXFP4"}


class HfSession:
    """See harness.engine.Session."""

    def __init__(self, load: Load) -> None:
        setup = self._setup = load.setup
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = open_model(setup, self._device)
        room = self._model.config.get_text_config().max_position_embeddings
        if load.max_sequence > room:
            raise LoadFailed(f"a cell needs sequences of {load.max_sequence} tokens, {setup.model} holds {room}")
        self._converted = emulate(self._model, setup.precision, setup.quantize) if setup.precision != "bf16" else {}
        self._max_sequence = load.max_sequence
        few, every = _threads(self._model)
        self._threads = {"generate": few, "score": few if self._converted else every}
        self._fingerprint = fingerprint(setup)
        self._decoder = (
            CudaDecoder(self._model, load.max_sequence) if self._device.type == "cuda" else CpuDecoder(self._model)
        )

    def facts(self) -> dict[str, Any]:
        model = self._model
        return {
            "engine_version": transformers.__version__,
            "precision": self._setup.precision if sum(self._converted.values()) else _precision_of(model),
            "compute_mode": "emulated" if self._converted else "native",
            "quant_algo": QUANT_ALGO[self._setup.precision] if self._converted else None,
            "converted_matrices": self._converted,
            "quantize": self._setup.quantize if self._converted else None,
            "weight_dtypes": _weight_dtypes(model),
            "weights_sha256": self._fingerprint,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "moe_backend": model.config._experts_implementation,
            "attention_backend": model.config._attn_implementation,
            "kv_dtype": _name(model.dtype),
            "prefix_cache": False,
            "cuda_graphs": self._decoder.cuda_graphs,
            "compiled": "torch.compile reduce-overhead, decode only" if self._decoder.compiled else None,
            "clock": self._decoder.clock,
            "scored_with": "FP32 products of BF16 values" if isinstance(widened(), Widened) else "BF16 products",
            "scored_together_tokens": self._scored_together() or "one sequence",
            "environment": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "cuda": torch.version.cuda,
                "threads": self._threads,
            },
        }

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Generation:
        if len({len(prompt) for prompt in prompts}) != 1:
            raise Unsupported("the prompts of one batch must be equally long")
        if len(prompts[0]) + output_len > self._max_sequence:
            raise Unsupported(f"{len(prompts[0])} + {output_len} tokens asked for, loaded for {self._max_sequence}")
        torch.set_num_threads(self._threads["generate"])
        ids_AT = torch.tensor(prompts, device=self._device)
        tokens, times, started, finished = self._decoder.generate(ids_AT, output_len)
        responses = tuple(Response(tuple(row), tuple(times)) for row in tokens.tolist())
        return Generation(started, finished, responses)

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[float]]:
        torch.set_num_threads(self._threads["score"])
        for length, equal in itertools.groupby(sequences, len):
            equal = list(equal)
            at_once = max(1, self._scored_together() // length)
            for start in range(0, len(equal), at_once):
                ids_AT = torch.tensor(equal[start : start + at_once], device=self._device)
                with widened():
                    logprobs_AT = self._score(ids_AT)
                yield from logprobs_AT.tolist()

    def _scored_together(self) -> int:
        """Tokens of one forward pass. An emulated activation has a scale over the whole tensor, which must not depend
        on who else is in the batch: then each sequence goes alone."""
        return 0 if self._converted else SCORED_TOGETHER[self._device.type]

    def _score(self, ids_AT: torch.Tensor) -> torch.Tensor:
        """Log-probability of every token but the first, [A, T - 1]. The body runs once over all tokens; the output
        head, whose FP32 logits are what fills memory, over LOGIT_ROWS at a time."""
        hidden_ATH = self._model.get_decoder()(input_ids=ids_AT, use_cache=False).last_hidden_state
        hidden_NH, target_N = hidden_ATH[:, :-1].flatten(0, 1), ids_AT[:, 1:].flatten()
        head = self._model.get_output_embeddings()
        logprobs = []
        for rows, target in zip(hidden_NH.split(LOGIT_ROWS), target_N.split(LOGIT_ROWS)):
            logits_NV = head(rows).float()
            logprobs.append(logits_NV.gather(-1, target[:, None])[:, 0] - logits_NV.logsumexp(-1))
        return torch.cat(logprobs).view(ids_AT.shape[0], -1)

    def close(self) -> None:
        self._model = self._decoder = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _threads(model: torch.nn.Module) -> tuple[int, int]:
    """Of a small and of a large step: one for matrices so small that sharing them costs more than it saves. Where
    another program takes a core, threads that wait for each other at every product would wait for that program."""
    every = torch.get_num_threads()
    is_narrow = model.config.get_text_config().hidden_size <= ONE_THREAD_WIDTH
    return (1 if is_narrow and "OMP_NUM_THREADS" not in os.environ else every), every


def _precision_of(model: torch.nn.Module) -> str:
    """Of a model nothing was converted in: what its matrices are stored in."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.ndim > 1}
    return "bf16" if dtypes == {torch.bfloat16} else ", ".join(sorted(map(_name, dtypes)))


def _weight_dtypes(model: torch.nn.Module) -> dict[str, str]:
    classes: dict[str, set[str]] = {}
    for name, parameter in model.named_parameters():
        kind = next((word for word in ("experts", "attn", "norm", "gate", "embed", "lm_head") if word in name), "other")
        classes.setdefault(kind, set()).add(_name(parameter.dtype))
    return {kind: ", ".join(sorted(dtypes)) for kind, dtypes in classes.items()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
