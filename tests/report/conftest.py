"""Folders of records without a run, and a headless Chromium that shows what a page becomes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --v=0 --virtual-time-budget=15000 --dump-dom"
).split()


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    """Writes records as an output folder has them; a name in `text` is a file that is not a record."""

    def keep(*records: dict, text: dict[str, str] | None = None) -> Path:
        root = tmp_path_factory.mktemp("out")
        (root / "records").mkdir()
        for index, record in enumerate(records):
            (root / "records" / f"{index:04}.json").write_text(json.dumps(record))
        for name, content in (text or {}).items():
            (root / "records" / name).write_text(content)
        return root

    return keep


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    """A page as Chromium shows it once all is drawn: its DOM as text, and what the console said."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")

    def browse(page: Path) -> tuple[str, list[str]]:
        profile = tmp_path_factory.mktemp("profile")
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return browse
