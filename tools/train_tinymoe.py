"""Trains the embedded model `tinymoe`: a real Qwen3-MoE checkpoint, small enough to live in the repository.

    python tools/train_tinymoe.py prepare WORK     # tokenizer and token ids, from this interpreter's documentation
    python tools/train_tinymoe.py train WORK OUT   # the model; a GPU takes minutes, two CPU cores about an hour

Needs torch and transformers 5.x. Every random choice hangs on SEED. The step with the lowest validation loss is
kept; the test split is read once, at the end, for the log. Nothing here looks at any precision but BF16.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from harness.working.corpus import stdlib_text

SEED = 20261121
VOCAB = 2048
SEQUENCE = 512  # tokens
BATCH = 32  # sequences
STEPS = 600
EVALUATE_EVERY = 25  # steps
PEAK_LR, WARMUP, WEIGHT_DECAY = 3e-3, 60, 0.5
BALANCE = 0.02  # weight of the load-balancing loss, taken per layer
END_OF_TEXT = "<|endoftext|>"

CONFIG = dict(
    vocab_size=VOCAB,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    moe_intermediate_size=128,
    intermediate_size=512,  # unused: every layer is sparse
    num_experts=8,
    num_experts_per_tok=2,
    norm_topk_prob=True,
    max_position_embeddings=2048,
    rope_theta=10000.0,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=0,
)


def main(argv: list[str]) -> None:
    match argv:
        case ["prepare", work]:
            prepare(Path(work))
        case ["train", work, out]:
            train(Path(work), Path(out))
        case _:
            raise SystemExit(__doc__)


def prepare(work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    texts = {split: stdlib_text(split) for split in ("train", "validation", "test")}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [texts["train"]],
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(work / "tokenizer.json"))
    ids = {split: torch.tensor(tokenizer.encode(text).ids) for split, text in texts.items()}
    save_file(ids, work / "tokens.safetensors")
    (work / "text.json").write_text(
        json.dumps(
            {
                "python": sys.version.split()[0],
                **{s: {"characters": len(t), "tokens": len(ids[s])} for s, t in texts.items()},
            }
        )
    )
    print((work / "text.json").read_text())


def train(work: Path, out: Path) -> None:
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = {split: ids.to(device) for split, ids in load_file(work / "tokens.safetensors").items()}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**CONFIG, experts_implementation="eager")).to(device)
    log = [
        f"python {json.loads((work / 'text.json').read_text())}",
        f"seed {SEED}, torch {torch.__version__}, {device}, {sum(p.numel() for p in model.parameters())} parameters",
    ]
    print("\n".join(log), flush=True)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK_LR,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _learning_rate)
    best, kept, started = math.inf, None, time.perf_counter()
    for step in range(1, STEPS + 1):
        model.train()
        with torch.autocast(device, dtype=torch.bfloat16):
            batch = _random_batch(tokens["train"])
            output = model(input_ids=batch, labels=batch, output_router_logits=True)
        balance = sum(_imbalance(logits) for logits in output.router_logits) / len(output.router_logits)
        loss = _next_token_loss(output.logits, batch)
        (loss + BALANCE * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % EVALUATE_EVERY == 0:
            validation = evaluate(model, tokens["validation"])
            line = f"step {step:5d}  train {loss.item():.4f}  validation {validation:.4f}  {time.perf_counter() - started:.0f} s"
            log.append(line)
            print(line, flush=True)
            if validation < best:
                best, kept = (
                    validation,
                    {k: v.detach().to("cpu", torch.bfloat16) for k, v in model.state_dict().items()},
                )
    model.load_state_dict({k: v.to(device, torch.float32) for k, v in kept.items()})
    model.to(torch.bfloat16)
    log += _held_out(model, tokens)
    print("\n".join(log[-12:]))
    _save(model, work, out)
    (out / "train.log").write_text("\n".join(log) + "\n")


def _learning_rate(step: int) -> float:
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))


def _random_batch(ids: torch.Tensor) -> torch.Tensor:
    starts = torch.randint(0, len(ids) - SEQUENCE, (BATCH, 1))
    return ids[(starts + torch.arange(SEQUENCE)).to(ids.device)]


def _next_token_loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def _imbalance(router_logits: torch.Tensor) -> torch.Tensor:
    """Switch-transformer balance loss of one layer: 1 when the load is even."""
    probabilities = router_logits.float().softmax(-1)
    chosen = probabilities.topk(CONFIG["num_experts_per_tok"], dim=-1).indices
    load = torch.nn.functional.one_hot(chosen, CONFIG["num_experts"]).float().sum(1).mean(0)
    return CONFIG["num_experts"] * (load / CONFIG["num_experts_per_tok"] * probabilities.mean(0)).sum()


@torch.no_grad()
def evaluate(model: Qwen3MoeForCausalLM, ids: torch.Tensor) -> float:
    """Mean NLL per token over non-overlapping windows."""
    model.eval()
    windows = ids[: len(ids) // SEQUENCE * SEQUENCE].view(-1, SEQUENCE)
    losses = [_next_token_loss(model(input_ids=w).logits, w).item() * len(w) for w in windows.split(16)]
    return sum(losses) / len(windows)


@torch.no_grad()
def _held_out(model: Qwen3MoeForCausalLM, tokens: dict[str, torch.Tensor]) -> list[str]:
    """The two facts the model must hold on text it never saw: it knows something, and all its experts work."""
    counts = torch.bincount(tokens["train"], minlength=VOCAB).double() + 1
    unigram = math.exp(-(counts / counts.sum()).log()[tokens["test"]].mean().item())
    perplexity = math.exp(evaluate(model, tokens["test"]))
    lines = [f"test perplexity {perplexity:.2f}, unigram model {unigram:.2f}, ratio {unigram / perplexity:.2f}"]
    windows = tokens["test"][: len(tokens["test"]) // SEQUENCE * SEQUENCE].view(-1, SEQUENCE)
    loads = torch.zeros(CONFIG["num_hidden_layers"], CONFIG["num_experts"])
    for batch in windows.split(16):
        for layer, logits in enumerate(model(input_ids=batch, output_router_logits=True).router_logits):
            chosen = logits.float().topk(CONFIG["num_experts_per_tok"], dim=-1).indices.flatten()
            loads[layer] += torch.bincount(chosen.cpu(), minlength=CONFIG["num_experts"])
    shares = loads / loads.sum(-1, keepdim=True) * CONFIG["num_experts"]
    return lines + [
        f"layer {i} expert load (1 = fair share): {' '.join(f'{s:.2f}' for s in row)}" for i, row in enumerate(shares)
    ]


def _save(model: Qwen3MoeForCausalLM, work: Path, out: Path) -> None:
    model.config._experts_implementation = None
    model.save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_file=str(work / "tokenizer.json"), eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    ).save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1:])
