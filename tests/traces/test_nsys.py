"""Exports of Nsight Systems: schemas old and new, several processes and devices, ranges, graphs, and reports."""

import os
import sqlite3

import pytest
from made import (
    CALLS,
    COPIES,
    FILLS,
    GRAPHS,
    KERNELS,
    NODES,
    PROCESS,
    RANGES,
    SHARED,
    THREAD,
    call,
    kernel,
    listed,
    span,
    sqlite,
)

from harness.errors import UsageError
from harness.traces import sqlitefile
from harness.traces.read import read
from harness.traces.trace import SCHEMA, NoAnswer

OTHER = 322 << 24


def test_kernels_copies_and_fills_are_operations_in_order(tmp_path):
    rows = {
        "kernel": [kernel(50, 60), kernel(10, 30, stream=13, name=3)],
        "memset": [(5, 7, 0, 7, 3, PROCESS, 64, None)],
    }
    copies = [(40, 44, 0, 7, 3, PROCESS, 64, 1, None), (45, 46, 0, 7, 3, PROCESS, 64, 77, None)]
    trace = read(sqlite(tmp_path / "t.sqlite", KERNELS, COPIES, FILLS, memcpy=copies, **rows))
    assert [(op["kind"], op["name"], op["start"], op["duration"], op["stream"]) for op in listed(trace)] == [
        ("memset", "[CUDA memset]", 5, 2, 7),
        ("kernel", "void norm<(int)4>(T1)", 10, 20, 13),
        ("memcpy", "[CUDA memcpy Host-to-Device]", 40, 4, 7),
        ("memcpy", "[CUDA memcpy]", 45, 1, 7),
        ("kernel", "void gemm<float>(int)", 50, 10, 7),
    ]
    assert dict(trace.ops.schema) == SCHEMA
    assert trace.format == "nsys sqlite 3.20.3" and trace.notes == () and set(trace.ops["count"]) == {1}


def test_an_export_with_few_columns_and_the_old_name_of_its_metadata_is_read(tmp_path):
    old = [
        "CREATE TABLE EXPORT_META_DATA (name TEXT, value TEXT)",
        "INSERT INTO EXPORT_META_DATA VALUES ('EXPORT_SCHEMA_VERSION', '2.9.1')",
        "DROP TABLE META_DATA_EXPORT",
        'CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INT, "end" INT, deviceId INT, streamId INT, shortName INT)',
    ]
    path = sqlite(tmp_path / "t.sqlite")
    with sqlite3.connect(path) as base:
        for statement in old:
            base.execute(statement)
        base.execute("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (1, 4, 0, 7, 2)")
    trace = read(path)
    assert trace.format == "nsys sqlite 2.9.1" and trace.names == ("gemm",) and trace.ops["duration"].to_list() == [3]


def test_ids_of_the_same_text_are_one_name_and_a_missing_one_is_said(tmp_path):
    rows = [kernel(1, 2, name=1), kernel(3, 4, name=7), kernel(5, 6, name=9)]
    path = sqlite(tmp_path / "t.sqlite", KERNELS, names={1: "same", 7: "same"}, kernel=rows)
    trace = read(path)
    assert trace.names == ("same", "(name 9 is not in the file)") and trace.ops["name"].to_list() == [0, 0, 1]
    assert trace.notes == ("1 of 3 operations have a name that the file does not hold",)


def test_a_range_holds_what_was_launched_in_it_on_the_same_thread(tmp_path):
    ranges = [
        span(0, 100, "layers.0"),
        span(10, 50, "experts"),
        span(20, 90, "elsewhere", THREAD + 1),
        span(0, 500, "ended elsewhere", until=THREAD + 1),
        span(0, 500, "a mark", kind=34),
    ]
    rows = [kernel(1000, 1010, launch=1), kernel(1020, 1030, launch=2), kernel(1040, 1050, launch=3)]
    calls = [call(20, 1), call(60, 2), call(200, 3)]
    path = sqlite(tmp_path / "t.sqlite", KERNELS, CALLS, RANGES, kernel=rows, runtime=calls, events=ranges)
    trace = read(path)
    assert [op["scope"] for op in listed(trace)] == ["layers.0 > experts", "layers.0", None]
    assert trace.notes == ()


def scope_of_a_launch_in(path, ranges):
    """Of one kernel, launched while these ranges are open."""
    events = {"kernel": [kernel(99, 100, launch=1)], "runtime": [call(20, 1)], "events": ranges}
    return listed(read(sqlite(path, KERNELS, CALLS, RANGES, **events)))[0]["scope"]


def test_a_range_is_named_by_its_text_or_by_its_registered_string(tmp_path):
    ranges = [span(0, 100, None, text_id=5), span(10, 50, "aten::mm, seq = 3, op_id = 7, sizes = [[2, 2]]")]
    assert scope_of_a_launch_in(tmp_path / "t.sqlite", ranges) == "registered range > aten::mm"


def test_a_layer_that_is_told_as_a_dict_is_named_by_its_module(tmp_path):
    ranges = [span(0, 100, "{'Module': 'model.layers.3.mlp.experts', 'TrainableParams': {'w': [2, 3]}}")]
    assert scope_of_a_launch_in(tmp_path / "t.sqlite", ranges) == "model.layers.3.mlp.experts"


def test_equal_correlations_of_two_processes_are_told_apart(tmp_path):
    rows = [kernel(1000, 1010, launch=1), kernel(1000, 1010, launch=1, device=1, pid=OTHER)]
    ranges = [span(0, 100, "first"), span(0, 100, "second", OTHER + 9)]
    calls = [call(20, 1), call(20, 1, OTHER + 9)]
    path = sqlite(tmp_path / "t.sqlite", KERNELS, CALLS, RANGES, kernel=rows, runtime=calls, events=ranges)
    assert [(op["device"], op["scope"]) for op in listed(read(path))] == [(0, "first"), (1, "second")]


def test_processes_that_see_different_gpus_as_device_0_are_told_apart(tmp_path):
    devices = "CREATE TABLE TARGET_INFO_CUDA_DEVICE (gpuId INTEGER, cudaId INTEGER, pid INTEGER)"
    rows = [kernel(1, 2), kernel(1, 2, pid=OTHER)]
    path = sqlite(tmp_path / "t.sqlite", KERNELS, devices, kernel=rows, device=[(4, 0, 321), (5, 0, 322)])
    assert read(path).ops["device"].to_list() == [4, 5]


def test_the_share_without_a_launch_is_said(tmp_path):
    rows = [kernel(1000, 1010, launch=1), kernel(1020, 1030, launch=99)]
    path = sqlite(
        tmp_path / "t.sqlite", KERNELS, CALLS, RANGES, kernel=rows, runtime=[call(20, 1)], events=[span(0, 100, "x")]
    )
    trace = read(path)
    assert [op["scope"] for op in listed(trace)] == ["x", None]
    assert trace.notes[0].startswith("1 of 2 operations (50.0%) have no launch in the trace")


def test_ranges_of_an_engine_are_steps(tmp_path):
    ranges = [span(0, 100, "harness.prefill"), span(200, 300, "harness.decode"), span(400, 500, "harness.decode")]
    rows = [kernel(1000 + 10 * at, 1005 + 10 * at, launch=at) for at in (20, 150, 220, 420)]
    rows.append(kernel(9000, 9001, launch=999))
    path = sqlite(
        tmp_path / "t.sqlite",
        KERNELS,
        CALLS,
        RANGES,
        kernel=rows,
        runtime=[call(at, at) for at in (20, 150, 220, 420)],
        events=ranges,
    )
    trace = read(path)
    assert trace.ops["step"].to_list() == [0, 0, 1, 2, 2]
    assert [step.phase for step in trace.steps] == ["prefill", "decode", "decode"]


def test_nodes_of_a_replayed_graph_have_the_ranges_of_its_capture_and_the_step_of_its_launch(tmp_path):
    ranges = [span(0, 50, "experts"), span(50, 90, "attention"), span(500, 600, "harness.decode")]
    nodes = [(20, 21, 2, THREAD, 70, None), (60, 61, 2, THREAD, 71, None)]
    nodes += [(200, 201, 2, THREAD, 80, 70), (202, 203, 2, THREAD, 81, 71)]
    rows = [kernel(1000, 1010, launch=4, node=80), kernel(1010, 1020, launch=4, node=81), kernel(1020, 1030, launch=4)]
    path = sqlite(
        tmp_path / "t.sqlite",
        KERNELS,
        CALLS,
        RANGES,
        NODES,
        kernel=rows,
        runtime=[call(510, 4)],
        NVTX_EVENTS=ranges,
        NODE_EVENTS=nodes,
    )
    assert [(op["scope"], op["step"]) for op in listed(read(path))] == [
        ("experts", "harness.decode"),
        ("attention", "harness.decode"),
        ("harness.decode", "harness.decode"),
    ]


def test_graphs_that_were_traced_as_a_whole_are_no_answer(tmp_path):
    graph = [(100, 900, 0, 1, 5, 7)]
    with pytest.raises(NoAnswer, match="1 CUDA graphs were traced as a whole.*--cuda-graph-trace=node"):
        read(sqlite(tmp_path / "a.sqlite", GRAPHS, trace=graph))
    with pytest.raises(NoAnswer, match="94.1% of the GPU's time is in 1 CUDA graphs"):
        read(sqlite(tmp_path / "b.sqlite", GRAPHS, KERNELS, trace=graph, kernel=[kernel(0, 50)]))
    with pytest.raises(NoAnswer, match="an unknown share"):
        read(sqlite(tmp_path / "c.sqlite", GRAPHS, KERNELS, trace=[(0, 0, 0, 1, 5, 7)], kernel=[kernel(0, 50)]))


def test_a_small_part_in_whole_graphs_is_said(tmp_path):
    path = sqlite(tmp_path / "t.sqlite", GRAPHS, KERNELS, trace=[(100, 101, 0, 1, 5, 7)], kernel=[kernel(0, 99)])
    assert read(path).notes == ("1.0% of the GPU's time is hidden in 1 CUDA graphs traced as a whole",)


@pytest.mark.parametrize("tables", [(), (KERNELS,)])
def test_an_export_without_kernels_says_what_it_has_instead(tmp_path, tables):
    path = sqlite(tmp_path / "t.sqlite", RANGES, CALLS, *tables, events=[span(0, 1, "x")], runtime=[call(0, 1)])
    with pytest.raises(NoAnswer, match="no kernels: it has only CUDA API calls, NVTX ranges; record again with nsys"):
        read(path)


def test_a_few_impossible_times_are_left_out_and_many_refused(tmp_path):
    good = [kernel(at, at + 1) for at in range(0, 1000, 5)]
    path = sqlite(tmp_path / "a.sqlite", KERNELS, kernel=[*good, kernel(2000, 1990), kernel(3000, 2**63 - 1)])
    trace = read(path)
    assert len(trace.ops) == 200 and "2 of 202 operations have times that cannot be" in trace.notes[0]
    with pytest.raises(UsageError, match="3 of 4 operations .*1 an impossible start and 2 an impossible duration"):
        read(sqlite(tmp_path / "b.sqlite", KERNELS, kernel=[good[0], kernel(9, 8), kernel(-5, 6), kernel(0, 10**17)]))


def test_a_large_table_is_read_in_parts_and_sorted(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlitefile, "PART_ROWS", 7)
    rows = [
        kernel(1000 - 3 * number, 1001 - 3 * number, device=number % 2, name=1 + 2 * (number % 3 == 0))
        for number in range(100)
    ]
    ops = read(sqlite(tmp_path / "t.sqlite", KERNELS, kernel=rows)).ops
    assert ops["device"].to_list() == [0] * 50 + [1] * 50
    assert ops.filter(device=0)["start"].is_sorted() and ops.filter(device=1)["start"].is_sorted()
    assert sorted(ops["start"]) == sorted(row[0] for row in rows)


def test_columns_with_text_where_numbers_belong_are_refused(tmp_path):
    path = sqlite(tmp_path / "t.sqlite", KERNELS, kernel=[("early", *kernel(1, 2)[1:])])
    with pytest.raises(UsageError, match="column start of CUPTI_ACTIVITY_KIND_KERNEL holds String, not integers"):
        read(path)


def test_reading_leaves_no_file_behind_and_needs_no_right_to_write(tmp_path):
    path = sqlite(tmp_path / "a #%? file.sqlite", KERNELS, kernel=[kernel(1, 2)])
    path.chmod(0o444)
    assert len(read(path).ops) == 1 and os.listdir(tmp_path) == [path.name]


REPORT = b"NVIDIA Tegra Profiler Report 36398880\n\x0b"


def test_without_nsys_a_report_says_how_to_export_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "profile.nsys-rep").write_bytes(REPORT)
    with pytest.raises(UsageError, match="nsys export --type sqlite -o profile.sqlite profile.nsys-rep"):
        read(tmp_path / "profile.nsys-rep")


def nsys_that(tmp_path, monkeypatch, script: str) -> None:
    (tmp_path / "nsys").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "nsys").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "profile.nsys-rep").write_bytes(REPORT)


def test_a_report_is_exported_beside_nobodys_files(tmp_path, monkeypatch):
    sqlite(tmp_path / "made", KERNELS, kernel=[kernel(1, 2)])
    nsys_that(tmp_path, monkeypatch, f'cp {tmp_path}/made "$5"')
    trace = read(tmp_path / "profile.nsys-rep")
    assert trace.source == "profile.nsys-rep" and len(trace.ops) == 1
    assert sorted(os.listdir(tmp_path)) == ["made", "nsys", "profile.nsys-rep"]


def test_a_report_that_nsys_refuses_is_one_line(tmp_path, monkeypatch):
    nsys_that(tmp_path, monkeypatch, "echo 'Unknown version\nof the file' >&2; exit 3")
    with pytest.raises(UsageError, match="nsys could not export it .Unknown version of the file.") as error:
        read(tmp_path / "profile.nsys-rep")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recorded traces")
def test_a_recorded_trace_of_two_gpus_is_read_by_device_and_says_what_it_lacks():
    trace = read(SHARED / "nsysai_h100_2gpu_1s.sqlite")
    sums = [trace.ops.filter(kind="kernel", device=device)["duration"].sum() for device in (0, 1)]
    assert sums == [22_385_163, 22_444_359]
    assert "52.1%" in trace.notes[0]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recorded traces")
def test_a_recorded_range_holds_all_its_kernels():
    trace = read(SHARED / "nsys2025.3_tiny_h200.sqlite")
    assert len(trace.ops) == 40 and {op["scope"] for op in listed(trace)} == {"step"}
