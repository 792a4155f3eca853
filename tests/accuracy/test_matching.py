"""Logit matching is what its definition says: computed again with NumPy, token by token, on real outputs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from real import WINDOWS

from harness import UsageError
from harness.accuracy.matching import Matching, match
from harness.accuracy.rows import Rows, rows_of
from harness.accuracy.tolerances import DEFAULT, Tolerance, parse
from harness.engine import Logits

CPU = torch.device("cpu")
PRECISIONS = ("bf16", "fp8", "fp8_block", "nvfp4", "mxfp4")  # beside FP32, whose logits have no ties
TOLERANCES = parse(DEFAULT)


def check(expected, actual, k, absolute, relative) -> tuple[float, bool]:
    """Of one position, after the definition: drop -inf, least squares, take the shift away, error of the expected top k."""
    usable = np.isfinite(expected) & np.isfinite(actual)
    expected, actual = expected[usable], actual[usable]
    (_, shift), *_ = np.linalg.lstsq(np.stack([expected, np.ones_like(expected)], 1), actual, rcond=None)
    actual = actual - shift
    top = np.argsort(-expected, kind="stable")[: k or len(expected)]
    error = np.max((np.abs(actual[top] - expected[top]) - absolute) / np.max(np.abs(expected[top])))
    return error, round(error, 2) <= relative


def matched(reference: list[Rows], actual: list[Rows], **changed) -> dict:
    matching = Matching(**{"tolerances": TOLERANCES, "divergence_tolerance": 0.001, **changed})
    for prompt, (expected, found) in enumerate(zip(reference, actual)):
        matching.add(expected, found, prompt, 0)
    return matching.summary()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_errors_verdicts_and_divergences_are_those_of_the_definition(outputs, precision):
    expected, actual = outputs["fp32"].logits, outputs[precision].logits
    found = matched(outputs["fp32"].rows, outputs[precision].rows)
    assert [row["k"] for row in found["checks"]] == ["all", "1000", "50", "5"]
    for row, tolerance in zip(found["checks"], TOLERANCES):
        ours = [check(e, a, tolerance.k, tolerance.absolute, tolerance.relative) for e, a in zip(expected, actual)]
        assert row["max_error"] == pytest.approx(max(error for error, _ in ours), rel=1e-6)
        assert row["tokens_failed"] == sum(not passed for _, passed in ours)
        assert row["passed"] is all(passed for _, passed in ours)
    a, b = expected.argmax(-1), actual.argmax(-1)
    far = [abs(row[j] - row[i]) >= 0.001 for row, i, j in zip(actual, a, b) if i != j]
    assert [not divergence["passed"] for divergence in found["divergences"]] == far
    assert found["passed"] is (all(row["passed"] for row in found["checks"]) and not any(far))
    assert (found["why"] is None) is found["passed"]
    assert found["tokens_checked"] == len(expected)


def test_the_reference_matches_itself_and_a_constant_shift_is_no_error(outputs):
    rows = outputs["bf16"].rows
    shifted = [dataclasses.replace(row, values=row.values + 3.25) for row in rows]
    for actual, shift in ((rows, 0), (shifted, 3.25)):
        found = matched(rows, actual)
        assert found["passed"] is True and found["why"] is None
        assert found["shift"]["mean"] == pytest.approx(shift, abs=1e-5)


def test_the_limit_is_rounded_to_the_digits_of_the_tolerance():
    expected = torch.linspace(-10, 10, 41)[None]
    base = dict(norm=torch.zeros(1), given=torch.zeros(1))
    for off, passed in ((0.533, True), (0.574, False)):
        actual = expected.clone()
        actual[0, -2] += off  # 1 / 41 of it is taken for a shift; of a largest expected logit of 10: 0.052 and 0.056
        found = matched(
            [Rows(expected, **base)],
            [Rows(actual, **base)],
            tolerances=(Tolerance(5, 0, 0.05),),
            divergence_tolerance=9.0,
        )
        assert found["passed"] is passed


def test_of_listed_log_probabilities_it_says_which_k_it_could_check(outputs):
    def listed(rows: Rows, count: int) -> Rows:
        logprobs, ids = rows.values.log_softmax(-1).topk(count, dim=-1)
        return rows_of(Logits(logprobs, ids, rows.given), torch.zeros(len(rows), dtype=torch.long), "")

    reference = outputs["bf16"].rows
    found = matched(reference, [listed(rows, 200) for rows in reference])
    assert {row["k"]: row["passed"] for row in found["checks"]} == {"all": None, "1000": None, "50": True, "5": True}
    assert found["passed"] is True and found["not_checked"] == ["all", "1000"]
    few = matched(reference, [listed(rows, 3) for rows in reference])
    assert few["passed"] is None and "too few log-probabilities" in few["why"]


def test_a_token_the_engine_does_not_list_can_fail_a_check(outputs):
    """It is at most as likely as the last listed: where even that is too far off, it is off."""
    rows = outputs["bf16"].rows[0]
    values, ids = rows.values.log_softmax(-1).topk(200, dim=-1)
    gone = Logits(values[:, 1:], ids[:, 1:], rows.given)  # the likeliest token of every position is missing
    found = matched([rows], [rows_of(gone, torch.zeros(len(rows), dtype=torch.long), "")])
    assert {row["k"]: row["passed"] for row in found["checks"]}["5"] is False
    assert found["passed"] is False


class Scripted:
    """Decodes as `bf16` does, but for one token at which its logits prefer another."""

    def __init__(self, session, wrong_at: int) -> None:
        self._session, self._wrong_at, self.asked = session, wrong_at, []

    def generate_logits(self, prompts, output_len, top):
        self.asked.append((len(prompts[0]), output_len))
        ((tokens, piece),) = self._session.generate_logits(prompts, output_len, top)
        at = self._wrong_at - len(prompts[0])
        if 0 <= at < output_len:
            values = piece.values.clone()
            other = (tokens[at] + 1) % values.shape[1]
            values[at, other] = values[at].max() + 1
            values[at + 1 :] = torch.randn_like(values[at + 1 :])  # what follows a wrong token is another text
            tokens = (*tokens[:at], other, *values[at + 1 :].argmax(-1).tolist())
            piece = Logits(values)
        return [(tokens, piece)]


class Kept:
    """Rows of a continuation, as a file gives them."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def rows(self, start: int, stop: int) -> Rows:
        return self._rows.part(start, stop)


def test_after_a_divergence_the_expected_token_is_put_in_and_decoding_goes_on(bf16):
    prompt = WINDOWS[0][:40]
    ((tokens, piece),) = bf16.generate_logits([prompt], 12, 2048)
    kept = Kept(rows_of(piece, torch.tensor(tokens), "").to(CPU))
    session, matching = Scripted(bf16, wrong_at=45), Matching(TOLERANCES, 0.001)
    match(session, [prompt + tokens], [40], kept, None, 2048, matching)
    found = matching.summary()
    assert session.asked == [(40, 12), (46, 6)]
    assert found["tokens_checked"] == 12
    ((divergence),) = found["divergences"]
    assert (divergence["prompt"], divergence["position"], divergence["passed"]) == (0, 5, False)
    assert divergence["difference"] == pytest.approx(1, abs=1e-4)
    assert all(row["tokens_failed"] <= 1 for row in found["checks"]), "what came after the wrong token was not checked"
    assert found["passed"] is False and "chosen differently" in found["why"]


def test_as_many_tokens_are_checked_as_were_asked_for(bf16):
    prompt = WINDOWS[1][:40]
    ((tokens, piece),) = bf16.generate_logits([prompt], 12, 2048)
    matching = Matching(TOLERANCES, 0.001)
    match(bf16, [prompt + tokens], [40], Kept(rows_of(piece, torch.tensor(tokens), "").to(CPU)), 7, 2048, matching)
    assert (matching.summary()["tokens_checked"], matching.summary()["passed"]) == (7, True)


@pytest.mark.parametrize(
    "text",
    ["", "5", "{}", "{5: 0.1}", "{5: (1, 2, 3)}", "{0: (1, 1)}", "{'a': (1, 1)}", "{5: (1, -1)}", "{5: (1, None)}"]
    + ["{5: (1e-5, float('inf'))}", "__import__('os').system('true')", "{" * 500, "{5: (1e-5, 1e999)}"],
)
def test_a_tolerance_map_that_does_not_parse_is_one_line(text):
    with pytest.raises(UsageError) as error:
        parse(text)
    assert "--tol-map" in str(error.value) and "\n" not in str(error.value)


def test_the_default_map_is_that_of_the_seeds():
    pairs = {tolerance.k: (tolerance.absolute, tolerance.relative) for tolerance in TOLERANCES}
    assert pairs == {None: (1e-5, 0.05), 1000: (1e-5, 0.03), 50: (1e-5, 0.03), 5: (1e-5, 0.03)}
