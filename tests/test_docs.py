"""What the documentation names exists, and what exists is documented."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness import hookspecs
from harness.cli import COMMANDS, cli
from harness.failures import CLASSES
from harness.precision import COMPUTE_MODES, PRECISIONS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
]
HOOKS = {name: function for name, function in vars(hookspecs).items() if name.startswith("harness_")}


def test_every_hook_is_documented_with_its_arguments():
    documented = dict(re.findall(r"^\| `(harness_\w+)\((.*?)\)`", (ROOT / "docs/plugins.md").read_text(), re.MULTILINE))
    assert documented == {name: ", ".join(inspect.signature(function).parameters) for name, function in HOOKS.items()}


def test_every_class_mode_and_emulated_format_is_explained():
    page = (ROOT / "docs/measuring.md").read_text()
    assert not [word for word in (*CLASSES, *COMPUTE_MODES, *set(PRECISIONS) - {"bf16"}) if f"`{word}`" not in page]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_shown_exists(page):
    for line in re.findall(
        r"harness ((?:run|sweep|report|results|compare|list|doctor|analyze|explain)[^`\n|]*)", page.read_text()
    ):
        command, *words = line.split()
        assert command in COMMANDS
        shown = CliRunner().invoke(cli, [command, *(words[:1] if command == "list" and words else []), "--help"])
        assert shown.exit_code == 0, f"harness {command} {words}: {shown.output}"
        for option in re.findall(r"--[a-z0-9-]+", line):
            assert option in shown.output, f"harness {command} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_named_in_a_page_is_there(page):
    for name in re.findall(r"`((?:docs|tests|tools|harness|plugins|benchmarks)/[\w./-]+)`", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("command", COMMANDS)
def test_the_line_in_help_is_the_commands_own_first_line(command):
    full = cli.get_command(None, command).help.split("\n\n")[0].replace("\n", " ")
    assert COMMANDS[command][1] == full


def test_the_page_of_support_is_what_the_engines_say():
    made = subprocess.run(
        [sys.executable, ROOT / "tools" / "support_page.py"], capture_output=True, text=True, check=True
    )
    assert (ROOT / "docs" / "support.md").read_text() == made.stdout
