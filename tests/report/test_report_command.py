"""`harness report`: one file, or a comment for a pull request; what is wrong costs one line."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from pages import PLAIN, failed, named
from scripted import record, scaled

from harness import cli
from harness.report import comment, page

H200 = Path(__file__).parents[2] / "docs/h200"


@pytest.fixture
def harness(monkeypatch, tmp_path):
    monkeypatch.setitem(cli.COMMANDS, "report", ("harness.commands.report:report", "x"))
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(cli.cli, ["report", *map(str, arguments)])


def test_markdown_goes_to_stdout_and_holds_verdict_table_and_conditions(harness, tmp_path):
    done = harness(H200, "--format", "md")
    assert done.exit_code == 0 and list(tmp_path.iterdir()) == []
    order = [done.stdout.index(part) for part in ("**Speed**", "### Results", "### Skipped", "### Conditions")]
    assert order == sorted(order)
    assert "| vllm | fp8_block | native | 64 |" in done.stdout
    assert "power_limit_w 700.0" in done.stdout and "differ from row to row: " in done.stdout


def test_a_suffix_says_the_format_and_nothing_else_is_left(harness, tmp_path):
    done = harness(H200, "--output", "out.md")
    assert done.stdout == "out.md\n" and [path.name for path in tmp_path.iterdir()] == ["out.md"]
    assert Path("out.md").read_text().startswith("## Which precision pays")


def test_markdown_of_a_hostile_record_is_text(harness, keep):
    evil = "a|b`c` <script>x</script> [y](http://z) @everyone #1 **d** _e_ ![](q)\n# no heading"
    bad = named(failed(scaled(1), evil, "```\n</details><b>\n````"), model=evil)
    text = harness(keep(bad, scaled(1), scaled(2, **PLAIN)), "--format", "md").stdout
    assert "<script" not in text and "\n# no" not in text and "@everyone" not in text and "http://" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("a&#124;b"))
    assert "\\[y\\](" in line and "\\*\\*d\\*\\*" in line and "\\_e\\_" in line and "\\#1" in line
    fence = text.index("`````text\n```\n</details><b>\n````\n`````\n</details>")  # only what is longer ends the block
    assert fence > 0


def test_markdown_of_many_records_fits_a_comment(harness, keep):
    one = scaled(1)
    many = [named(failed(one, "x" * 2000, "y" * 5000), i=i, model=f"model {i} " + "z" * 300) for i in range(120)]
    text = harness(keep(*many, *(named(one, batch_size=i + 1) for i in range(200))), "--format", "md").stdout
    assert len(text) <= 65_536 and text.count("<details>") == text.count("</details>")


@pytest.mark.parametrize(
    "plain", ["fp8_block at 1.39 (99 %: 1.38 to 1.39)", "Qwen/Qwen3-30B-A3B", "43.9", "x - y + z = 1"]
)
def test_plain_text_is_left_as_it_is(plain):
    assert comment.escaped(plain) == plain


@pytest.mark.parametrize("text", ["- x", "+ x", "1. x", "12) x", "=====", "# x", "~~~", "> x", "* x"])
def test_no_text_begins_a_block(text):
    assert comment.escaped(text)[0] in "\\&"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((), "Missing argument"), (("nowhere",), "'nowhere': No such file"), ((".",), "'.': no records in it")],
)
def test_what_is_wrong_is_one_line(harness, arguments, said):
    done = harness(*arguments, "--format", "md")
    assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_an_output_that_cannot_be_written_is_said(harness, tmp_path):
    done = harness(H200, "--output", "no/such/folder/x.md")
    assert (
        done.exit_code == 2
        and done.stderr == "error: 'no/such/folder/x.md' cannot be written: No such file or directory\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_html_without_its_packages_says_what_to_install_and_markdown_needs_none(harness, monkeypatch):
    monkeypatch.setattr(page, "NEEDED", {"no_such_module": "no-such"})
    done = harness(H200)
    assert (
        done.exit_code == 2 and "needs no-such: pip install 'moe-harness[report]'; or take --format md" in done.stderr
    )
    real = builtins.__import__

    def refuse(name, *rest):
        assert name.partition(".")[0] not in ("jinja2", "vl_convert", "numpy", "torch")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for name in [name for name in sys.modules if name.startswith("jinja2")]:
        monkeypatch.delitem(sys.modules, name)
    assert harness(H200, "--format", "md").exit_code == 0


def test_a_character_that_is_none_is_written_as_its_number(harness, keep):
    folder = keep(named(scaled(1), model="lone \ud800"))
    assert harness(folder, "--output", "out.md").exit_code == 0
    assert "lone \\ud800" in Path("out.md").read_text()


def test_results_of_another_tool_are_shown_too(harness, tmp_path):
    (tmp_path / "latency.json").write_text('{"avg_latency": 1.5, "latencies": [1.4, 1.6], "percentiles": {"50": 1.5}}')
    done = harness("latency.json", "--format", "md")
    assert done.exit_code == 0, done.stderr
    assert "1500.0" in done.stdout


def test_a_single_record_is_a_report(harness, keep):
    folder = keep(record("perf", [100.0, 101.0]))
    done = harness(folder / "records" / "0000.json", "--format", "md")
    assert done.exit_code == 0 and "1 record from" in done.stdout
