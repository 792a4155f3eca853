"""Plugins from outside the tree: a good one is a full member, a bad one is named and left out."""

from __future__ import annotations

import json
import textwrap

import pytest

GOOD = """
    import harness

    @harness.hookimpl
    def harness_register_engines():
        return [harness.EngineSpec({name!r}, "", (), frozenset({{"generate"}}), lambda *_: harness.Support("native"), None)]
"""
BAD = {  # what a plugin's module holds, and the words of the warning
    "raises at import": ("raise RuntimeError('the flux\\nis low')", "RuntimeError: the flux is low"),
    "exits at import": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "is no Python": ("def", "SyntaxError"),
    "misses a module": ("import no_such_module", "No module named 'no_such_module'"),
    "raises in a hook": (
        "import harness\n@harness.hookimpl\ndef harness_register_engines(): 1 / 0",
        "ZeroDivisionError: division by zero",
    ),
    "exits in a hook": (
        "import harness\n@harness.hookimpl\ndef harness_register_profilers(): raise SystemExit(7)",
        "SystemExit: 7",
    ),
    "has an unknown argument": (
        "import harness\n@harness.hookimpl\ndef harness_register_engines(colour): return []",
        "colour",
    ),
    "returns a name": (
        "import harness\n@harness.hookimpl\ndef harness_register_engines(): return 'bad'",
        "must return a list of specs, got str",
    ),
    "returns a number": (
        "import harness\n@harness.hookimpl\ndef harness_register_workloads(): return 3",
        "must return a list of specs, got int",
    ),
    "returns names": (
        "import harness\n@harness.hookimpl\ndef harness_register_engines(): return ['bad']",
        "expected EngineSpec, got str",
    ),
    "returns another kind": (
        "import harness\n@harness.hookimpl\ndef harness_register_engines(): return [harness.ProfilerSpec('bad', '', print)]",
        "expected EngineSpec, got ProfilerSpec",
    ),
    "names an engine by number": (textwrap.dedent(GOOD.format(name=3)), "3"),
    "takes an engine's name": (textwrap.dedent(GOOD.format(name="hf")), "the engine name 'hf' is already taken"),
}


def names(harness, what: str) -> list[str]:
    return [next(iter(row.values())) for row in json.loads(harness("list", what, "--json").stdout)]


@pytest.mark.parametrize(
    ("what", "name", "built_in"),
    [
        ("engines", "echo", "hf"),
        ("workloads", "count", "perf"),
        ("profilers", "tally", None),
        ("plugins", "echo", "hf"),
    ],
)
def test_an_installed_plugin_is_listed_beside_the_built_in_ones(harness, what, name, built_in):
    assert {name, built_in or name} <= set(names(harness, what))


def test_the_list_of_plugins_says_what_each_provides_and_where_it_came_from(harness):
    rows = {row["plugin"]: row for row in json.loads(harness("list", "plugins", "--json").stdout)}
    assert rows["echo"] == {
        "plugin": "echo",
        "provides": "engine echo, workload count, profiler tally",
        "source": "harness_echo of harness-echo",
        "problem": None,
    }


def test_an_outside_engine_workload_and_profiler_give_full_records(harness):
    done = harness.measure("--precision", "bf16,nvfp4", "--workload", "perf,ppl,count", "--profile", "tally")
    assert done.returncode == 0, done.stderr
    records = {(record["precision"], record["workload"]): record for record in harness.records()}
    assert len(records) == 6 and {record["status"] for record in records.values()} == {"ok"}

    perf, ppl, count = (records["nvfp4", workload] for workload in ("perf", "ppl", "count"))
    assert (perf["engine"], perf["engine_version"]) == ("echo", "1.0")
    assert (perf["compute_mode"], perf["moe_backend"], perf["config"]) == ("native", "parrot", "TP1_EP1_auto")
    assert perf["latency_ms"]["n"] == 2 and perf["itl_ms"]["n"] == 2 * 3
    assert 0 < perf["ttft_ms"]["mean"] < perf["mean_latency_ms"]
    assert perf["output_tokens_per_sec"] == pytest.approx(4 / perf["mean_latency_ms"] * 1e3)
    assert ppl["perplexity"] == pytest.approx(2.718281828)
    assert (ppl["num_chunks"], ppl["scored_tokens"]) == (2, 2 * 7)
    assert (count["batch_size"], count["tokens"]) == (2, 2 * 4)
    assert ppl["conditions"]["token_ids_sha256"] == records["bf16", "ppl"]["conditions"]["token_ids_sha256"]
    assert "parrot" in done.stdout


def test_a_profiler_sees_an_extra_pass_of_each_workload_and_not_the_timed_ones(harness):
    harness.measure("--precision", "bf16", "--workload", "perf,count", "--profile", "tally", "--num-iterations", 5)
    profiles = {
        path.parent.name.split("_")[-2]: json.loads(path.read_text())
        for path in harness.folder.glob("out/traces/*/tally.json")
    }
    assert profiles.keys() == {"perf", "count"}
    assert [profile["generate"] for profile in profiles.values()] == [1, 1]


def test_kernel_rules_of_a_plugin_are_asked_before_the_built_in_ones(harness, install):
    install(
        "ours",
        """
        import harness
        from harness.kernels.taxonomy import KernelRules, Rule

        @harness.hookimpl
        def harness_register_kernel_rules():
            return [KernelRules("ours", (Rule("comm", match="^fused_moe_kernel$", reason="because we say so"),))]
        """,
    )
    names = harness.root / "names"
    names.write_text("fused_moe_kernel\nfused_moe_kernel_gptq_awq\n")
    rows = harness("kernels", "classify", names).stdout.splitlines()
    assert rows == [
        "name,category,found_by,confidence",
        "fused_moe_kernel,comm,name,high",
        "fused_moe_kernel_gptq_awq,expert_gemm,name,high",
    ]


def test_without_profile_nothing_is_profiled(harness):
    harness.measure("--precision", "bf16", "--workload", "count")
    assert list((harness.folder / "out/traces").iterdir()) == []


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("name", ["aaa_bad", "zzz_bad"])  # plugins are loaded in the order of their names
def test_a_bad_plugin_is_named_and_left_out_and_the_others_never_notice(harness, install, name, what):
    source, words = BAD[what]
    install(name, source)
    listed = harness("list", "engines", "--json")
    assert listed.returncode == 0, listed.stderr
    assert {row["engine"] for row in json.loads(listed.stdout)} == {"echo", "hf", "neuron", "sglang", "trtllm", "vllm"}
    warning, *more = listed.stderr.splitlines()
    assert more == []
    assert warning.startswith(f"warning: plugin {name} ({name} of {name}): left out: ") and words in warning


def test_a_plugin_cannot_take_the_name_of_another(harness, install):
    install("impostor", GOOD.format(name="thief"), point="hf")
    listed = harness("list", "engines", "--json")
    assert {row["engine"] for row in json.loads(listed.stdout)} == {"echo", "hf", "neuron", "sglang", "trtllm", "vllm"}
    assert (
        "warning: plugin hf (impostor of impostor): left out: the plugin name 'hf' is taken by harness_hf"
        in listed.stderr
    )


@pytest.fixture
def beset(harness, install):
    """Every bad plugin at once."""
    for index, (source, _) in enumerate(BAD.values()):
        install(f"zzz_bad{index}", source)
    return harness


def test_a_run_beside_bad_plugins_measures_and_names_each(beset):
    done = beset.measure("--precision", "bf16", "--workload", "perf")
    assert done.returncode == 0, done.stderr
    assert [record["status"] for record in beset.records()] == ["ok"]
    for index, words in enumerate(words for _, words in BAD.values()):
        assert any(f"plugin zzz_bad{index} " in line and words in line for line in done.stderr.splitlines())


def test_help_and_doctor_work_beside_bad_plugins(beset):
    assert beset("--help").returncode == 0
    doctor = beset("doctor")
    assert doctor.returncode == 0, doctor.stderr
    assert doctor.stdout.count("problem: plugin zzz_bad") == len(BAD)


def test_asking_for_what_was_left_out_says_so_and_why(harness, install):
    install("broken", "raise RuntimeError('the flux is low')")
    done = harness("run", "--engine", "broken")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "unknown engine 'broken'" in done.stderr and "the flux is low" in done.stderr


@pytest.mark.parametrize("sin", ["raise RuntimeError('the flux is low')", "raise SystemExit('the flux is low')"])
@pytest.mark.parametrize("hook", ["harness_cell_finished(record)", "harness_load_started(load)"])
def test_a_tracker_that_fails_costs_a_warning_that_names_it_and_no_measurement(harness, install, hook, sin):
    install("diary", f"import harness\n@harness.hookimpl\ndef {hook}: print('TOLD', file=__import__('sys').stderr)")
    install("leaky", f"import harness\n@harness.hookimpl\ndef {hook}: {sin}")
    done = harness.measure("--precision", "bf16", "--workload", "perf")
    assert done.returncode == 0, done.stderr
    assert [record["status"] for record in harness.records()] == ["ok"]
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert all(words in warnings[0] for words in ("leaky", hook.partition("(")[0], "the flux is low"))
    assert done.stderr.splitlines().count("TOLD") == 1


@pytest.mark.parametrize("answer", ["1 / 0", "3"])
def test_a_plugin_that_cannot_find_checkpoints_costs_a_warning(harness, install, answer):
    install(
        "leaky", f"import harness\n@harness.hookimpl\ndef harness_resolve_checkpoint(model, precision): return {answer}"
    )
    done = harness.measure("--precision", "bf16", "--workload", "perf")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "leaky" in done.stderr


@pytest.mark.parametrize("arguments", [["doctor"], ["list", "precisions"]])
@pytest.mark.parametrize("support", ["1 / 0", "None", "harness.Support('perhaps')"])
def test_an_engine_that_cannot_say_what_it_supports_hides_no_other(harness, install, support, arguments):
    install("vague", GOOD.format(name="vague").replace('harness.Support("native")', support))
    done = harness(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "hf" in done.stdout and "vague" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "results", ["{'key': '../../escaped'}", "{'status': 'splendid'}", "{'workload': '../../../escaped'}"]
)
def test_a_workload_cannot_overwrite_what_the_harness_says_in_a_record(harness, install, results):
    install(
        "forger",
        f"""
        from harness import Measurement, WorkloadSpec, hookimpl
        @hookimpl
        def harness_register_workloads():
            return [WorkloadSpec("forge", "", "generate", "accuracy", "prompts", {{"batch_size": 1, "input_len": 8}},
                                 lambda *_: Measurement({results}))]
        """,
    )
    done = harness.measure("--precision", "bf16", "--workload", "forge,count")
    assert "Traceback" not in done.stderr, done.stderr
    found = {record["workload"]: record["status"] for record in harness.records()}
    assert found.keys() == {"forge", "count"}
    assert found["count"] == "ok" and found["forge"] in ("ok", "failed")
    assert list(harness.root.glob("**/escaped*")) == []
