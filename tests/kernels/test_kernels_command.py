"""`harness kernels classify`: names in, CSV out."""

import csv
import io
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from harness.commands.kernels import kernels
from harness.errors import UsageError


def classified(*arguments, names=None):
    result = CliRunner().invoke(kernels, ["classify", *map(str, arguments)], input=names, catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return list(csv.DictReader(io.StringIO(result.stdout)))


def test_names_are_labelled_in_their_order_and_empty_lines_are_left_out():
    rows = classified("-", names=b"fused_moe_kernel\n\n  nvjet_tst_64x8_64x16 \r\nxyzzy\nfused_moe_kernel")
    assert [tuple(row.values()) for row in rows] == [
        ("fused_moe_kernel", "expert_gemm", "name", "high"),
        ("nvjet_tst_64x8_64x16", "dense_gemm", "name", "high"),
        ("xyzzy", "other", "none", "low"),
        ("fused_moe_kernel", "expert_gemm", "name", "high"),
    ]


def test_a_name_with_commas_and_quotes_stays_one_value(tmp_path):
    file = tmp_path / "names"
    file.write_text('void act_and_mul_kernel<int, "x">(int, int)\n')
    assert [row["name"] for row in classified(file)] == ['void act_and_mul_kernel<int, "x">(int, int)']


def test_the_coarser_view_has_the_eight_categories():
    rows = classified("--coarse", "-", names=b"moe_align_block_size_kernel\nnvjet_tst_64x8\n")
    assert [row["category"] for row in rows] == ["routing", "other"]


def test_own_rules_come_before_the_built_in_ones(tmp_path):
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps([{"category": "comm", "match": "^fused_", "reason": "ours"}]))
    assert [row["category"] for row in classified("--rules", rules, "-", names=b"fused_moe_kernel\n")] == ["comm"]


def test_bad_bytes_and_control_characters_are_shown_not_sent_to_the_terminal():
    rows = classified("-", names=b"\xff\xferms_norm_kernel\n\x1b[31mfused_moe_kernel\0\n")
    assert [row["name"] for row in rows] == ["\\xff\\xferms_norm_kernel", "\\x1b[31mfused_moe_kernel\\x00"]


def test_a_line_without_end_is_one_name():
    assert len(classified("-", names=b"x" * 3_000_000 + b"\nfused_moe_kernel\n")) == 2


def test_no_names_a_folder_and_an_absent_file_are_said(tmp_path):
    for arguments, words in ((["-"], "no kernel names"), ([tmp_path], "cannot be read"), ([tmp_path / "a"], "No such")):
        with pytest.raises(UsageError, match=words):
            classified(*arguments, names=b"\n\n")


def test_names_need_no_table_engine():
    code = (
        "import sys; from harness.commands.kernels import kernels; kernels(['classify', '-'], standalone_mode=False);"
        "assert 'polars' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], input=b"fused_moe_kernel\n", check=True, stdout=subprocess.DEVNULL)
