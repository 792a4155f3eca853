"""CSV of `nsys stats`: old and new headers, units above or within the cells, and what nsys prints around the table."""

import pytest
from made import SHARED, listed

from harness.errors import UsageError
from harness.traces.read import read
from harness.traces.trace import SCHEMA, NoAnswer

NEW_TRACE = """Generating SQLite file report.sqlite from report.nsys-rep
Processing [report.sqlite] with [/opt/nsys/reports/cuda_gpu_trace.py]...

Start (ns),Duration (ns),CorrId,GrdX,GrdY,GrdZ,Bytes (MB),SrcMemKd,DstMemKd,Device,Ctx,GreenCtx,Strm,Name
500,20,2,1,1,1,,,,NVIDIA H200 (1),1,,13,"void gemm<float, int>(int, T2)"
100,7,1,,,,0.004,Pageable,Device,NVIDIA H200 (0),1,,7,[CUDA memcpy Host-to-Device]
140,3,3,,,,0.004,,,NVIDIA H200 (0),1,,7,[CUDA memset]
"""
OLD_TRACE = """Start(sec),Duration(nsec),CorrId,GrdX,Thru(MB/s),Device,Ctx,Strm,Name
1.000000500,20,2,1,,A100 (0),1,13,void gemm<float>(int)
"""
SUM = """ Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
60.0,600,3,200.0,200,1,2,3,"void gemm<float, 2>(int)"
40.0,400,1,400.0,400,1,2,3,void norm<(int)4>(T1)
"""
OLD_SUM = """Time(%),Total Time (ns),Instances,Average,Minimum,Maximum,Name
100.0,600,3,200.0,1,2,void gemm<float>(int)
"""
CELLS = """Time,Total Time,Instances,Avg,Med,Min,Max,StdDev,Name
91.00%,75.794 ms,10,7.5 ms,7 ms,1 ms,9 ms,0,void gemm<float>(int)
8.00%,5.819 \u03bcs,2,1 \u03bcs,1,1,1,0,void norm<4>(T1)
1.00%,"1,500.5 \u00b5s",1,1,1,1,1,0,void other<4>(T1)
0.00%,12 ns,1,1,1,1,1,0,void last<4>(T1)
"""


def given(folder, text: str, encoding: str = "utf-8"):
    (folder / "stats.csv").write_text(text, encoding=encoding)
    return read(folder / "stats.csv")


def test_a_timeline_is_read_through_what_nsys_prints_around_it(tmp_path):
    trace = given(tmp_path, NEW_TRACE)
    assert [
        (op["start"], op["duration"], op["device"], op["stream"], op["kind"], op["name"]) for op in listed(trace)
    ] == [
        (100, 7, 0, 7, "memcpy", "[CUDA memcpy Host-to-Device]"),
        (140, 3, 0, 7, "memset", "[CUDA memset]"),
        (500, 20, 1, 13, "kernel", "void gemm<float, int>(int, T2)"),
    ]
    assert dict(trace.ops.schema) == SCHEMA and not trace.is_summary and trace.notes == ()


def test_each_column_has_the_unit_of_its_own_header(tmp_path):
    trace = given(tmp_path, OLD_TRACE)
    assert trace.ops.select("start", "duration").row(0) == (1_000_000_500, 20)


@pytest.mark.parametrize(("unit", "ns"), [("ns", 1), ("us", 1000), ("ms", 10**6), ("sec", 10**9), ("s", 10**9)])
def test_units_in_a_header_are_understood(tmp_path, unit, ns):
    assert given(tmp_path, SUM.replace("Total Time (ns)", f"Total Time ({unit})")).ops["duration"][0] == 600 * ns


def test_totals_have_no_start_and_count_their_calls(tmp_path):
    trace = given(tmp_path, SUM)
    assert trace.is_summary and trace.ops["start"].to_list() == [None, None]
    assert [(op["name"], op["duration"], op["count"]) for op in listed(trace)] == [
        ("void gemm<float, 2>(int)", 600, 3),
        ("void norm<(int)4>(T1)", 400, 1),
    ]
    assert trace.notes == ("totals over all devices: they are not told apart",)


def test_headers_of_2021_are_read(tmp_path):
    assert given(tmp_path, OLD_SUM).ops.select("duration", "count").row(0) == (600, 3)


def test_units_in_cells_are_read_with_either_letter_for_micro(tmp_path):
    assert given(tmp_path, CELLS).ops["duration"].to_list() == [75_794_000, 5_819, 1_500_500, 12]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_other_shells_are_read(tmp_path, encoding):
    assert given(tmp_path, CELLS, encoding).ops["duration"][1] == 5_819


def test_names_without_templates_are_noted(tmp_path):
    text = SUM.replace('"void gemm<float, 2>(int)"', "gemm").replace("void norm<(int)4>(T1)", "norm")
    assert "no name has template arguments" in given(tmp_path, text).notes[0]


def test_nsys_saying_that_there_are_no_kernels_is_no_answer(tmp_path):
    text = "Processing [r.sqlite] with [cuda_gpu_trace.py]... \nSKIPPED: r.sqlite does not contain CUDA kernel data.\n"
    with pytest.raises(NoAnswer, match="nsys says that its report does not contain CUDA kernel data: record with"):
        given(tmp_path, text)


def test_a_table_of_kernels_after_another_is_found(tmp_path):
    other = "Time (%),Total Time (ns),Num Calls,Avg (ns),Name\n50.0,7,1,7,cudaLaunchKernel\n\n"
    assert given(tmp_path, other + SUM).ops["duration"].sum() == 1000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SUM.splitlines()[0], "without rows: no kernels"),
        ("Time (%),Total Time (ns),Num Calls,Avg (ns),Name\n50.0,7,1,7,cudaLaunchKernel\n", "no table of"),
        ("a,b,c\n1,2,3\n", "no table of"),
        ("<html><body>404</body></html>", "no table of"),
        (SUM.replace("(ns)", "(weeks)"), "unknown unit"),
        (SUM.replace("(ns)", ""), "names no unit of time"),
        (SUM.replace(",600,", ",-600,"), "1 of 2 operations have times that cannot be"),
        (SUM.replace(",600,", ",1e400,"), "1 of 2 operations have times that cannot be"),
        (SUM.replace(",600,3,", ",600,NaN,"), "a number of instances is none"),
        (SUM.replace("40.0,400,1", "40.0,1"), "1 of 2 rows have not as many cells"),
        (NEW_TRACE.replace("500,20,2", "500,-20,2"), "1 of 3 operations have times that cannot be"),
    ],
)
def test_what_cannot_be_answered_is_one_clear_line(tmp_path, text, said):
    with pytest.raises((UsageError, NoAnswer), match=said) as error:
        given(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recorded traces")
def test_recorded_totals_are_read():
    trace = read(next(SHARED.glob("*kernsum*.csv")))
    assert len(trace.ops) == 46 and trace.is_summary
    assert trace.ops.select("duration", "count").row(0) == (61_602_133, 16_448)
