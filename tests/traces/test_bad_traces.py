"""Files that are no trace, or a broken one: one line that says what, where and what to do, and never a traceback."""

import gzip
import json
import random
import sqlite3

import pytest
from made import CALLS, KERNELS, RANGES, call, event, kernel, kineto, launched, span, sqlite

from harness.errors import HarnessError, UsageError
from harness.traces.read import read
from harness.traces.trace import NoAnswer, Trace

TOTALS = "Time (%),Total Time (ns),Instances,Name\n60.0,600,3,void gemm<float>(int)\n40.0,400,1,void norm<4>(T1)\n"


def refused(path) -> str:
    with pytest.raises(UsageError) as error:
        read(path)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_file_is_said(tmp_path):
    assert "no such file" in refused(tmp_path / "absent")
    assert "a folder" in refused(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    assert "empty" in refused(tmp_path / "empty")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\0" * 5000, "zero bytes"),
        (b"\x00\x01\x02\xff" * 900, "binary data of something else; readable are torch.profiler JSON"),
        (b"PK\x03\x04" + b"\0" * 90, "a ZIP archive: unpack it first"),
        (b"\x7fELF" + b"\0" * 90, "a program"),
        (b"hello, world\n", "no table of cuda_gpu_trace"),
        (b"<!doctype html><p>not found", "no table of cuda_gpu_trace"),
        (b"{}", "JSON, but no trace: it has no traceEvents"),
        (b'{"results": [1, 2]}', "no traceEvents"),
        (b"[1, 2, 3]", "no trace as torch.profiler writes it"),
        (b'{"traceEvents": 5}', "Expected `array`"),
        (b'{"traceEvents": [5]}', "Expected `object`"),
        (b'{"traceEvents": [{"cat": "kernel", "name": 7}]}', "traceEvents[0].name"),
        (b'{"traceEvents": [{"cat": "kernel", "ts": "soon"}]}', "traceEvents[0].ts"),
        (b'{"traceEvents": [{"cat": "kernel", "ts": 1e400}]}', "out of range"),
        (b'{"traceEvents": [{"cat": "kernel", "ts": 1, "dur": NaN, "pid": 0, "tid": 7}]}', "1 an impossible duration"),
        (b'{"traceEvents": [{"cat": "kernel", "ts": 1e300, "dur": 1, "pid": 0, "tid": 7}]}', "an impossible start"),
        (b'{"traceEvents": [{"cat": "kernel", "ts": 1, "dur": -1, "pid": 0, "tid": 7}]}', "an impossible duration"),
        (
            b'{"traceEvents": [{"cat": "kernel", "ts": 1, "dur": 1, "args": {"device": "x"}}]}',
            "args.device of a kernel",
        ),
        (b'{"traceEvents": [{"cat": "kernel", "ts": 1, "dur": 1, "pid": "x"}]}', "no number of a device or stream"),
        (b'{"traceEvents": [{"cat": "kernel", "ts": 1, "dur": 1, "pid": 99999, "tid": 7}]}', "number is impossible"),
        (b'{"traceEvents": [{"cat": "ker', "ends in the middle of its JSON"),
        (b'{"traceEvents": [}', "not readable as JSON"),
        (b"[" * 1_000_000, "Expected `object`, got `array`"),
        (b'{"traceEvents": [{"x": ' + b"[" * 1_000_000, "not readable as JSON"),
        (gzip.compress(b"hello", mtime=0), "a .gz of no trace: text of something else"),
        (gzip.compress(b"\0" * 5000, mtime=0), "a .gz of no trace: zero bytes"),
        (gzip.compress(b"", mtime=0), "a .gz of nothing"),
        (gzip.compress(b'{"traceEvents": []}', mtime=0)[:-9], "a .gz that is cut off"),
        (gzip.compress(b'{"traceEvents": []}', mtime=0)[:-8] + b"\xff" * 8, "a damaged .gz"),
        (b"\x1f\x8b", "a .gz that is cut off"),
        (b"SQLite format 3\0" + b"\xff" * 4000, "damaged"),
        (b"SQLite format 3\0", "damaged"),
        (b"\xff\xfeh\0i\0", "no table of cuda_gpu_trace"),
    ],
)
def test_each_kind_of_wrong_content_has_its_line(tmp_path, content, said):
    (tmp_path / "trace").write_bytes(content)
    assert said in refused(tmp_path / "trace")


def test_a_file_that_unpacks_without_end_is_refused_early(tmp_path):
    with gzip.open(tmp_path / "trace.json.gz", "wb") as file:
        file.write(b'{"traceEvents": [')
        for _ in range(100):
            file.write(b" " * 2**20)
    assert "unpack to more than" in refused(tmp_path / "trace.json.gz")


def test_sqlite_of_something_else_names_what_it_holds(tmp_path):
    with sqlite3.connect(tmp_path / "t.sqlite") as base:
        base.execute("CREATE TABLE recipes (id INTEGER)")
    assert "no export of Nsight Systems (its tables: recipes)" in refused(tmp_path / "t.sqlite")
    with sqlite3.connect(tmp_path / "empty.sqlite") as base:
        base.execute("PRAGMA user_version = 1")
    assert "its tables: none" in refused(tmp_path / "empty.sqlite")


def test_a_damaged_export_is_refused(tmp_path):
    path = sqlite(tmp_path / "t.sqlite", KERNELS, kernel=[kernel(at, at + 1) for at in range(3000)])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "damaged" in refused(path)


def test_a_table_that_lacks_a_column_is_named(tmp_path):
    path = sqlite(
        tmp_path / "t.sqlite", 'CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, "end" INTEGER)', kernel=[(1, 2)]
    )
    assert "has no column deviceId or streamId" in refused(path)


def test_strange_names_are_kept_as_they_are(tmp_path):
    strange = ["", "a\x1b[31mb\n\0", "<script>alert(1)</script>", "x" * 100_000, "\u2028 \U0001f525 \ud7ff"]
    events = [event("kernel", name, at, 1, device=0, stream=7) for at, name in enumerate(strange)]
    assert list(read(kineto(tmp_path / "t.json", events)).names) == strange
    rows = [kernel(at, at + 1, name=at + 1) for at in range(len(strange))]
    path = sqlite(tmp_path / "t.sqlite", KERNELS, names=dict(enumerate(strange, 1)), kernel=rows)
    assert list(read(path).names) == strange


def test_text_that_is_no_utf_8_does_not_stop_a_reader(tmp_path):
    text = json.dumps({"traceEvents": launched("k?", 1, at=0, start=5, dur=1)}).encode()
    (tmp_path / "t.json").write_bytes(text.replace(b"k?", b"k\xff\x01"))
    trace = read(tmp_path / "t.json")
    assert trace.names == ("k\ufffd ",) and "mended" in trace.notes[0]
    path = sqlite(tmp_path / "t.sqlite", KERNELS, kernel=[kernel(1, 2)])
    with sqlite3.connect(path) as base:
        base.execute("UPDATE StringIds SET value = CAST(x'6bff' AS TEXT) WHERE id = 1")
    assert read(path).names == ("k\ufffd",)


def samples(folder) -> list[bytes]:
    """A small valid file of each format."""
    events = [
        event("user_annotation", "harness.decode", 0, 100),
        event("cpu_op", "aten::mm", 10, 20),
        *launched("gemm", 1, at=12, start=50, dur=2.5),
        *launched("norm", 2, at=40, start=60, dur=1.5),
    ]
    path = sqlite(
        folder / "t.sqlite",
        *(KERNELS, CALLS, RANGES),
        kernel=[kernel(100, 110, launch=1), kernel(120, 130, launch=2, name=3)],
        runtime=[call(10, 1), call(30, 2)],
        events=[span(0, 50, "harness.decode"), span(5, 20, None, text_id=5)],
    )
    host = [event("cpu_op", "aten::mm", 10, 20), event("cpu_op", "aten::add", 12, 2)]
    return [
        kineto(folder / "a.json", events).read_bytes(),
        kineto(folder / "b.json.gz", events).read_bytes(),
        kineto(folder / "c.json", host).read_bytes(),
        path.read_bytes(),
        TOTALS.encode(),
        b"Start (ns),Duration (ns),Device,Strm,Name\n5,6,H200 (0),7,void gemm<float>(int)\n",
    ]


def test_any_damage_ends_in_a_trace_or_in_one_line(tmp_path):
    chance = random.Random(5)
    path = tmp_path / "damaged"
    for content in samples(tmp_path):
        for turn in range(60):
            broken = bytearray(content)
            if turn % 3 == 0:
                broken = broken[: chance.randrange(1, len(broken))]
            for _ in range(chance.randrange(1, 6) if turn % 3 else 0):
                broken[chance.randrange(len(broken))] = (
                    chance.choice(b'0-"9[{},:\0\xff') if turn % 3 == 1 else chance.randrange(256)
                )
            path.write_bytes(broken)
            ends_well(path)
    for size in range(1, 400, 20):
        path.write_bytes(chance.randbytes(size))
        ends_well(path)


def ends_well(path) -> None:
    try:
        trace = read(path)
    except HarnessError as error:
        assert isinstance(error, UsageError | NoAnswer) and "\n" not in str(error) and str(path) in str(error)
    else:
        assert isinstance(trace, Trace) and len(trace.ops) and trace.ops["duration"].min() >= 0
        assert not trace.ops["name"].null_count() and trace.ops["name"].max() < len(trace.names)
