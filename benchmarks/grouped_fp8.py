"""The grouped FP8 products of experts beside PyTorch's in FP8 and BF16, without a model, on one GPU:

    python benchmarks/grouped_fp8.py --tokens 1,512,16384

For the experts of Qwen3-30B-A3B, gate and up, then down: microseconds of one product (median; its inputs quantised
before), TFLOP/s, and the largest difference from FP32 products as a share of the largest value.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import triton
from harness_hf.fp8 import TORCH, back, products_of, quantised_matrices, quantiser
from harness_hf.grouped import by_expert

EXPERTS, TOP, SHAPES = 128, 8, {"gate and up": (1536, 2048), "down": (2048, 768)}  # O, I


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1,16,512,16384")
    device = torch.device("cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}\n")
    print(f"{'tokens':>7}  {'product':12} {'kernel':40} {'us':>9} {'TFLOP/s':>8} {'off by':>8}")
    for tokens in map(int, parser.parse_args().tokens.split(",")):
        for name, (outs, width) in SHAPES.items():
            for kernel, milliseconds, off in rows(tokens, outs, width, device):
                rate = 2 * tokens * TOP * outs * width / milliseconds / 1e9
                print(f"{tokens:7}  {name:12} {kernel:40} {milliseconds * 1e3:9.1f} {rate:8.1f} {off:8.1e}")


@torch.inference_mode()
def rows(tokens: int, outs: int, width: int, device: torch.device) -> Iterator[tuple[str, float, float]]:
    """Each kernel, ms, difference. Tokens choose their experts evenly at random."""
    torch.manual_seed(0)
    _, ends_E = by_expert(torch.rand(tokens, EXPERTS, device=device).topk(TOP).indices, EXPERTS)
    rows_SI = torch.randn(tokens * TOP, width, device=device).bfloat16()
    weights_EOI = torch.randn(EXPERTS, outs, width, device=device).bfloat16() / width**0.5
    plain = lambda: torch._grouped_mm(rows_SI, weights_EOI.mT, offs=ends_E)  # noqa: E731
    yield "torch._grouped_mm, BF16", triton.testing.do_bench(plain, return_mode="median"), 0.0
    products = [
        ("fp8", products_of("fp8_block", device).experts),
        ("fp8_block", products_of("fp8_block", device).experts),
    ]
    if products_of("fp8", device) is TORCH:
        products.insert(0, ("fp8", TORCH.experts))
    for precision, product in products:
        small_SI, scale = quantiser(precision, on_gpu=False)(rows_SI)
        stored_EOI, scales = quantised_matrices(weights_EOI, precision)
        given = small_SI, scale, stored_EOI, scales, ends_E
        found_SO, exact = product.run(*given).float(), back(small_SI, scale)
        off, highest, start = 0.0, 0.0, 0
        for expert, end in enumerate(ends_E.tolist()):
            if end > start:
                wanted = exact[start:end] @ back(stored_EOI[expert], scales[expert]).T
                off = max(off, float((found_SO[start:end] - wanted).abs().max()))
                highest = max(highest, float(wanted.abs().max()))
            start = end
        taken = triton.testing.do_bench(lambda: product.run(*given), return_mode="median")  # noqa: B023
        yield f"{product.name}, {precision}", taken, off / highest


if __name__ == "__main__":
    main()
