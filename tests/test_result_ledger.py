"""What a folder keeps of many tries: successes beside later failures, views rebuilt from records, two runs at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scripted import record, scaled

from harness.judging.pairs import read
from harness.recording import ledger
from harness.recording.records import BESIDE, SCHEMA_VERSION, OutputFolder, read_folder

GOOD = scaled(1)
KEY = GOOD["key"]
FAILURE = {"class": "crashed", "message": "signal 11", "log_tail": "the last\nlines"}


def failed(base: dict, failure_class: str = "crashed") -> dict:
    return {**base, "status": "failed", "failure": {**FAILURE, "class": failure_class}, "latency_ms": None}


@pytest.fixture
def folder(tmp_path) -> OutputFolder:
    return OutputFolder(tmp_path / "out")


def files(folder: OutputFolder) -> dict[str, str]:
    """Name of each record's file, and its status."""
    found = (folder.root / "records").iterdir()
    return {path.name: json.loads(path.read_text())["status"] for path in found}


def views(folder: OutputFolder) -> list[list[tuple[str, str]]]:
    """Of both views the keys and statuses."""
    both = [json.loads((folder.root / name).read_text()) for name in ledger.NAMES]
    return [[(one["key"], one["status"]) for entries in view.values() for one in entries] for view in both]


def test_a_success_and_its_later_failure_are_both_kept_and_both_listed(folder):
    folder.write(GOOD)
    assert folder.write(failed(GOOD)).name == KEY + BESIDE
    assert files(folder) == {f"{KEY}.json": "ok", KEY + BESIDE: "failed"}
    assert ledger.rebuild(folder) == []
    assert views(folder) == [[(KEY, "ok")], [(KEY, "failed")]]
    (view,) = (folder.root / "swift").rglob("*.json")
    assert json.loads(view.read_text()) == GOOD, "the readable name still leads to what was measured"
    ((entry,),) = json.loads((folder.root / ledger.NAMES[1]).read_text()).values()
    assert entry["failure"] == FAILURE


def test_a_cell_has_one_answer_whatever_its_tries(folder):
    folder.write(GOOD)
    folder.write(failed(GOOD))
    assert list(read_folder(folder.root)) == read(folder.root) == [GOOD]
    (folder.root / "records" / f"{KEY}.json").unlink()
    assert [one["status"] for one in read_folder(folder.root)] == ["failed"], "nothing else is left of it"


def test_a_failure_gives_way_to_a_later_success_and_a_success_to_a_newer_one(folder):
    folder.write(failed(GOOD))
    folder.write(GOOD)
    folder.write(failed(GOOD))
    newer = {**GOOD, "written_at": "2030-01-01T00:00:00Z"}
    folder.write(newer)
    assert files(folder) == {f"{KEY}.json": "ok", KEY + BESIDE: "failed"}
    assert list(read_folder(folder.root)) == [newer]


@pytest.mark.parametrize("later", [failed(GOOD, "interrupted"), {**GOOD, "status": "skipped", "reason": "why"}])
def test_what_was_never_tried_again_leaves_no_trace(folder, later):
    folder.write(GOOD)
    folder.write(later)
    assert files(folder) == {f"{KEY}.json": "ok"} and list(read_folder(folder.root)) == [GOOD]


def test_the_status_in_the_first_lines_of_a_file_is_that_of_its_record(folder):
    assert (folder.status(KEY), folder.read(KEY)) == (None, None)
    for one in (failed(GOOD), GOOD, failed(GOOD)):
        folder.write(one)
        assert folder.status(KEY) == folder.read(KEY)["status"] == files(folder)[f"{KEY}.json"]
    path = folder.root / "records" / f"{KEY}.json"
    for content in ("", "{", "[]", '{"schema_version": 99}', json.dumps({**GOOD, "schema_version": 99})):
        path.write_text(content)
        assert (folder.status(KEY), folder.read(KEY)) == (None, None)


@pytest.mark.parametrize("content", ["", "{", '{"a": 1', "[]", "3", '{"model": "x"}', "\0", "[" * 100_000])
def test_a_corrupt_view_is_rebuilt_and_the_old_file_kept_and_said(folder, content):
    folder.write(GOOD)
    (folder.root / ledger.NAMES[0]).write_text(content)
    (line,) = ledger.rebuild(folder)
    (aside,) = folder.root.glob("success_results.json.corrupt-*")
    assert aside.read_text() == content and aside.name in line and "rebuilt" in line and "\n" not in line
    assert views(folder) == [[(KEY, "ok")], []]
    assert ledger.rebuild(folder) == [], "once"


def test_two_corrupt_views_are_two_files(folder):
    for content in ("{", "["):
        (folder.root / ledger.NAMES[0]).write_text(content)
        ledger.rebuild(folder)
    assert {path.read_text() for path in folder.root.glob("*.corrupt-*")} == {"{", "["}


def test_half_written_files_of_a_crash_are_no_records(folder):
    folder.write(GOOD)
    for place in (folder.root / "records", folder.root):
        (place / ".success_results.json.7.part").write_text('{"schema_ver')
    assert ledger.rebuild(folder) == [] and views(folder) == [[(KEY, "ok")], []]
    assert list(read_folder(folder.root)) == [GOOD]


def test_records_of_a_newer_schema_are_counted_and_never_rewritten(folder):
    newer = json.dumps({"schema_version": SCHEMA_VERSION + 1, "key": KEY, "of": "the future"})
    path = folder.root / "records" / f"{KEY}.json"
    path.write_text(newer)
    folder.write(GOOD)
    folder.write(failed(GOOD))
    (line,) = ledger.rebuild(folder)
    assert "1 of a newer schema" in line and path.name in line and "\n" not in line
    assert path.read_text() == newer
    assert views(folder) == [[(KEY, "ok")], [(KEY, "failed")]]
    assert list(read_folder(folder.root)) == [GOOD]


def test_a_link_in_the_locks_place_touches_nothing_outside(folder, tmp_path):
    (tmp_path / "precious").write_text("kept")
    for name, act in ((".records.lock", lambda: folder.write(GOOD)), (".ledger.lock", lambda: ledger.rebuild(folder))):
        (folder.root / name).unlink(missing_ok=True)
        (folder.root / name).symlink_to(tmp_path / "precious")
        with pytest.raises(OSError):
            act()
    assert (tmp_path / "precious").read_text() == "kept"


WRITER = """
import json, sys
from pathlib import Path
from harness.recording import ledger
from harness.recording.records import OutputFolder
folder, records = OutputFolder(Path(sys.argv[1])), json.loads(Path(sys.argv[2]).read_text())
print("ready", flush=True)
sys.stdin.readline()
for record in records:
    folder.write(record)
    ledger.rebuild(folder)
"""


def test_two_processes_lose_nothing_and_no_failure_hides_a_success(folder, tmp_path):
    """One process finds every cell good, the other finds it bad, at the same time and in opposite order."""
    cells = [record("perf", (1.0, 2.0), batch_size=size) for size in range(1, 13)]
    writers = []
    for name, found in (("good", cells), ("bad", [failed(cell) for cell in cells[::-1]])):
        (tmp_path / name).write_text(json.dumps(found))
        command = [sys.executable, "-c", WRITER, str(folder.root), str(tmp_path / name)]
        writers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 2
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0]
    for writer in writers:
        writer.stdout.close()
    kept = files(folder)
    assert {name: kept.get(name) for name in (f"{cell['key']}.json" for cell in cells)} == {
        f"{cell['key']}.json": "ok" for cell in cells
    }
    successes, failures = views(folder)
    assert len(successes) == len(cells)
    assert len(failures) == sum(name.endswith(BESIDE) for name in kept)
    assert not list(Path(folder.root).rglob("*.part")) and not list(folder.root.glob("*.corrupt-*"))
