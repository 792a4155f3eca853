"""Fixtures of the tests that run real processes: the plugin of tests/outside, installed, and a `harness` command."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Threads of two processes that wait for each other on the same cores wait in loops, and take the time they wait.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


def pytest_collection_modifyitems(items) -> None:
    """The slowest first, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: not {"with_vllm", "trtllm"} & {*item.path.parts})


def pytest_collection_finish() -> None:
    """What was imported stays: else every `gc.collect` before a measurement goes through all of PyTorch."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """A folder with the outside plugin as pip installs it. It is built from a copy, so the tree stays clean."""
    folder = tmp_path_factory.mktemp("outside")
    source = shutil.copytree(Path(__file__).parent / "outside", folder / "source")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder / "site", source]
    try:
        import setuptools  # noqa: F401

        command.append("--no-build-isolation")
    except ImportError:
        pass  # then pip fetches it
    subprocess.run(command, check=True)
    return folder / "site"


class Harness:
    """`harness ARGUMENTS` as a person would run it: a process of its own, in an empty folder, plugins installed."""

    def __init__(self, site: Path, root: Path) -> None:
        self.root = root
        self.folder = root / "work"  # where it runs
        self.plugins = root / "plugins"  # fake distributions are put here
        self.temporary = root / "temporary"
        self._mark = f"HARNESS_TEST_MARK={uuid.uuid4().hex}"
        for path in (self.folder, self.plugins, self.temporary):
            path.mkdir()
        name, value = self._mark.split("=")
        self.env = {key: text for key, text in os.environ.items() if key != "ECHO_SIN"}
        paths = [str(self.plugins), str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
        self.env |= {"TMPDIR": str(self.temporary), name: value}

    def start(self, *arguments: object, sin: str = "", python: tuple[str, ...] = (), before=None) -> subprocess.Popen:
        """The running process, its stderr in the file `stderr`. `python`: options of the interpreter itself.
        `before` is called in the child before it becomes `harness`."""

        def prepare() -> None:
            signal.signal(
                signal.SIGINT, signal.SIG_DFL
            )  # ignored, and that inherited, where tests run in the background
            if before:
                before()

        return subprocess.Popen(
            [sys.executable, *python, "-m", "harness", *map(str, arguments)],
            cwd=self.folder,
            env={**self.env, "ECHO_SIN": sin},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(self.root / "stderr").open("w"),
            text=True,
            errors="backslashreplace",
            preexec_fn=prepare,
        )

    def __call__(self, *arguments: object, **options) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **options)
        try:
            stdout, _ = process.communicate(timeout=180)
        finally:
            process.kill()
            process.wait()
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, self.stderr())

    def stderr(self) -> str:
        return (self.root / "stderr").read_text(errors="backslashreplace")

    def measure(self, *arguments: object, **options) -> subprocess.CompletedProcess:
        """A small run of the echo engine; an option given here again wins."""
        return self(*self.small(), *arguments, **options)

    def small(self) -> list[object]:
        text = self.root / "text"
        text.write_text("Every token is as likely as the next. " * 20)
        lengths = [
            "--input-len",
            8,
            "--output-len",
            4,
            "--num-iterations",
            2,
            "--warmup-iterations",
            1,
            "--num-chunks",
            2,
        ]
        return ["run", "--engine", "echo", "--output-dir", "out", "--dataset", f"file:{text}", *lengths]

    def records(self, folder: str = "out") -> list[dict]:
        return [json.loads(path.read_text()) for path in sorted((self.folder / folder / "records").glob("*.json"))]

    def processes(self) -> dict[int, str]:
        """Those that carry this test's mark or work in its folders, whoever their parent is by now: id and command line.
        An environment alone does not do: a process that gives itself a title writes over it."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                is_marked = self._mark.encode() in (process / "environ").read_bytes()
                if is_marked or str(self.temporary) in os.readlink(process / "cwd"):
                    found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it ended, or is not ours
                pass
        return found


@pytest.fixture
def harness(site, tmp_path):
    command = Harness(site, tmp_path)
    yield command
    for process in command.processes():  # what a failed test left running
        os.kill(process, signal.SIGKILL)


@pytest.fixture
def install(harness):
    def install(name: str, source: str, point: str | None = None) -> None:
        """A distribution of two files: the module `name`, and an entry point (`name`, if no other is given) to it."""
        (harness.plugins / f"{name}.py").write_text(textwrap.dedent(source))
        folder = harness.plugins / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[harness]\n{point or name} = {name}\n")

    return install


@pytest.fixture
def wait_until():
    def wait(condition, seconds: float) -> bool:
        """Whether `condition()` came true in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    return wait
