"""KL, agreement and overlap are what their definitions say, computed again with NumPy on real outputs of tinymoe."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from harness.accuracy.divergence import BOUND, EXACT, Divergence
from harness.accuracy.rows import Rows, Section, align

PRECISIONS = ("fp32", "fp8", "fp8_block", "nvfp4", "mxfp4")
TIE = 1e-5


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl(p, q):
    return (np.exp(p) * (p - q)).sum(-1)


def compare(reference: list[Rows], actual: list[Rows]) -> Divergence:
    divergence = Divergence()
    for sequence, (expected, found) in enumerate(zip(reference, actual)):
        divergence.add(align(expected, found), sequence, 1)
    return divergence


def kept(rows: Rows, count: int) -> Rows:
    """As a file that keeps the likeliest has it."""
    section = Section([[0] * (len(rows) + 1)], [1], count)
    section.add(rows)
    tensors = section.tensors()
    values, ids = tensors["top_logprobs"], tensors["top_ids"].long()
    return Rows(values, torch.zeros(len(values)), tensors["given"], ids, tensors["tail_logprob"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_figure_is_its_definition(outputs, following, precision):
    p, q = (log_softmax(outputs[name].logits) for name in ("bf16", precision))
    found = compare(outputs["bf16"].rows, outputs[precision].rows).summary()
    for name, values in (("kl_forward", kl(p, q)), ("kl_reverse", kl(q, p))):
        assert found[name]["mean"] == pytest.approx(values.mean(), rel=1e-6, abs=1e-9)
        assert found[name]["p50"] == pytest.approx(np.percentile(values, 50), rel=1e-6, abs=1e-9)
        assert found[name]["p99"] == pytest.approx(np.percentile(values, 99), rel=1e-6, abs=1e-9)
        assert found[name]["max"] == pytest.approx(values.max(), rel=1e-6, abs=1e-9)
        assert found[name]["n"] == len(values) == len(following)
    assert found["kl_is"] == EXACT
    agree = p.argmax(-1) == q.argmax(-1)
    assert found["top1_agreement"] == agree.mean() < 1
    ours, theirs = (np.sort(side, -1)[:, -10:-9] for side in (p, q))  # the tenth likeliest; BF16 logits have ties
    fewest, most = (((p > ours + TIE) & (q >= theirs - TIE)).sum(-1), ((p >= ours - TIE) & (q >= theirs - TIE)).sum(-1))
    assert fewest.mean() / 10 <= found["topk_overlap"]["mean"] <= most.mean() / 10
    assert found["topk_overlap"]["k"] == 10
    rows = np.arange(len(following))
    difference = p[rows, following] - q[rows, following]
    assert found["nll_difference"]["mean"] == pytest.approx(difference.mean(), abs=1e-5)
    assert found["nll_difference"]["of_absolute_values"]["max"] == pytest.approx(np.abs(difference).max(), abs=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_first_divergence_is_where_the_likeliest_token_first_differs(outputs, precision):
    pairs = list(zip(outputs["bf16"].rows, outputs[precision].rows))
    differs = [(a.values.numpy().argmax(-1) != b.values.numpy().argmax(-1)).nonzero()[0] for a, b in pairs]
    first = {index: int(found[0]) + 1 for index, found in enumerate(differs) if len(found)}
    found = compare(*zip(*pairs)).summary()["first_divergence"]
    assert (found["sequences"], found["diverged"]) == (6, len(first))
    assert found["earliest_token"] == min(first.values())
    assert found["median_token"] == np.median(list(first.values()))


def test_a_model_is_no_distance_from_itself(outputs):
    found = compare(outputs["bf16"].rows, outputs["bf16"].rows).summary()
    assert found["kl_forward"]["max"] == found["kl_reverse"]["max"] == 0
    assert found["top1_agreement"] == found["topk_overlap"]["mean"] == 1
    stored = compare([kept(rows, 64) for rows in outputs["bf16"].rows], outputs["bf16"].rows).summary()
    assert stored["top1_agreement"] == stored["topk_overlap"]["mean"] == 1, "equal logits are taken in one order"
    assert stored["kl_forward"]["max"] < 1e-6 and stored["kl_reverse"]["max"] < 1e-6
    assert found["first_divergence"]["diverged"] == 0 and found["first_divergence"]["earliest_token"] is None


@pytest.mark.parametrize("kept_of", [("reference",), ("actual",), ("reference", "actual")])
@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
def test_of_the_likeliest_alone_kl_is_a_close_lower_bound(outputs, precision, kept_of):
    reference, actual = outputs["bf16"].rows, outputs[precision].rows
    exact = compare(reference, actual)
    if "reference" in kept_of:
        reference = [kept(rows, 64) for rows in reference]
    if "actual" in kept_of:
        actual = [kept(rows, 64) for rows in actual]
    bound = compare(reference, actual)
    assert bound.summary()["kl_is"] == BOUND
    assert (bound.positions() <= exact.positions() + 1e-6).all()
    assert bound.positions().mean() > 0.5 * exact.positions().mean()
    assert bound.summary()["top1_agreement"] == exact.summary()["top1_agreement"]


def test_a_bound_is_the_sum_over_known_tokens_and_one_bucket(outputs):
    p, q = (log_softmax(outputs[name].logits) for name in ("fp32", "mxfp4"))
    ids = (-p).argsort(-1, kind="stable")[:, :64]
    known_p, known_q = (np.take_along_axis(side, ids, -1) for side in (p, q))
    rest_p, rest_q = (np.log1p(-np.exp(side).sum(-1)) for side in (known_p, known_q))
    expected = kl(known_p, known_q) + np.exp(rest_p) * (rest_p - rest_q)
    found = compare([kept(rows, 64) for rows in outputs["fp32"].rows], outputs["mxfp4"].rows)
    np.testing.assert_allclose(found.positions(), expected, rtol=1e-4, atol=5e-6)


def test_a_token_ruled_out_on_one_side_alone_is_counted_as_infinite_and_not_averaged(outputs):
    rows = outputs["bf16"].rows[0]
    values = rows.values.clone()
    values[3, 7] = -torch.inf
    found = compare([rows], [dataclasses.replace(rows, values=values)]).summary()
    assert (found["kl_forward"]["infinite"], found["kl_forward"]["n"]) == (1, len(rows) - 1)
    assert found["kl_forward"]["mean"] == pytest.approx(0, abs=1e-9)
    both = compare([dataclasses.replace(rows, values=values)] * 1, [dataclasses.replace(rows, values=values)]).summary()
    assert (both["kl_forward"]["infinite"], both["kl_forward"]["max"]) == (0, 0)


@pytest.mark.parametrize("precision", ["bf16", "mxfp4"])
@pytest.mark.parametrize("shift", [0, 300])
def test_the_likeliest_are_found_wherever_they_are_looked_for_first(outputs, precision, shift):
    rows = outputs[precision].rows[0]
    near = (rows.top(64)[0] + shift) % 2048  # right, or mostly wrong
    ids, values = rows.top(10, near)
    assert (values == rows.top(10)[1]).all() and (rows.values.gather(-1, ids) == values).all()
    assert (ids[:, 0] == rows.likeliest).all()  # of equal ones which comes tenth is chance
    assert all(len(set(row)) == 10 for row in ids.tolist())
