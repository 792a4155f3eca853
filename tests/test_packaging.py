"""Installed as a wheel, from an sdist and editable, on every supported Python found here, it works and shadows nothing."""

import functools
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
RUN = (
    "run",
    "--engine",
    "echo",
    "--precision",
    "bf16",
    "--workload",
    "perf",
    "--num-iterations",
    "2",
    "--output-dir",
    "out",
    "--json",
)


@pytest.fixture(scope="session")
def tree(tmp_path_factory) -> Path:
    """The sources alone, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("tree") / "moe-harness"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__"))
    return copy


@pytest.fixture(scope="session")
def built(tree, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", str(out), str(tree))
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


def run(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def python(version: str) -> str:
    """An interpreter of that version. A launcher that is there but starts nothing does not count."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sys.executable if sys.version.startswith(version + ".") else shutil.which(f"python{version}")
    if found is None or subprocess.run([found, "-c", ""], capture_output=True).returncode:
        found = next(iter(sorted(pyenv.glob(f"versions/{version}.*/bin/python"))), None)
    if found is None:
        pytest.skip(f"no Python {version} on this machine")
    return str(found)


def install(tmp_path: Path, interpreter: str, *what: str) -> Path:
    """By the pip of the tests, as a pip of its own would take longer to install than all the rest."""
    run(interpreter, "-m", "venv", "--without-pip", str(tmp_path / "venv"))
    pip = [sys.executable, "-m", "pip", "--python", str(tmp_path / "venv/bin/python"), "install", "--quiet"]
    run(*pip, "--no-compile", *what)
    return tmp_path / "venv/bin"


@pytest.fixture(scope="session")
def on(tree, built, tmp_path_factory):
    """`on(version)`: the programs of an environment with our wheel and the outside plugin, on that Python."""

    @functools.cache
    def on(version: str) -> Path:
        what = [str(built["wheel"]), str(tree / "tests/outside")]
        return install(tmp_path_factory.mktemp("installed"), python(version), *what)

    return on


@pytest.fixture(scope="session")
def installed(on) -> Path:
    """On the Python of the tests."""
    return on("{}.{}".format(*sys.version_info))


@pytest.mark.parametrize("version", PYTHONS)
def test_the_wheel_measures_on(version, on, tmp_path):
    bin = on(version)
    (record,) = json.loads(run(str(bin / "harness"), *RUN, cwd=tmp_path))
    assert record["status"] == "ok" and record["output_len"] == 32, "tinymoe's defaults came from the wheel's data"
    assert record["environment"]["python"].startswith(version)


def test_an_engine_runs_in_the_interpreter_it_is_given(installed, on, tree, tmp_path):
    """Its own environment and another Python: how engines that cannot share a torch version meet in one table."""
    other = next(version for version in PYTHONS if not sys.version.startswith(version))
    options = ["--python", f"echo={on(other) / 'python'}", "--workload", "perf,ppl"]
    command = [installed / "harness", *RUN, *options, "--dataset", f"file:{tree / 'LICENSE'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    perf, ppl = json.loads(done.stdout)
    assert perf["environment"]["python"].startswith(other)
    assert ppl["failure"]["class"] == "load_failed", "there is no tokenizer in that environment"
    assert "No module named 'tokenizers'" in ppl["failure"]["message"]


@pytest.mark.parametrize("kind", ["sdist", "editable"])
def test_it_measures_when_installed_as(kind, tree, built, tmp_path):
    what = [str(built["sdist"])] if kind == "sdist" else ["-e", str(tree)]
    bin = install(tmp_path, sys.executable, *what, str(tree / "tests/outside"))
    (record,) = json.loads(run(str(bin / "harness"), *RUN, cwd=tmp_path))
    assert record["status"] == "ok"


def test_a_folder_called_like_us_does_not_shadow_the_installed_harness(installed, tmp_path):
    (tmp_path / "harness").mkdir()
    (tmp_path / "harness/__init__.py").write_text("raise SystemExit('the wrong harness')")
    (record,) = json.loads(run(str(installed / "harness"), *RUN, cwd=tmp_path))
    assert record["status"] == "ok"


def test_the_core_depends_on_little_and_every_engine_is_an_extra(built):
    with zipfile.ZipFile(built["wheel"]) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(name for name in names if name.endswith("METADATA"))).decode()
    requires = [
        line.removeprefix("Requires-Dist: ") for line in metadata.splitlines() if line.startswith("Requires-Dist")
    ]
    core = {line.partition(">")[0] for line in requires if "extra" not in line}
    assert core == {"click", "pluggy", "rich", "nvidia-ml-py", "pyyaml", "jsonschema"}
    extras = {
        line.removeprefix("Provides-Extra: ") for line in metadata.splitlines() if line.startswith("Provides-Extra")
    }
    assert extras >= {"hf", "vllm", "trtllm", "sglang", "neuron", "ray", "report", "test"} and "all" not in extras
    assert "harness/data/tinymoe/model.safetensors" in names and "harness_hf/session.py" in names
    assert not [name for name in names if name.startswith(("plugins/", "tests/", "tools/"))]


IMPORT_VLLM = (
    "import sys, vllm; sys.exit(0 if getattr(vllm, '__version__', None) == '9.9.real' else 'shadowed: %s' % vllm)"
)


@pytest.fixture
def with_real_vllm(tree, installed, tmp_path):
    """An environment with a package `vllm`, and a checkout whose plugins/vllm has the layout every plugin has here."""
    packages = run(str(installed / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(packages, "vllm").mkdir(exist_ok=True)
    Path(packages, "vllm", "__init__.py").write_text("__version__ = '9.9.real'")
    checkout = tmp_path / "checkout"
    shutil.copytree(tree, checkout)
    (checkout / "plugins/vllm/harness_vllm").mkdir(parents=True, exist_ok=True)
    (checkout / "plugins/vllm/harness_vllm/__init__.py").touch()
    return installed / "python", checkout


@pytest.mark.parametrize("where", [".", "plugins", "plugins/vllm"])
def test_the_real_vllm_is_never_shadowed(where, with_real_vllm):
    interpreter, checkout = with_real_vllm
    run(str(interpreter), "-c", IMPORT_VLLM, cwd=checkout / where)
    run(str(interpreter), "-c", f"import sys; sys.path.insert(0, {str(checkout / where)!r}); {IMPORT_VLLM}", cwd="/")


def test_the_flat_layout_would_shadow_it(with_real_vllm):
    """The control: the check above can fail."""
    interpreter, checkout = with_real_vllm
    (checkout / "plugins/vllm/__init__.py").touch()
    assert (
        subprocess.run([interpreter, "-c", IMPORT_VLLM], cwd=checkout / "plugins", capture_output=True).returncode != 0
    )
