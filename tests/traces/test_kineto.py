"""Traces of PyTorch's profiler: who launched a kernel, in which step, and a CPU's own time."""

import pytest
from made import SHARED, event, kineto, launched, listed

from harness.traces.read import read
from harness.traces.spans import Chains, flatten
from harness.traces.trace import HOST, SCHEMA, NoAnswer

MOE = [
    event("user_annotation", "execute_context_1(512)_generation_0(0)", 0, 100),
    event("python_function", "nn.Module: FusedMoE_3", 10, 50),
    event("python_function", "torch/nn/modules/module.py(1): forward", 11, 48),
    event("cpu_op", "vllm::moe_forward", 12, 40),
    event("cpu_op", "aten::mm", 15, 10),
    *launched("router", 7, at=16, start=200, dur=3.5),
    *launched("experts", 8, at=30, start=210, dur=20.25),
]
GROUPED = "aten::_grouped_mm"


def test_a_kernel_has_the_modules_and_the_operation_around_its_launch(tmp_path):
    trace = read(kineto(tmp_path / "t.json", MOE))
    step = "execute_context_1(512)_generation_0(0)"
    assert [(op["name"], op["scope"]) for op in listed(trace)] == [
        ("router", f"{step} > FusedMoE_3 > vllm::moe_forward > aten::mm"),
        ("experts", f"{step} > FusedMoE_3 > vllm::moe_forward"),
    ]
    assert dict(trace.ops.schema) == SCHEMA
    assert trace.ops["start"].to_list() == [200_000, 210_000] and trace.ops["duration"].to_list() == [3500, 20250]
    assert [(step.label, step.phase) for step in trace.steps] == [(step, "prefill")]


def test_packed_and_plain_traces_read_the_same(tmp_path):
    plain, packed = read(kineto(tmp_path / "t.json", MOE)), read(kineto(tmp_path / "t.json.gz", MOE))
    assert plain.ops.equals(packed.ops) and plain.names == packed.names and plain.scopes == packed.scopes


def test_the_name_of_a_file_does_not_matter(tmp_path):
    assert len(read(kineto(tmp_path / "profile.sqlite", MOE)).ops) == 2


def test_a_launch_is_found_by_correlation_where_the_external_id_says_something_else(tmp_path):
    events = [
        event("cpu_op", "aten::relu", 0, 10),
        event("cpu_op", "aten::mm", 20, 10),
        event("cuda_driver", "cuLaunchKernelEx", 22, 1, correlation=5),
        event("kernel", "k", 50, 1, device=0, stream=7, correlation=5, External_id=1),
    ]
    assert listed(read(kineto(tmp_path / "t.json", events)))[0]["scope"] == "aten::mm"


def test_a_kernel_without_a_launch_has_no_scope_and_its_share_is_said(tmp_path):
    lost = event("kernel", "graph", 300, 1, device=0, stream=7, correlation=99)
    trace = read(kineto(tmp_path / "t.json", [*MOE, lost]))
    assert listed(trace)[-1]["scope"] is None
    assert trace.notes == ("1 of 3 operations (33.3%) have no launch in the trace",)


@pytest.mark.parametrize(
    ("label", "phase"),
    [
        ("execute_context_1(888_788544)_generation_0(0)", "prefill"),
        ("execute_context_0(0)_generation_4(4)", "decode"),
        ("execute_context_1(5)_generation_4(4)", None),
        ("execute_context_0(0)_generation_0(0)", None),
        ("execute_32_context_0(sq0sk0sqsq0sqsk0)_generation_32(sq32sk55086sqsq32sqsk55086)", "decode"),
        ("step[DECODE bs=64]", "decode"),
        ("step[EXTEND bs=2 toks=512]", "prefill"),
        ("[Executor] _forward_step 12: 0 ctx reqs, 8 gen reqs", "decode"),
        ("harness.prefill", "prefill"),
        ("harness.decode", "decode"),
        ("ProfilerStep#3", None),
    ],
)
def test_each_engines_word_for_a_step_is_known(tmp_path, label, phase):
    events = [event("user_annotation", label, 0, 10), *launched("k", 1, at=5, start=20, dur=1)]
    trace = read(kineto(tmp_path / "t.json", events))
    assert [(step.label, step.phase) for step in trace.steps] == [(label, phase)]
    assert trace.ops["step"].to_list() == [0]


def test_what_is_launched_between_two_steps_belongs_to_the_earlier(tmp_path):
    events = [
        *launched("before", 1, at=1, start=2, dur=1),
        event("user_annotation", "harness.prefill", 10, 10),
        *launched("in prefill", 2, at=15, start=40, dur=1),
        *launched("sampling", 3, at=25, start=41, dur=1),
        event("user_annotation", "harness.decode", 30, 10),
        *launched("in decode", 4, at=35, start=42, dur=1),
    ]
    steps = {op["name"]: op["step"] for op in listed(read(kineto(tmp_path / "t.json", events)))}
    assert steps == {
        "before": None,
        "in prefill": "harness.prefill",
        "sampling": "harness.prefill",
        "in decode": "harness.decode",
    }


def test_of_steps_within_steps_the_inner_ones_count(tmp_path):
    events = [
        event("user_annotation", "harness.decode", 0, 100),
        event("user_annotation", "execute_context_0(0)_generation_1(1)", 10, 20),
        event("user_annotation", "execute_context_0(0)_generation_1(1)", 50, 20),
        *launched("a", 1, at=15, start=200, dur=1),
        *launched("b", 2, at=55, start=300, dur=1),
    ]
    trace = read(kineto(tmp_path / "t.json", events))
    assert len(trace.steps) == 2 and trace.ops["step"].to_list() == [0, 1]


def test_without_steps_on_the_cpu_those_of_the_gpu_count_once(tmp_path):
    step = "step[DECODE bs=1]"
    events = [
        event("gpu_user_annotation", step, 10, 10, pid=0, tid=7, External_id=1),
        event("gpu_user_annotation", step, 12, 5, pid=0, tid=13, External_id=1),
        event("gpu_user_annotation", step, 30, 10, pid=0, tid=7, External_id=2),
        event("kernel", "a", 11, 1, device=0, stream=7),
        event("kernel", "gap", 25, 1, device=0, stream=7),
        event("kernel", "b", 31, 1, device=0, stream=13),
    ]
    trace = read(kineto(tmp_path / "t.json", events))
    assert len(trace.steps) == 2 and trace.ops["step"].to_list() == [0, 0, 1]


def test_a_trace_without_marks_has_no_steps(tmp_path):
    trace = read(kineto(tmp_path / "t.json", launched("k", 1, at=0, start=5, dur=1)))
    assert trace.steps == () and trace.ops["step"].to_list() == [None]


def test_times_of_a_date_keep_their_nanoseconds(tmp_path):
    text = '{"traceEvents": [{"cat": "kernel", "name": "k", "ph": "X", "ts": 1712867402348256.123, "dur": 1.001, '
    (tmp_path / "t.json").write_text(text + '"pid": 0, "tid": 7, "args": {"device": 0, "stream": 7}}]}')
    assert read(tmp_path / "t.json").ops.select("start", "duration").row(0) == (1712867402348256123, 1001)


def test_times_since_a_base_and_whole_microseconds_are_exact(tmp_path):
    events = [
        event("kernel", "a", 4363090968176.857, 0.832, device=0, stream=7),
        event("Kernel", "b", 4363090968180, 3, device=0, stream=7),
    ]
    ops = read(kineto(tmp_path / "t.json", events)).ops
    assert ops["start"].to_list() == [4363090968176857, 4363090968180000] and ops["duration"].to_list() == [832, 3000]


def test_operations_are_sorted_by_device_and_start_and_copies_are_not_kernels(tmp_path):
    events = [
        event("kernel", "late", 9, 1, device=1, stream=7),
        event("gpu_memset", "Memset (Device)", 5, 1, device=0, stream=7),
        event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 2, 1, device=1, stream=7),
        event("kernel", "early", 8, 1, device=0, stream=9),
    ]
    ops = read(kineto(tmp_path / "t.json", events)).ops
    assert list(zip(ops["device"], ops["start"], ops["kind"], ops["stream"])) == [
        (0, 5000, "memset", 7),
        (0, 8000, "kernel", 9),
        (1, 2000, "memcpy", 7),
        (1, 9000, "kernel", 7),
    ]


def test_where_the_args_name_no_device_the_process_is_it(tmp_path):
    ops = read(kineto(tmp_path / "t.json", [event("kernel", "k", 1, 1, pid=3, tid=20)])).ops
    assert ops.select("device", "stream").row(0) == (3, 20)


def test_a_cpu_trace_adds_up_to_the_span_of_its_operations(tmp_path):
    events = [
        event("user_annotation", "harness.decode", 0, 200),
        event("python_function", "nn.Module: Attention_0", 5, 90),
        event("cpu_op", "aten::linear", 10, 50),
        event("cpu_op", "aten::mm", 20, 30),
        event("cpu_op", "aten::view", 20, 5),
        event("cpu_op", "aten::add", 80, 10),
        event("cpu_op", "aten::add", 80, 10, tid=2),
    ]
    trace = read(kineto(tmp_path / "t.json", events))
    assert set(trace.ops["device"]) == {HOST} and set(trace.ops["kind"]) == {"op"}
    sums = {}
    for op in listed(trace):
        key = op["name"], op["stream"]
        sums[key] = sums.get(key, 0) + op["duration"]
    assert sums == {
        ("aten::linear", 1): 20_000,
        ("aten::mm", 1): 25_000,
        ("aten::view", 1): 5_000,
        ("aten::add", 1): 10_000,
        ("aten::add", 2): 10_000,
    }
    assert sum(ns for (_, thread), ns in sums.items() if thread == 1) == 60_000  # 10 to 60 and 80 to 90
    scopes = {(op["stream"], op["scope"]) for op in listed(trace)}
    assert scopes == {(1, "harness.decode > Attention_0"), (2, None)}
    assert trace.ops["count"].sum() == 5 and {op["step"] for op in listed(trace)} == {"harness.decode"}


def test_what_a_cpu_runs_inside_the_grouped_product_is_seen_in_it(tmp_path):
    nested = ("aten::linear", GROUPED, "aten::mm")
    events = [event("cpu_op", name, start, 30 - 2 * start) for start, name in enumerate(nested)]
    found = {op["name"]: op["scope"] for op in listed(read(kineto(tmp_path / "t.json", events)))}
    assert found == {"aten::linear": None, GROUPED: GROUPED, "aten::mm": GROUPED}


def test_pieces_of_a_cpus_operation_do_not_overlap_and_count_one_call(tmp_path):
    events = [event("cpu_op", "outer", 0, 10), event("cpu_op", "inner", 3, 2)]
    ops = listed(read(kineto(tmp_path / "t.json", events)))
    assert [(op["name"], op["start"], op["duration"], op["count"]) for op in ops] == [
        ("outer", 0, 3000, 1),
        ("inner", 3000, 2000, 1),
        ("outer", 5000, 5000, 0),
    ]


def test_an_operation_that_is_filled_by_others_is_not_there(tmp_path):
    events = [event("cpu_op", "outer", 0, 10), event("cpu_op", "inner", 0, 10)]
    assert [op["name"] for op in listed(read(kineto(tmp_path / "t.json", events)))] == ["inner"]


def test_operations_that_took_no_time_are_no_answer(tmp_path):
    with pytest.raises(NoAnswer, match="took no time at all"):
        read(kineto(tmp_path / "t.json", [event("cpu_op", "aten::view", 5, 0)]))


def test_launches_without_kernels_are_no_cpu_trace(tmp_path):
    events = [event("cpu_op", "aten::mm", 0, 10), event("cuda_runtime", "cudaLaunchKernel", 1, 1, correlation=1)]
    with pytest.raises(NoAnswer, match="the GPU's side is missing"):
        read(kineto(tmp_path / "t.json", events))


@pytest.mark.parametrize("events", [[], [event("user_annotation", "x", 0, 1)], [{"ph": "M", "name": "process_name"}]])
def test_a_trace_without_operations_is_said(tmp_path, events):
    with pytest.raises(NoAnswer, match="without kernels"):
        read(kineto(tmp_path / "t.json", events))


def test_copies_alone_are_no_answer(tmp_path):
    with pytest.raises(NoAnswer, match="but no kernel"):
        read(kineto(tmp_path / "t.json", [event("gpu_memcpy", "Memcpy HtoD", 0, 1, device=0, stream=7)]))


def test_a_few_impossible_times_are_left_out_and_said(tmp_path):
    good = [event("kernel", "k", number, 0.5, device=0, stream=7) for number in range(200)]
    trace = read(kineto(tmp_path / "t.json", [*good, event("kernel", "k", 300, -1, device=0, stream=7)]))
    assert len(trace.ops) == 200 and "1 of 201 operations have times that cannot be" in trace.notes[-1]


def test_spans_that_overlap_hold_what_happens_while_they_are_open():
    import polars

    schema = {name: polars.Int64 for name in ("thread", "start", "end", "name", "role")}
    spans = polars.DataFrame([(0, 0, 10, 0, 0), (0, 5, 15, 1, 0), (0, 12, 20, 2, 0)], schema=schema, orient="row")
    chains = Chains(["a", "b", "c"])
    pieces = flatten(spans.cast({"thread": polars.UInt32, "name": polars.UInt32, "role": polars.UInt8}), chains)
    assert [(time, chains.texts[scope]) for time, scope in pieces.select("time", "scope").iter_rows()] == [
        (0, "a"),
        (5, "a > b"),
        (10, "b"),
        (12, "b > c"),
        (15, "c"),
        (20, ""),
    ]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recorded traces")
def test_steps_of_a_recorded_vllm_run_have_the_same_number_of_operations():
    trace = read(next(SHARED.glob("vllm0.24_*.kineto.json.gz")))
    counts = trace.ops["step"].value_counts().sort("step")
    assert counts["step"].to_list() == [0, 1, 2, 3] and set(counts["count"]) == {895}
    assert [step.phase for step in trace.steps] == ["prefill", "decode", "decode", "decode", None]


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the recorded traces")
def test_a_recorded_eager_run_reaches_a_module_for_nearly_every_kernel():
    trace = read(next(SHARED.glob("tracelens_b200_*.json.gz")))
    kernels = [op for op in listed(trace) if op["kind"] == "kernel"]
    assert len(kernels) == 768
    assert sum(op["scope"].count(" > ") > 0 for op in kernels) >= 763
    assert all("FusedMoE_" in op["scope"] for op in kernels if op["name"].startswith("bmm_"))
