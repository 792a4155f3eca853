"""A loaded NxD Inference model: token ids in, tokens with host times out, log-probabilities of given tokens.

A: batch, T: tokens, V: vocabulary, N: tokens kept of a row.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from neuronx_distributed_inference.utils.hf_adapter import HuggingFaceGenerationAdapter, load_pretrained_config
from torch_neuronx.utils import get_platform_target
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from harness import BadOutput, Generation, Load, LoadFailed, Logits, OutOfMemory, Response, Unsupported
from harness.failures import is_out_of_memory
from harness.model.weights import config_of, fingerprint
from harness_neuron import compiled
from harness_neuron.compiled import Shape
from harness_neuron.facts import facts
from harness_neuron.steps import Clock, OnLogits, Watch

MODELS = {  # by model_type of config.json; each was looked up in NxD Inference 0.9, only the first was ever run
    "qwen3_moe": ("qwen3_moe.modeling_qwen3_moe", "NeuronQwen3MoeForCausalLM"),
    "mixtral": ("mixtral.modeling_mixtral", "NeuronMixtralForCausalLM"),
    "dbrx": ("dbrx.modeling_dbrx", "NeuronDbrxForCausalLM"),
}
PACKAGES = (
    "neuronx-distributed-inference",
    "neuronx-distributed",
    "torch-neuronx",
    "neuronx-cc",
    "libneuronxla",
    "nki",
)
VARIABLES = ("NEURON_CC_FLAGS", "NEURON_LOGICAL_NC_CONFIG", "XLA_FLAGS")  # they, too, change what is compiled
NO_MEMORY = ("NRT_RESOURCE", "RESOURCE_EXHAUSTED", "Failed to allocate")


class NeuronSession:
    """See harness.engine.Session. One model is on the device at a time: that of the shape last asked for."""

    def __init__(self, load: Load) -> None:
        setup = load.setup
        self._load, self._path = load, _checkpoint(setup.source)
        config = config_of(str(self._path)) or {}
        _check(load, config)
        self._class = _model_class(config)
        self._versions = {name: _version(name) for name in PACKAGES}
        ingredients = {
            "model": [fingerprint(str(self._path), "real", 0), config],
            "class": self._class.__name__,
            "platform": get_platform_target(),
            "packages": {**self._versions, "torch": torch.__version__, "transformers": _version("transformers")},
            "variables": {name: os.environ.get(name) for name in VARIABLES},
        }
        self._ingredients, self._places = ingredients, compiled.places(load, ingredients)
        self._model = self._adapter = self._shape = None
        self._compile_seconds: dict[Shape, float] = {}
        for shape in self._places:  # now, so that no cell waits for a compiler; the last is loaded when all are there
            self._open(shape)

    def facts(self) -> dict[str, Any]:
        shape = self._shape
        return facts(self._model, shape, self._places[shape], self._compile_seconds.get(shape), self._versions)

    def generate(self, prompts: Sequence[Sequence[int]], output_len: int) -> Generation:
        """By the adapter's own generate. A batch steps together, so its requests share their times."""
        tokens_AT, clock, started, finished = self._generate(prompts, output_len, Watch())
        return Generation(
            started, finished, tuple(Response(tuple(row), tuple(clock.times_ns)) for row in tokens_AT.tolist())
        )

    def generate_logits(
        self, prompts: Sequence[Sequence[int]], output_len: int, top: int
    ) -> list[tuple[tuple[int, ...], Logits]]:
        steps: list[torch.Tensor] = []
        tokens_AT, *_ = self._generate(prompts, output_len, Watch(lambda step, logits_AV: steps.append(logits_AV)))
        return [
            (tuple(row), _logits(logits_TV, torch.tensor(row), top))
            for row, logits_TV in zip(tokens_AT.tolist(), torch.stack(steps, dim=1))
        ]

    def score(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[float]]:
        for batch in self._batches(sequences):
            found = [torch.empty(len(batch), 0)]
            given_AT = torch.tensor(batch)[:, 1:]

            def keep(step: int, logits_AV: torch.Tensor) -> None:
                found.append(logits_AV.log_softmax(-1).gather(1, given_AT[:, step : step + 1]))

            self._force(batch, keep)
            yield from torch.cat(found, dim=1).tolist()

    def score_logits(self, sequences: Sequence[Sequence[int]], top: int) -> Iterator[Logits]:
        for batch in self._batches(sequences):
            steps: list[Logits] = []
            given_AT = torch.tensor(batch)[:, 1:]
            self._force(batch, lambda step, logits_AV: steps.append(_logits(logits_AV, given_AT[:, step], top)))
            for row in range(len(batch) if steps else 0):
                yield _rows([_row(step, row) for step in steps])

    def close(self) -> None:
        self._model = self._adapter = self._shape = None
        gc.collect()

    def _batches(self, sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
        """In order; each of one length, and as many as a graph takes."""
        for length, equal in itertools.groupby(sequences, len):
            equal = list(equal)
            room = max((shape.batch for shape in self._places if shape.holds(1, 1, length)), default=1)
            for start in range(0, len(equal), room):
                yield equal[start : start + room]

    def _force(self, sequences: Sequence[Sequence[int]], on_logits: OnLogits) -> None:
        """Prefill gives the logits of its last position only, so what is given is decoded, a token a step."""
        ids_AT = torch.tensor(sequences)
        if ids_AT.shape[1] > 1:
            self._generate(ids_AT[:, :1].tolist(), ids_AT.shape[1] - 1, Watch(on_logits, forced=ids_AT[:, 1:]))

    def _generate(
        self, prompts: Sequence[Sequence[int]], output_len: int, watch: Watch
    ) -> tuple[torch.Tensor, Clock, int, int]:
        """Tokens [A, output_len], what was seen of each, start and finish in ns."""
        if len({len(prompt) for prompt in prompts}) != 1:
            raise Unsupported("the prompts of one batch must be equally long")
        length = len(prompts[0])
        self._open(compiled.fitting(self._places, len(prompts), length, length + output_len))
        ids_AT, clock = torch.tensor(prompts), Clock(watch)
        config = _greedy(output_len)
        self._adapter.generation_config = config  # from here, too, the adapter would take an end-of-text token
        started = time.perf_counter_ns()
        self._model.reset()  # else the next prompt is decoded as if it continued the last one
        out_AT = self._adapter.generate(
            ids_AT,
            attention_mask=torch.ones_like(ids_AT),
            generation_config=config,
            logits_processor=LogitsProcessorList([watch]),
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        finished = time.perf_counter_ns()
        if out_AT.shape != (len(prompts), length + output_len) or len(clock.times_ns) != output_len:
            raise BadOutput(
                f"asked for {output_len} tokens, got {out_AT.shape[1] - length} in {len(clock.times_ns)} steps"
            )
        if not clock.is_finite():
            raise BadOutput("the logits are not finite (NaN or infinite)")
        return out_AT[:, length:], clock, started, finished

    def _open(self, shape: Shape) -> None:
        """The model of that shape, compiled if it never was, on the device."""
        if shape == self._shape:
            return
        self.close()
        folder, asked = self._places[shape], compiled.settings(shape, self._load)
        os.environ["BASE_COMPILE_WORK_DIR"] = f"{folder}/work/"  # else all compiles write over each other's files
        neuron_config = self._class.get_neuron_config_cls()(**asked)
        for name, value in asked.items():  # it takes any name, and only logs those it does not know
            if str(getattr(neuron_config, name, None)).removeprefix("torch.") != str(value):
                raise Unsupported(f"this NxD Inference takes no {name}={value}; version 0.9 does")
        try:
            config = self._class.get_config_cls()(neuron_config, load_config=load_pretrained_config(str(self._path)))
            model = self._class(str(self._path), config)
            if not compiled.is_whole(folder):
                if self._load.setup.skip_compile:
                    raise LoadFailed(f"--skip-compile: nothing was compiled at {folder}")
                started = time.perf_counter()
                model.compile(str(folder))
                self._compile_seconds[shape] = time.perf_counter() - started
                compiled.mark(folder, {**self._ingredients, "settings": asked}, self._compile_seconds[shape])
            model.load(str(folder))
        except Exception as error:
            raise _classified(error) from error
        self._model, self._adapter, self._shape = model, HuggingFaceGenerationAdapter(model), shape


def _checkpoint(source: str) -> Path:
    """The folder of a model; of a hub id, its safetensors are fetched. Raises LoadFailed when there are none."""
    if not Path(source).is_dir():
        from huggingface_hub import snapshot_download

        source = snapshot_download(source, allow_patterns=["*.json", "*.safetensors"])
    if not list(Path(source).glob("*.safetensors")):
        raise LoadFailed(f"{source} holds no safetensors; pickled weights are not read")
    return Path(source)


def _check(load: Load, config: dict[str, Any]) -> None:
    """What NxD Inference would refuse after minutes of compiling, or run as something else."""
    setup, room = load.setup, config.get("max_position_embeddings")
    experts, width = config.get("num_experts") or config.get("num_local_experts"), config.get("moe_intermediate_size")
    if setup.weights == "dummy":
        raise Unsupported("NxD Inference cannot make random weights: give a checkpoint")
    if setup.tp % setup.ep:
        raise Unsupported(f"expert parallelism {setup.ep} must divide tensor parallelism {setup.tp}")
    if experts and experts % setup.ep:
        raise Unsupported(f"{experts} experts cannot be split over {setup.ep} ranks (--ep)")
    if width and width % (slices := setup.tp // setup.ep):
        raise Unsupported(f"experts of width {width} cannot be split over {slices} ranks (--tp / --ep)")
    if room and load.max_sequence > room:
        raise LoadFailed(f"a cell needs sequences of {load.max_sequence} tokens, {setup.model} holds {room}")


def _model_class(config: dict[str, Any]) -> type:
    """The model's class. One that ties its output head to its embedding gets what NxD Inference's Qwen3-MoE lacks."""
    kind = config.get("model_type")
    if kind not in MODELS:
        raise Unsupported(f"this plugin knows no class of NxD Inference for {kind!r}, only for {', '.join(MODELS)}")
    module, name = MODELS[kind]
    found = getattr(importlib.import_module(f"neuronx_distributed_inference.models.{module}"), name)
    return type(name, (found,), {"update_state_dict_for_tied_weights": staticmethod(_tie)}) if _ties(config) else found


def _ties(config: dict[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings"))


def _tie(weights: dict[str, torch.Tensor]) -> None:
    weights["lm_head.weight"] = weights["embed_tokens.weight"].clone()


def _greedy(output_len: int) -> GenerationConfig:
    """With no end-of-text token, which is a token like others."""
    return GenerationConfig(max_new_tokens=output_len, do_sample=False, pad_token_id=0)


def _logits(values_NV: torch.Tensor, given_N: torch.Tensor, top: int) -> Logits:
    if top >= values_NV.shape[-1]:
        return Logits(values_NV)
    logprobs_NV = values_NV.log_softmax(-1)
    listed = logprobs_NV.topk(top)
    return Logits(listed.values, listed.indices, logprobs_NV.gather(-1, given_N[:, None])[:, 0])


def _row(step: Logits, row: int) -> tuple[torch.Tensor | None, ...]:
    return tuple(None if part is None else part[row] for part in (step.values, step.ids, step.given))


def _rows(parts: Sequence[tuple[torch.Tensor | None, ...]]) -> Logits:
    return Logits(*(None if column[0] is None else torch.stack(column) for column in zip(*parts)))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _classified(error: Exception) -> Exception:
    """Of an error while compiling or loading."""
    words = f"{type(error).__name__}: {error}"
    if is_out_of_memory(words) or any(phrase in words for phrase in NO_MEMORY):
        return OutOfMemory(words)
    return Unsupported(words) if isinstance(error, NotImplementedError) else LoadFailed(words)
