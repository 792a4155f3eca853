"""Checks of what an engine makes of a configuration without saying so. Facts, by engine and version; no engine is run.

TensorRT-LLM 1.2 reads hf_quant_config.json first; only without it config.json's quantization_config, of which it knows
fp8 with 128 x 128 blocks, mxfp4, and compressed-tensors with 8 bits, the first group alone. A method it does not know
there counts as not quantised, without a word. Later releases read ModelOpt's entry in config.json as well.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.jsonfile import Node
from harness.lint.findings import Finding
from harness.lint.scheme import HF_QUANT, MIXED, NOT_QUANTISED
from harness.lint.subject import Subject

TRTLLM = "TensorRT-LLM 1.2"
KNOWN_LATER = ("MXFP8", "W4A16_NVFP4")  # quant_algo


def trtllm_unquantised(subject: Subject) -> Iterator[Finding]:
    said = subject.in_config
    if subject.in_modelopt is not None or said is None or said.format == NOT_QUANTISED:
        return
    if said.method.startswith("modelopt"):
        what = f"{TRTLLM} (not later releases) ignores quant_method {said.method} in config.json and loads the model as"
        what += f" if it were not quantised, silently: there is no {HF_QUANT}"
        advice = f"add the {HF_QUANT} that ModelOpt writes, or measure with another engine"
    elif said.method == "fp8" and said.format == "fp8":
        what = f"{TRTLLM} ignores quant_method fp8 without weight_block_size and loads the model as if it were not"
        what += " quantised, silently"
        advice = "export with ModelOpt, or measure with another engine"
    else:
        return
    yield Finding("error", "loads-unquantised", "config.json", what, advice)


def trtllm_refuses(subject: Subject) -> Iterator[Finding]:
    """Not silent, hence a note: but known before the download to the GPU machine."""
    if reason := _reason(subject):
        advice = "measure with another engine, or export in another format"
        yield Finding("note", "engine-refuses", "config.json", f"{TRTLLM} refuses it: {reason}", advice)


def _reason(subject: Subject) -> str:
    said, ours = subject.in_config, subject.in_modelopt
    if ours is not None:
        word = (ours.algorithm or "").upper()
        return f"it does not know quant_algo {word}" if word in KNOWN_LATER else ""
    if said is None:
        return ""
    if said.method == "fp8" and said.format == "fp8_block" and {rule.block for _, rule in said.rules} != {(128, 128)}:
        return "its fp8 blocks are 128 x 128 only"
    if said.method == "compressed-tensors":
        weights, inputs = (_first_group(subject).at(key) for key in ("weights", "input_activations"))
        if weights.at("num_bits").value != 8:
            return f"compressed-tensors with {weights.at('num_bits').value} bits; it reads 8 only"
        pair = (weights.at("strategy").value, inputs.at("strategy").value)
        if pair not in (("channel", "token"), ("block", "group")):
            return f"compressed-tensors by {pair[0]} and {pair[1]}; it reads channel and token, or block and group"
    return ""


def trtllm_misreads(subject: Subject) -> Iterator[Finding]:
    said = subject.in_config
    if subject.in_modelopt is not None or said is None or said.method != "compressed-tensors" or _reason(subject):
        return
    if _first_group(subject).at("weights", "type").value == "int":
        what = f"{TRTLLM} looks at the bits and not at the type: it takes these 8-bit integers for FP8"
    elif said.format == MIXED:
        what = f"{TRTLLM} reads the first of its config_groups and takes all layers for that format"
    else:
        return
    yield Finding("error", "engine-misreads", "config.json", what, "measure with another engine")


def _first_group(subject: Subject) -> Node:
    outer = subject.checkpoint.config
    node = outer.at("quantization_config", "config_groups")
    if node.value is None:
        node = outer.at("text_config", "quantization_config", "config_groups")
    return node.at("group_0")


CHECKS = (trtllm_unquantised, trtllm_refuses, trtllm_misreads)
