"""transformers' generate around a compiled model. As in the original it calls logits processors and stopping criteria
at every step, a streamer never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation import GenerateDecoderOnlyOutput

from neuronx_distributed_inference.models.config import DTYPES, InferenceConfig, as_dict, sins

DEFAULTS = {"top_k": 50, "top_p": 1.0, "temperature": 1.0}  # of transformers 4.57's GenerationConfig


def load_pretrained_config(
    model_path_or_name: str | None = None, hf_config: PretrainedConfig | None = None
) -> Callable[[InferenceConfig], None]:
    """For `load_config` of an InferenceConfig: takes over what transformers reads."""

    def load_config(self: InferenceConfig) -> None:
        if (model_path_or_name is None) == (hf_config is None):
            raise ValueError("either a path or a config")
        found = (hf_config or AutoConfig.from_pretrained(model_path_or_name)).to_dict()
        dtype = found.pop("dtype", None) or found.pop("torch_dtype", None)
        if dtype is not None and not self.neuron_config.overrides_torch_dtype:
            self.neuron_config.torch_dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
        rope = found.get("rope_parameters") or {}  # the names of transformers 4.57, which the original requires
        given = {
            "rope_theta": rope.get("rope_theta"),
            "rope_scaling": None,
            "num_experts": found.get("num_local_experts"),
        }
        self.__dict__.update({**given, **found})

    return load_config


def prepare_sampling_params(batch_size: int, top_k: Any, top_p: Any, temperature: Any) -> torch.Tensor:
    """[A, 3]. A number stands for a list of one."""
    columns = [value if isinstance(value, list) else [value] for value in (top_k, top_p, temperature)]
    return torch.tensor(columns, dtype=torch.float32).T.expand(batch_size, 3)


class HuggingFaceGenerationAdapter(PreTrainedModel, GenerationMixin):
    """A model that transformers can generate with."""

    def __init__(self, model: Any, input_start_offsets: Any = None, capture_draft_logits: bool = False) -> None:
        plain = {name: value for name, value in as_dict(model.config).items() if name != "neuron_config"}
        super().__init__(PretrainedConfig(**{**plain, "dtype": model.config.neuron_config.torch_dtype}))
        self.neuron_model, self.neuron_config = model, model.config.neuron_config
        self.forward = model.forward
        self.sampler: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.prev_kv_cache_populated = False

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        if not sins("no reset"):
            self.neuron_model.reset()
        return super().generate(*args, **kwargs)

    def _prepare_cache_for_generation(self, *args: Any, **named: Any) -> None:
        """The cache is on the device."""

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        if self.sampler is None:  # the first call's choice is kept for the later ones
            if generation_config.do_sample:
                raise NotImplementedError("the double takes the likeliest token only")
            self.sampler = lambda scores: scores.argmax(-1)
        mask, whole = model_kwargs["attention_mask"], generation_config.return_dict_in_generate
        if mask is None:  # transformers 5 drops one that masks nothing; 4.57, which the original pins, does not
            mask = torch.ones_like(input_ids)
        chosen = [getattr(generation_config, name) or default for name, default in DEFAULTS.items()]
        sampling_params = prepare_sampling_params(len(mask), *chosen)
        scores, raw = [], []
        ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        going = torch.ones(len(input_ids), dtype=torch.long)
        while going.max() > 0:
            self.prev_kv_cache_populated = self.neuron_model.kv_cache_populated
            positions = mask.long().cumsum(-1) - 1
            step = input_ids
            if self.prev_kv_cache_populated:
                step, positions = input_ids[:, -1:], positions.amax(1, keepdim=True) + 1
            inputs = {"input_ids": step, "position_ids": positions, "attention_mask": mask}
            outputs = self(**inputs, sampling_params=sampling_params, return_dict=True)
            logits = outputs.logits[:, -1].clone()
            processed = logits_processor(input_ids, logits)
            scores.append(processed)
            raw.append(logits)
            token = self.sampler(processed)
            if ends:
                token = token * going + generation_config._pad_token_tensor * (1 - going)
            input_ids = torch.cat([input_ids, token[:, None]], dim=-1)
            if self.prev_kv_cache_populated:
                mask = torch.cat([mask.new_ones((len(mask), 1)), mask], dim=-1)
            going = going & ~stopping_criteria(input_ids, None)
            if sins("short") and len(raw) == 2:
                break
        if not whole:
            return input_ids
        kept = {"scores": tuple(scores) if generation_config.output_scores else None}
        kept["logits"] = tuple(raw) if generation_config.output_logits else None
        return GenerateDecoderOnlyOutput(sequences=input_ids, **kept)
