"""Token ids are the same for everyone, and named by what they are."""

import pytest

from harness.errors import UsageError
from harness.model import models
from harness.working import inputs
from harness.working.corpus import read_text, stdlib_text

TINY = str(models.DATA / "tinymoe")


def test_prompts_repeat_differ_among_themselves_and_stay_in_the_vocabulary():
    first, second = (inputs.make(inputs.Request(TINY, "prompts", 4, 32)) for _ in range(2))
    assert first == second and len(set(first.ids)) == 4
    assert all(len(ids) == 32 and 0 <= min(ids) and max(ids) < 2048 for ids in first.ids)


def test_a_smaller_batch_sees_the_first_prompts_of_a_larger_one():
    small, large = (inputs.make(inputs.Request(TINY, "prompts", count, 32)).ids for count in (2, 4))
    assert large[:2] == small


def test_windows_do_not_overlap_and_count_the_text_of_the_scored_tokens(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("The module defines the following exceptions. " * 40)
    made = inputs.make(inputs.Request(TINY, "windows", 3, 8, f"file:{file}"))
    whole = inputs.make(inputs.Request(TINY, "windows", 1, 24, f"file:{file}"))
    assert sum(made.ids, ()) == whole.ids[0]
    assert 0 < made.bytes < whole.bytes, "the first token of each window is context"


def test_equal_hashes_mean_equal_ids():
    short, long = (inputs.make(inputs.Request(TINY, "prompts", 2, length)) for length in (8, 16))
    assert short.sha256 != long.sha256


def test_a_text_shorter_than_one_window_is_refused(tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("short")
    with pytest.raises(UsageError, match="fewer than one window"):
        inputs.make(inputs.Request(TINY, "windows", 3, 512, f"file:{file}"))


def test_the_splits_of_stdlib_share_no_text():
    parts = {split: set(stdlib_text(split).split("\n\n")) for split in ("train", "validation", "test")}
    long = {split: {text for text in texts if len(text) > 200} for split, texts in parts.items()}
    assert all(long.values())
    assert not long["train"] & long["test"] and not long["train"] & long["validation"]
    assert read_text("stdlib") == stdlib_text("test")
