"""The page itself: a template, styles, scripts and data in one file that asks no network, and is not able to."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from harness import __version__
from harness.errors import HarnessError, UsageError

HERE = Path(__file__).parent
NEEDED = {"jinja2": "jinja2", "vl_convert": "vl-convert-python"}  # module -> distribution
BUNDLE = "import sys, vl_convert; sys.stdout.reconfigure(encoding='utf-8'); print(vl_convert.javascript_bundle())"
PATIENCE = 120  # seconds for the bundle
IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # so that no text can end the element it is in


@contextmanager
def vega() -> Iterator[Callable[[], str]]:
    """Starts to bundle Vega-Lite, in a process of its own as it holds the interpreter for two seconds, and gives the
    function that waits for it. Raises UsageError where the extra is not installed."""
    if missing := [name for module, name in NEEDED.items() if find_spec(module) is None]:
        raise UsageError(
            f"an HTML report needs {' and '.join(missing)}: pip install 'moe-harness[report]'; or take --format md"
        )
    command = [sys.executable, "-c", BUNDLE]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)

    def script() -> str:
        try:
            found, said = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise HarnessError(f"vl-convert-python did not bundle Vega-Lite in {PATIENCE} s") from None
        if process.returncode:
            last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise HarnessError(f"vl-convert-python could not bundle Vega-Lite: {' '.join(last)[:200]}")
        return found.decode("utf-8")

    try:
        yield script
    finally:
        process.kill()
        process.communicate()


def render(content: Mapping[str, Any], bundle: Callable[[], str]) -> str:
    """HTML of what `harness.report.content` gives; everything in it is escaped. `bundle` gives Vega-Lite's script."""
    from jinja2 import Environment

    data = as_script({"tables": content["tables"], "charts": content["charts"]})
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_file("page.html"))
    scripts = [_closed(script) for script in (_file("tables.js"), bundle(), _file("charts.js"))]
    return template.render(
        **content,
        data=data,
        scripts=scripts,
        style=_file("page.css"),
        policy=_policy(scripts),
        version=__version__,
        written_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        total=sum(count for _, count in content["counts"]),
    )


def as_script(value: Any) -> str:
    """JSON that may stand inside a script element: no character in it means anything to HTML or is a line's end."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character, escape in IN_SCRIPT.items():
        text = text.replace(character, escape)
    return text


def _policy(scripts: list[str]) -> str:
    """Nothing is fetched from anywhere, and no script runs but these."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _closed(script: str) -> str:
    """Code of ours and Vega's; a string in it must not end its element."""
    return script.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "\\x3C!--").strip()


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")
