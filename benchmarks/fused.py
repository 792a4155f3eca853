"""The fused decode step on a GPU: right against eager transformers, then each kernel and the whole against the memory.

    python benchmarks/fused.py                              # Qwen3-30B-A3B's shape, BF16, batch 1, 16 and 64
    python benchmarks/fused.py --precision fp8_block --batch-size 1,16
    python benchmarks/fused.py --model gpt-oss-20b --layers 4 --only correct

Random weights. A kernel is timed alone, over layers in turn so that none finds its weights in L2, in one CUDA graph;
its bytes are weights, and keys and values, each read once. The step is timed as the decoder runs it.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from harness_hf.fused import supports
from harness_hf.fused.attention import attend
from harness_hf.fused.decoder import FusedDecoder
from harness_hf.fused.dense import linear
from harness_hf.fused.experts import run_experts
from harness_hf.fused.routing import route
from harness_hf.fused.step import Layer, Step
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.initialization import no_init_weights

SHAPES = {
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
        "norm_topk_prob": True,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 24,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
    },
}
GROUPED = "grouped_mm"
REPEATS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="qwen3-30b-a3b")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--batch-size", default="1,16,64")
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--peak", type=float, default=4.8, help="of the memory, TB/s, of the data sheet")
    parser.add_argument("--only", choices=["correct", "kernels", "step"])
    options = parser.parse_args()
    sizes = [int(size) for size in options.batch_size.split(",")]

    model = built(options.model, options.layers)
    if why := supports(model.config, options.precision):
        raise SystemExit(why)
    print(
        f"{options.model}, {model.config.num_hidden_layers} layers, {options.precision}, {torch.cuda.get_device_name()}"
    )
    print(f"torch {torch.__version__}, {options.input_len} tokens in, {options.output_len} out, {options.peak} TB/s\n")
    eager = None
    if options.only in (None, "correct"):  # before weights are quantised: the fused step of FP8 leaves them as they are
        eager = {size: by_transformers(model, prompts(model, size, 64), 4) for size in sizes}
        for size in sizes:
            apart(model, prompts(model, size, 64), *eager[size])
    decoder = FusedDecoder(model, options.input_len + options.output_len, options.precision)
    if eager:
        for size in sizes:
            correct(decoder, prompts(model, size, 64), *eager[size])
    for size in sizes:
        if options.only in (None, "kernels"):
            kernels(decoder, size, options.input_len + options.output_len // 2, options.peak)
        if options.only in (None, "step"):
            whole(decoder, prompts(model, size, options.input_len), options.output_len)


def built(name: str, layers: int | None) -> PreTrainedModel:
    config = AutoConfig.for_model(**SHAPES[name])
    config.num_hidden_layers = layers or config.num_hidden_layers
    config._experts_implementation = GROUPED
    torch.manual_seed(0)
    with torch.device("cuda"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1.0)
        else:  # biases as small: large ones are the same for every token, and send all of them to the same experts
            parameter.data.normal_(std=0.02)
    return model


def prompts(model: PreTrainedModel, batch_size: int, length: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(1)
    return torch.randint(model.config.vocab_size, (batch_size, length), device="cuda", generator=generator)


@torch.inference_mode()
def by_transformers(
    model: PreTrainedModel, ids_AT: torch.Tensor, output_len: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Tokens and the logits of each step."""
    cache, step, tokens, logits = DynamicCache(config=model.config), ids_AT, [], []
    for _ in range(output_len):
        logits.append(
            model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        )
        step = logits[-1].argmax(-1)[:, None]
        tokens.append(step)
    return torch.cat(tokens, 1), logits


def apart(model: PreTrainedModel, ids_AT: torch.Tensor, tokens_AT: torch.Tensor, logits: list[torch.Tensor]) -> None:
    """How far two ways of transformers' own lie apart: a loop over experts beside the grouped product. Where rounding
    sends a token to another expert that is far, and the fused step cannot be nearer."""
    model.config._experts_implementation = "eager"
    compared("loop over experts", *by_transformers(model, ids_AT, len(logits)), tokens_AT, logits)
    model.config._experts_implementation = GROUPED


def correct(decoder: FusedDecoder, ids_AT: torch.Tensor, tokens_AT: torch.Tensor, logits: list[torch.Tensor]) -> None:
    """FP8 is held against BF16, so that its distance is that of the format, too."""
    found: list[torch.Tensor] = []
    made_AT, *_ = decoder.generate(ids_AT, len(logits), lambda logits_AV: found.append(logits_AV.float().clone()))
    compared("fused step", made_AT, found, tokens_AT, logits)


def compared(
    name: str, made_AT: torch.Tensor, found: list[torch.Tensor], tokens_AT: torch.Tensor, logits: list[torch.Tensor]
) -> None:
    """Of rows whose tokens are still the same (near ties part them): distance of logits, KL, and how many agree. A row
    that rounding sends to another expert lies far out, by itself."""
    print(f"{name}, batch {len(made_AT)}")
    for step in range(1, len(logits)):
        same_A = (made_AT[:, :step] == tokens_AT[:, :step]).all(1)
        if not same_A.any():
            print(f"  step {step}: no row has the same tokens any more")
            continue
        mine, theirs = found[step][same_A], logits[step][same_A]
        p, q = theirs.log_softmax(-1), mine.log_softmax(-1)
        kl_A = (p.exp() * (p - q)).sum(-1)
        same = (mine.argmax(-1) == theirs.argmax(-1)).float().mean().item()
        print(
            f"  step {step}: {len(kl_A)} rows, logits differ by {(mine - theirs).std():.4f} of {theirs.std():.3f} (std), "
            f"KL {kl_A.mean():.2e} (rows: median {kl_A.median():.2e}, largest {kl_A.max():.2e}), same token {same:.3f}"
        )
    print()


def parts(step: Step, position: int) -> Iterator[tuple[str, int, Callable[[Layer, int], object]]]:
    """Each group of kernels of a layer: name, bytes, and a call for one layer. Buffers are the step's own."""
    weights, layer = step._weights, step._weights.layers[0]
    x, y, rows = step._x_AH, step._y_AH, len(step._x_AH)
    step._position_1.fill_(position)
    # as many experts as distinct ids drawn for this batch
    experts, top = layer.router.weight_EH.shape[0], layer.router.top
    step._ids_AK.copy_(torch.rand(rows, experts, device=x.device).argsort(-1)[:, :top])
    active = len(step._ids_AK.unique())
    for tensor in (x, y, step._hidden_AH, step._qkv_AX, step._attended_AX, step._act_PI):
        tensor.normal_()
    step._shares_AK.fill_(1 / top)
    one = sum(_bytes(matrices.weight_EOI[0]) for matrices in (layer.up, layer.down))
    cached = 2 * _bytes(step.cache[0][0][:, :, :position])

    yield (
        "qkv",
        _bytes(layer.qkv_XH),
        lambda layer, index: linear(x, layer.qkv_XH, step._qkv_AX, layer.norm_H, weights.eps, layer.qkv_bias_X),
    )
    yield "attention", cached, lambda layer, index: attend(
        step._qkv_AX, layer.qk_norms, step._rotation, step.cache[index], layer.sinks, step._position_1, step._partial,
        step._attended_AX, weights.head_width**-0.5, weights.eps, layer.window,
    )  # fmt: skip
    yield (
        "output",
        _bytes(layer.out_HX),
        lambda layer, index: linear(step._attended_AX, layer.out_HX, y, bias_O=layer.out_bias_H, residual_AO=x),
    )
    ids_AK, shares_AK = torch.empty_like(step._ids_AK), torch.empty_like(step._shares_AK)
    yield (
        "router",
        _bytes(layer.router.weight_EH),
        lambda layer, index: route(y, layer.router, torch.empty_like(x), step._router_AE, ids_AK, shares_AK, None),
    )
    yield f"experts ({active})", active * one, lambda layer, index: run_experts(
        step._hidden_AH, y, step._ids_AK, step._shares_AK, layer.up, layer.down, layer.gate, step._act_PI,
        step._parts_PH, x, step._amaxes[index],
    )  # fmt: skip


@torch.inference_mode()
def kernels(decoder: FusedDecoder, batch_size: int, position: int, peak: float) -> None:
    step, _ = decoder._step_for(batch_size)
    layers = step._weights.layers
    step._amax_LX.fill_(1.0)
    print(f"batch {batch_size}, {position} tokens cached      us  us at peak    TB/s  % of peak")
    total = ideal = 0.0
    for name, size, call in parts(step, position):
        one = timed(lambda: [call(layer, index) for index, layer in enumerate(layers)]) / len(layers)
        total, ideal = total + one, ideal + size / peak / 1e6
        _line(name, one, size, peak)
    print(
        f"  all layers: {total * len(layers) / 1e3:.3f} ms of kernels; {ideal * len(layers) / 1e3:.3f} ms at the peak"
    )
    head = step._weights.head_VH
    one = timed(lambda: linear(step._x_AH, head, step.logits_AV, step._weights.norm_H, 1e-6, best=step._best))
    _line("head", one, _bytes(head), peak)
    print()


def whole(decoder: FusedDecoder, ids_AT: torch.Tensor, output_len: int) -> None:
    """Medians over passes, as harness run takes them: the gaps between tokens and the first token."""
    decoder.generate(ids_AT, min(8, output_len))
    gaps, firsts = [], []
    for _ in range(3):
        _, times, started, _ = decoder.generate(ids_AT, output_len)
        gaps += [(later - sooner) / 1e6 for sooner, later in zip(times, times[1:])]
        firsts.append((times[0] - started) / 1e6)
    print(f"batch {len(ids_AT)}: ITL {statistics.median(gaps):.3f} ms, TTFT {statistics.median(firsts):.2f} ms\n")


def timed(work: Callable[[], object]) -> float:
    """us of one call inside a CUDA graph; the median of REPEATS replays."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    found = []
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")  # bytes: more than any L2
    for _ in range(REPEATS):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) * 1e3)
    return statistics.median(found)


def _line(name: str, microseconds: float, size: int, peak: float) -> None:
    speed = size / microseconds / 1e6
    print(f"  {name:24s} {microseconds:9.2f} {size / peak / 1e6:11.2f} {speed:7.2f} {speed / peak:9.0%}")


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


if __name__ == "__main__":
    main()
