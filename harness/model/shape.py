"""A model's weights by part, its attention and its cache, from config.json alone: what work is counted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError

Config = Mapping[str, Any]
# The parts of a model, and under which of provenance's kinds of layer a record has their number formats.
KIND_OF = {
    "experts": "experts",
    "shared experts": "other",
    "dense MLP": "other",
    "attention projections": "attention",
    "router": "router",
    "head": "head",
    "embedding": "embedding",
    "norms": "embedding",  # kept in the model's own 16 or 32 bits, as the embedding is
}


EXPERT_COUNTS = ("num_experts", "n_routed_experts", "num_local_experts")  # keys, by the model's age and maker


class Uncountable(UsageError):
    """A config.json from which nothing can be counted: an unknown architecture, or a key that is not there."""


@dataclass(frozen=True)
class Shape:
    """Whole numbers of one model. Sizes are in elements, not bytes."""

    weights: Mapping[str, int]  # by part (KIND_OF), all layers and all experts together, biases included
    tied: bool | None  # the head is the embedding; None: not said, which matters for nothing but the total
    hidden: int
    experts: int  # per layer that has them; 0: a dense model
    chosen: int  # experts per token
    windows: tuple[int | None, ...]  # per layer: tokens that attention looks back; None: all
    cached: int  # elements of keys and values per token and layer
    pair_prefill: int  # MACs per query, key and layer, of all heads: q.k and the sum over v
    pair_decode: int  # the same for a single new token; latent attention then works on the cache itself

    @property
    def parameters(self) -> int:
        """Of the language model, without prediction heads for further tokens. Raises Uncountable."""
        if self.tied is None:
            raise Uncountable("config.json has no tie_word_embeddings")
        return sum(self.weights.values()) - (self.weights["head"] if self.tied else 0)


@dataclass(frozen=True)
class _Family:
    """What a config.json leaves to the code of its architecture."""

    expert_width: str | None = "moe_intermediate_size"  # its key; None: no experts
    dense_layers: str = ""  # how layers without experts are told: "first_k", "step" or ""
    head_size: bool = False  # hidden_size / num_attention_heads where head_dim is not said
    norms: str = ""  # of queries and keys: of each "head" alone, or of the whole "layer"
    biases: str = "qkvo"  # where attention_bias puts them
    always_biased: bool = False
    shared: str = ""  # the key of the shared experts' number or width
    latent: bool = False


_LLAMA = _Family(None, head_size=True)
_QWEN3 = _Family(dense_layers="step", norms="head")
_DEEPSEEK = _Family(dense_layers="first_k", shared="n_shared_experts", latent=True)
_GRANITE = _Family("intermediate_size", head_size=True)
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _Family(None, head_size=True, biases="qkv", always_biased=True),
    "qwen3": _Family(None, norms="head"),
    "mixtral": _Family("intermediate_size", head_size=True, biases=""),
    "qwen2_moe": _Family(
        dense_layers="step",
        head_size=True,
        biases="qkv",
        always_biased=True,
        shared="shared_expert_intermediate_size",
    ),
    "qwen3_moe": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3,
    "olmoe": _Family("intermediate_size", head_size=True, norms="layer"),
    "phimoe": _Family("intermediate_size", head_size=True),
    "granitemoe": _GRANITE,
    "granitemoeshared": _Family("intermediate_size", head_size=True, shared="shared_intermediate_size"),
    "gpt_oss": _Family("intermediate_size"),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm4_moe": _Family(dense_layers="first_k", biases="qkv", shared="n_shared_experts"),
    "minimax_m2": _Family("intermediate_size", norms="layer", biases=""),
}


def shape_of(config: Config) -> Shape:
    """`config` is a config.json of transformers; of one with several models in it the language model is taken.

    Raises Uncountable, which names the key: nothing that matters is filled in.
    """
    if not isinstance(config, Mapping):
        raise Uncountable("config.json holds no object")
    config = config["text_config"] if isinstance(config.get("text_config"), Mapping) else config
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise Uncountable(f"config.json: the architecture {name!r} is not known here; known: {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    hidden, layers, vocab = (_need(config, key) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
    experts, chosen = _experts(config) if family.expert_width else (0, 0)
    sparse = _sparse_layers(config, family, layers) if family.expert_width else 0
    dense = layers - sparse
    attention, norms, cached, pair_prefill, pair_decode = (_latent if family.latent else _grouped)(config, family)
    expert = 3 * hidden * _need(config, family.expert_width) if experts else 0
    router = hidden * experts
    if name == "gpt_oss":
        expert += 2 * _need(config, family.expert_width) + hidden
        router += experts
        norms += _need(config, "num_attention_heads")  # attention sinks
    if name == "qwen2_moe":
        router += hidden  # the gate of the shared expert
    two = 2 if name == "phimoe" else 1  # its norms have biases
    return Shape(
        weights={
            "experts": sparse * experts * expert,
            "shared experts": sparse * 3 * hidden * _shared_width(config, family) if sparse else 0,
            "dense MLP": dense * 3 * hidden * _need(config, "intermediate_size") if dense else 0,
            "attention projections": layers * attention,
            "router": sparse * router,
            "head": vocab * hidden + (vocab if config.get("lm_head_bias") else 0),
            "embedding": vocab * hidden,
            "norms": layers * (norms + 2 * two * hidden) + two * hidden,
        },
        tied=config.get("tie_word_embeddings"),
        hidden=hidden,
        experts=experts if sparse else 0,
        chosen=chosen,
        windows=_windows(config, layers),
        cached=cached,
        pair_prefill=pair_prefill,
        pair_decode=pair_decode,
    )


def _grouped(config: Config, family: _Family) -> tuple[int, int, int, int, int]:
    """One layer with heads of keys and values: weights, weights of norms, cached elements, MACs per pair twice."""
    hidden, heads, kv_heads = (
        _need(config, key) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    derived = family.head_size and config.get("head_dim") is None
    head = hidden // heads if derived else _need(config, "head_dim")
    queries, keys = heads * head, kv_heads * head
    weights = 2 * hidden * queries + 2 * hidden * keys
    if family.always_biased or family.biases and config.get("attention_bias"):
        weights += queries + 2 * keys + (hidden if family.biases == "qkvo" else 0)
    has_norms = family.norms or config.get("use_qk_norm")  # the latter is GLM's
    norms = (queries + keys if family.norms == "layer" else 2 * head) if has_norms else 0
    return weights, norms, 2 * keys, 2 * queries, 2 * queries


def _latent(config: Config, family: _Family) -> tuple[int, int, int, int, int]:
    """The same of multi-head latent attention, whose cache holds one latent vector and one rotary key per token."""
    hidden, heads, latent, plain, rotary, value = (
        _need(config, key)
        for key in (
            "hidden_size",
            "num_attention_heads",
            "kv_lora_rank",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "v_head_dim",
        )
    )
    if "q_lora_rank" not in config:
        raise Uncountable("config.json has no q_lora_rank")
    rank = _need(config, "q_lora_rank") if config["q_lora_rank"] else 0
    queries = rank * (hidden + heads * (plain + rotary)) if rank else hidden * heads * (plain + rotary)
    weights = (
        queries + hidden * (latent + rotary) + latent * heads * (plain + value) + heads * value * hidden
    )  # the up-projection costs the same MACs per new token whether keys are expanded or queries are absorbed
    if config.get("attention_bias"):
        weights += rank + latent + rotary + hidden
    return weights, rank + latent, latent + rotary, heads * (plain + rotary + value), heads * (2 * latent + rotary)


def _experts(config: Config) -> tuple[int, int]:
    """Experts per layer and how many of them a token chooses."""
    name = next((name for name in EXPERT_COUNTS if config.get(name) is not None), None)
    if name is None:
        raise Uncountable(f"config.json has none of {', '.join(EXPERT_COUNTS)}")
    experts, chosen = _need(config, name), _need(config, "num_experts_per_tok")
    if chosen > experts:
        raise Uncountable(f"config.json: num_experts_per_tok is {chosen}, of {experts} experts")
    return experts, chosen


def _sparse_layers(config: Config, family: _Family, layers: int) -> int:
    """Layers with experts."""
    if family.dense_layers == "first_k":
        first, every = _need(config, "first_k_dense_replace", least=0), config.get("moe_layer_freq") or 1
        if every != 1:
            raise Uncountable(f"config.json: moe_layer_freq is {every!r}; only 1 can be counted")
        return max(layers - first, 0)
    if family.dense_layers == "step":
        if "mlp_only_layers" not in config:
            raise Uncountable("config.json has no mlp_only_layers")
        step, excluded = _need(config, "decoder_sparse_step"), config["mlp_only_layers"] or []
        if not isinstance(excluded, list):
            raise Uncountable(f"config.json: mlp_only_layers is {str(excluded)[:40]!r}, expected a list")
        return sum((layer + 1) % step == 0 and layer not in excluded for layer in range(layers))
    return layers


def _shared_width(config: Config, family: _Family) -> int:
    if not family.shared:
        return 0
    found = _need(config, family.shared, least=0)
    return found * _need(config, "moe_intermediate_size") if family.shared == "n_shared_experts" else found


def _windows(config: Config, layers: int) -> tuple[int | None, ...]:
    """By layer_types where there are any. Without them a window is one of all layers, if it is used at all."""
    window = config.get("sliding_window")
    if types := config.get("layer_types"):
        if not isinstance(types, list) or len(types) != layers:
            raise Uncountable(f"config.json: layer_types does not have {layers} entries")
        if other := [kind for kind in types if kind not in ("full_attention", "sliding_attention")]:
            raise Uncountable(f"config.json: layer_types has {other[0]!r}, which is not known here")
        return tuple(_need(config, "sliding_window") if kind == "sliding_attention" else None for kind in types)
    if window is None or config.get("use_sliding_window") is False:
        return (None,) * layers
    if config.get("model_type") in ("gpt_oss", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"):
        raise Uncountable("config.json has a sliding_window but no layer_types: which layers use it is not said")
    return (_need(config, "sliding_window"),) * layers


def _need(config: Config, key: str, least: int = 1) -> int:
    """A whole number that must be there."""
    value = config.get(key)
    if value is None:
        raise Uncountable(f"config.json has no {key}")
    if type(value) is not int or not least <= value <= 1 << 40:
        raise Uncountable(f"config.json: {key} is {str(value)[:40]!r}, expected a whole number from {least} on")
    return value
