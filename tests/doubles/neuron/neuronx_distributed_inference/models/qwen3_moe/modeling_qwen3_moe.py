"""Qwen3-MoE. Like the original it knows untied checkpoints only, with each expert's matrices by themselves."""

from __future__ import annotations

import torch

from neuronx_distributed_inference.models.application_base import NeuronBaseForCausalLM
from neuronx_distributed_inference.models.config import InferenceConfig, MoENeuronConfig

REQUIRED = """head_dim hidden_act hidden_size max_position_embeddings moe_intermediate_size norm_topk_prob
num_attention_heads num_experts num_experts_per_tok num_hidden_layers num_key_value_heads rms_norm_eps rope_scaling
rope_theta tie_word_embeddings vocab_size""".split()


class Qwen3MoeInferenceConfig(InferenceConfig):
    """Of Qwen3-MoE."""

    def get_required_attributes(self) -> list[str]:
        return REQUIRED

    @classmethod
    def get_neuron_config_cls(cls) -> type[MoENeuronConfig]:
        return MoENeuronConfig


class NeuronQwen3MoeForCausalLM(NeuronBaseForCausalLM):
    """Of Qwen3-MoE."""

    @classmethod
    def get_config_cls(cls) -> type[Qwen3MoeInferenceConfig]:
        return Qwen3MoeInferenceConfig

    @staticmethod
    def convert_hf_to_neuron_state_dict(state_dict: dict[str, torch.Tensor], config: InferenceConfig) -> dict:
        """The experts of a layer become two stacked matrices, and the gate a router."""
        for layer in range(config.num_hidden_layers):
            mlp = f"layers.{layer}.mlp"
            state_dict[f"{mlp}.router.linear_router.weight"] = state_dict.pop(f"{mlp}.gate.weight")
            each = [
                [state_dict.pop(f"{mlp}.experts.{expert}.{name}_proj.weight").T for name in ("gate", "up", "down")]
                for expert in range(config.num_experts)
            ]
            into = f"{mlp}.expert_mlps.mlp_op"
            state_dict[f"{into}.gate_up_proj.weight"] = torch.stack([torch.cat(three[:2], dim=1) for three in each])
            state_dict[f"{into}.down_proj.weight"] = torch.stack([three[2] for three in each])
        return state_dict
