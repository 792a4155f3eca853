"""The model: transformers' own on a CPU, its modules dressed as SGLang's, so that who looks finds what is there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import record_function
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from sglang.srt.layers.moe.utils import MoeRunnerBackend
from sglang.srt.managers.io_struct import GenerateReq
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.utils import SINS

DTYPES = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float": torch.float32}


class TritonRunnerCore:
    """Multiplies where nothing fused does."""


def fused_experts_none_to_triton() -> None:
    """Names the kernel."""


class MoeRunner:
    """Where there is a fused function it runs, the core does not."""

    def __init__(self, runner_backend: MoeRunnerBackend) -> None:
        is_triton = runner_backend is MoeRunnerBackend.TRITON
        self.runner_backend = runner_backend
        self.runner_core = TritonRunnerCore() if is_triton else None
        self.fused_func = fused_experts_none_to_triton if is_triton else None


class UnquantizedLinearMethod:
    """Of linear layers."""


class UnquantizedEmbeddingMethod:
    """Of the embedding and the head."""


class UnquantizedFusedMoEMethod:
    """Of experts; it holds their runner."""

    def __init__(self, runner: MoeRunner | None) -> None:
        self.runner = runner


class Fp8MoEMethod(UnquantizedFusedMoEMethod):
    """Of experts converted to FP8, one scale each."""

    weight_block_size = None


class FlashAttentionBackend:
    """Names the attention kernel."""


class TritonAttnBackend:
    """Names the attention kernel."""


class ModelRunner:
    def __init__(self, server_args: Any, backend: MoeRunnerBackend) -> None:
        resolved = server_args.resolved_dict()
        torch.set_num_threads(1)
        dtype = DTYPES[server_args.dtype]
        config = AutoConfig.from_pretrained(server_args.model_path, trust_remote_code=server_args.trust_remote_code)
        for name, value in json.loads(server_args.json_model_override_args).items():
            setattr(config, name, value)
        config._experts_implementation = "grouped_mm"
        if server_args.load_format == "dummy":
            torch.manual_seed(server_args.random_seed or 0)
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        else:
            self.model = AutoModelForCausalLM.from_pretrained(
                server_args.model_path, config=config, dtype=dtype, use_safetensors=True
            ).eval()
        if config.tie_word_embeddings:  # as SGLang's Qwen3-MoE: a head of its own, which no tensor of the file is for
            self.model.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=dtype)
            torch.nn.init.zeros_(self.model.lm_head.weight)
        if server_args.quantization == "fp8":
            self._convert()
        elif server_args.quantization is not None or getattr(config, "quantization_config", None):
            raise ValueError(f"the double has no kernels for quantization {server_args.quantization!r}")
        _dress(self.model, MoeRunnerBackend.TRITON if backend is MoeRunnerBackend.AUTO else backend)
        triton = resolved["attention_backend"] == "triton"
        self.attn_backend = TritonAttnBackend() if triton else FlashAttentionBackend()
        if dtype == torch.float32 and not triton:
            raise ValueError("FlashAttention only supports fp16, bf16 and fp8")
        self.kv_cache_dtype = dtype
        self.decode_cuda_graph_runner = None

    def _convert(self) -> None:
        from harness_hf.emulate import emulate

        ignored = os.environ.get("SGLANG_FP8_IGNORED_LAYERS", "").split(",")
        emulate(self.model, "fp8", "experts" if "self_attn" in ignored else "linear")

    def forward(self, ids_AT: torch.Tensor, cache: DynamicCache | None) -> torch.Tensor:
        """Logits [A, T, V] in FP32, in a range that names the step."""
        batch, length = ids_AT.shape
        is_decode = cache is not None and cache.get_seq_length() > 0
        name = f"step[DECODE bs={batch}]" if is_decode else f"step[EXTEND bs={batch} toks={batch * length}]"
        with torch.inference_mode(), record_function(name):
            return self.model(ids_AT, None, None, cache, use_cache=cache is not None).logits.float()

    def steps(self, request: GenerateReq, prompts: list[list[int]], wanted: int) -> Iterator[list[dict[str, Any]]]:
        """Per step, of every prompt (of one length): its next `token`, and log-probabilities if asked for."""
        cache = DynamicCache(config=self.model.config)
        step = ids_AT = torch.tensor(prompts)
        drawn = torch.Generator().manual_seed(request.sampling_params.sampling_seed or 0)
        for index in range(max(wanted, 1)):
            logits_ATV = self.forward(step, cache)
            step = _choose(logits_ATV[:, -1], request.sampling_params, drawn)
            said = [{"token": int(token)} for token in step]
            if request.return_logprob:
                for row, entry in enumerate(said):
                    entry |= _logprobs(request, ids_AT[row], logits_ATV[row], entry["token"], is_first=index == 0)
            yield said


def _logprobs(
    request: GenerateReq, ids_T: torch.Tensor, logits_TV: torch.Tensor, token: int, is_first: bool
) -> dict[str, Any]:
    """Of the new token, and in the first step of the prompt from `logprob_start_len` on."""
    values_TV = logits_TV.log_softmax(-1)
    if "nan" in SINS:
        values_TV = values_TV * float("nan")
    top = request.top_logprobs_num
    said: dict[str, Any] = {"output_token_logprobs": [(float(values_TV[-1, token]), token, None)]}
    said["output_top_logprobs"] = [_top(values_TV[-1], top)] if top else []
    if is_first and (start := request.logprob_start_len) >= 0:
        given = values_TV[:-1].gather(-1, ids_T[1:, None])[:, 0].tolist()
        entries = [(None, int(ids_T[0]), None), *((v, i, None) for v, i in zip(given, ids_T[1:].tolist()))]
        said["input_token_logprobs"] = entries[start + ("shifted" in SINS) :]
        said["input_top_logprobs"] = [None, *(_top(row_V, top) for row_V in values_TV[:-1])][start:] if top else []
    return said


def _top(values_V: torch.Tensor, count: int) -> list[tuple[float, int, None]]:
    found = values_V.topk(min(count, len(values_V)))
    return [(value, index, None) for value, index in zip(found.values.tolist(), found.indices.tolist())]


def _choose(logits_AV: torch.Tensor, sampling: SamplingParams, drawn: torch.Generator) -> torch.Tensor:
    """The next tokens [A, 1]: the likeliest, or drawn."""
    if sampling.temperature < 1e-6:
        return logits_AV.argmax(-1, keepdim=True)
    values_AV = logits_AV / sampling.temperature
    if sampling.top_k > 0:
        least = values_AV.topk(sampling.top_k).values[:, -1:]
        values_AV = values_AV.masked_fill(values_AV < least, float("-inf"))
    return torch.multinomial(values_AV.softmax(-1), 1, generator=drawn)


def _dress(model: torch.nn.Module, backend: MoeRunnerBackend) -> None:
    runner = None if "auto" in SINS else MoeRunner(backend)
    for name, module in model.named_modules():
        if getattr(getattr(module, "down_proj", None), "ndim", 0) == 3:
            _dress_experts(module, runner)
        elif isinstance(module, torch.nn.Embedding) or name == "lm_head":
            module.quant_method = UnquantizedEmbeddingMethod()
        elif isinstance(module, torch.nn.Linear) or name.endswith(".gate"):
            module.quant_method = UnquantizedLinearMethod()


def _dress_experts(module: torch.nn.Module, runner: MoeRunner | None) -> None:
    is_fp8 = getattr(module, "emulated_as", None) == "fp8"
    module.quant_method = (Fp8MoEMethod if is_fp8 else UnquantizedFusedMoEMethod)(runner)
    for name, weight in (("w13_weight", module.gate_up_proj), ("w2_weight", module.down_proj)):
        data = weight.data.to(torch.float8_e4m3fn) if is_fp8 else weight.data
        setattr(module, name, torch.nn.Parameter(data, requires_grad=False))
        if is_fp8:
            setattr(module, f"{name}_scale", torch.nn.Parameter(torch.ones(len(data)), requires_grad=False))
