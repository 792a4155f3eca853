"""Compiling, loading and running. The graphs have fixed shapes; the cache of keys and values outlives a call."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from neuronx_distributed_inference.models.config import InferenceConfig, NeuronConfig, sins
from neuronx_distributed_inference.models.hlo import module_of

COMPILED_MODEL_FILE_NAME = "model.pt"
TAGS = {"context_encoding_model": "max_context_length", "token_generation_model": None}


class NxdModel:
    """Weights and state, one mapping for each rank."""

    def __init__(self, weights: list[dict[str, torch.Tensor]], state: list[dict[str, torch.Tensor]]) -> None:
        self.weights, self.state = weights, state


class TracedModel:
    """What was compiled, on the device."""

    def __init__(self, nxd_model: NxdModel) -> None:
        self.nxd_model = nxd_model


class NeuronBaseForCausalLM(torch.nn.Module):
    """A model that is compiled to a folder, loaded from it, and then called a step at a time."""

    def __init__(
        self, model_path: str, config: InferenceConfig | None = None, neuron_config: NeuronConfig | None = None
    ) -> None:
        super().__init__()
        self.model_path = os.path.join(os.path.normpath(model_path), "")
        if neuron_config is not None:
            config.neuron_config = neuron_config
        self.config, self.neuron_config = config, config.neuron_config
        if self.neuron_config.tp_degree > 1:
            raise RuntimeError(f"the double has one core, {self.neuron_config.tp_degree} are asked for")
        self.on_device_sampling = self.neuron_config.on_device_sampling_config is not None
        self.is_loaded_to_neuron = self.kv_cache_populated = False
        self.traced_model: TracedModel | None = None
        self._work = os.environ.get("BASE_COMPILE_WORK_DIR", "/tmp/nxd_model/")
        self._hf: Any = None
        self._cache: DynamicCache | None = None

    @classmethod
    def get_config_cls(cls) -> type[InferenceConfig]:
        raise NotImplementedError("get_config_cls")

    @classmethod
    def get_neuron_config_cls(cls) -> type[NeuronConfig]:
        return cls.get_config_cls().get_neuron_config_cls()

    @staticmethod
    def update_state_dict_for_tied_weights(state_dict: dict[str, torch.Tensor]) -> None:
        raise NotImplementedError("this model ties its weights, and its class does not say how")

    def compile(  # not torch's
        self,
        compiled_model_path: str,
        debug: bool = False,
        pre_shard_weights_hook: Any = None,
        dry_run: bool = False,
        disable_fail_fast: bool = False,
    ) -> None:
        folder = Path(compiled_model_path)
        self.config.save(str(folder))
        for tag, length in TAGS.items():
            work = Path(self._work, tag, "_tp0_bk0")
            work.mkdir(parents=True, exist_ok=True)
            with (work / "log-neuron-cc.txt").open("a") as log:
                log.write("compiled\n")
            if sins("compile"):
                raise RuntimeError("neuronx-cc failed with 70: the double was told to")
            tokens = getattr(self.neuron_config, length) if length else 1
            (work / "model.MODULE_1.hlo_module.pb").write_bytes(module_of(self.config, tokens))
        if not dry_run:
            (folder / COMPILED_MODEL_FILE_NAME).write_text(self.config.to_json_string())

    def load(
        self,
        compiled_model_path: str,
        start_rank_id: int | None = None,
        local_ranks_size: int | None = None,
        skip_warmup: bool = False,
    ) -> None:
        file = Path(compiled_model_path, COMPILED_MODEL_FILE_NAME)
        if not file.is_file():
            raise ValueError(f"{file} is not there")
        if file.read_text() != self.config.to_json_string():
            raise RuntimeError(f"{file} was compiled for another configuration")
        if sins("oom"):
            raise RuntimeError("nrt_tensor_allocate status=4 NRT_RESOURCE: no room for 805306368 bytes")
        weights = self._checkpoint()
        dtype = self.neuron_config.torch_dtype
        self._hf = AutoModelForCausalLM.from_pretrained(self.model_path, dtype=dtype, use_safetensors=True).eval()
        torch.set_num_threads(1)
        heads, size = self.config.num_key_value_heads, self.neuron_config.max_length
        shape = (self.neuron_config.batch_size, heads, size, self.config.head_dim)
        state = {f"kv_mgr->past_key_values->{i}": torch.empty(shape, dtype=dtype, device="meta") for i in range(2)}
        self.traced_model = TracedModel(NxdModel([weights], [state]))
        self.is_loaded_to_neuron = True

    def _checkpoint(self) -> dict[str, torch.Tensor]:
        """By the names of the device's own model."""
        found: dict[str, torch.Tensor] = {}
        for file in sorted(Path(self.model_path).glob("*.safetensors")):
            found |= {name.removeprefix("model."): value for name, value in load_file(file).items()}
        found = {name: value.to(self.neuron_config.torch_dtype) for name, value in found.items()}
        found = self.convert_hf_to_neuron_state_dict(found, self.config)
        if self.config.tie_word_embeddings:
            self.update_state_dict_for_tied_weights(found)
        if "lm_head.weight" not in found:
            raise KeyError("lm_head.weight")
        return {name.replace(".", "->").replace("->weight", ".weight"): value for name, value in found.items()}

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict: dict[str, torch.Tensor], config: InferenceConfig) -> dict:
        return state_dict

    @torch.inference_mode()
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        seq_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        sampling_params: torch.Tensor | None = None,
        use_cache: bool | None = None,
        medusa_args: Any = None,
        return_dict: bool | None = None,
        **named: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [A, 1, V] in FP32, of the last position only. Which graph runs follows from the positions."""
        if not self.is_loaded_to_neuron:
            raise RuntimeError("called before it was loaded")
        if tuple(sampling_params.shape) != (len(input_ids), 3):
            raise ValueError(f"sampling parameters of shape {tuple(sampling_params.shape)}")
        if len(input_ids) > self.neuron_config.batch_size:
            raise ValueError(f"{len(input_ids)} rows for a graph of {self.neuron_config.batch_size}")
        is_prefill = position_ids.min().item() == 0
        room = self.neuron_config.max_context_length if is_prefill else self.neuron_config.max_length
        if attention_mask.shape[1] > room:
            raise ValueError(f"{attention_mask.shape[1]} tokens for a graph of {room}")
        if is_prefill:
            self._cache = DynamicCache(config=self._hf.config)
        outputs = self._hf(input_ids, None, position_ids, self._cache, use_cache=True, logits_to_keep=1)
        self.kv_cache_populated = True
        logits = outputs.logits[:, -1:].float()
        if sins("nan") and not is_prefill:
            logits[:, :, 7] = torch.nan
        answer = CausalLMOutputWithPast(logits=logits)
        answer.tokens = logits
        return answer

    def reset(self) -> None:
        """The next call is a prefill."""
        self.kv_cache_populated = False

    def get_required_kwargs(self) -> list[str]:
        return []
