"""kernel_flop_ratio counts what an HLO file holds, says what it left out, and refuses what is no whole HLO file."""

from __future__ import annotations

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.evaluation.flops import KernelFlops
from harness.evaluation.hlo import KERNEL_TARGET, count
from harness.evaluation.wire import WireError, read
from harness.plugins import discover

DATA = Path(__file__).parent / "data/hlo"  # written by XLA; README.md there says how
CONTEXT_DOTS = (
    4 * 16 * 32 * 64  # [4,16,32] . [32,64]
    + 4 * 16 * 64 * 8  # batch of 4: [16,64] . [64,8]
    + 4 * 16 * 8 * 16 + 4 * 16 * 16 * 8  # the body of a loop of three, counted once
)  # fmt: skip
TOKEN_DOTS = 1 * 32 * 64


# A writer of the wire format, apart from the reader under test.


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def block(number: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def packed(number: int, *values: int) -> bytes:
    return block(number, b"".join(map(varint, values)))


def one_by_one(number: int, *values: int) -> bytes:
    return b"".join(integer(number, value) for value in values)


def instruction(id: int, opcode: str, shape=(), *more: bytes, repeated=packed) -> bytes:
    parts = block(1, f"{opcode}.{id}"), block(2, opcode), block(3, repeated(3, *shape)), *more, integer(35, id)
    return block(2, b"".join(parts))


def dot(id: int, lhs: int, rhs: int, contracting=((1,), (0,)), batch=((), ()), repeated=packed) -> bytes:
    axes = [repeated(number, *values) for number, values in enumerate((*contracting, *batch), 1) if values]
    return instruction(id, "dot", (), block(30, b"".join(axes)), repeated(36, lhs, rhs), repeated=repeated)


def kernel(id: int, config: bytes, target: str = KERNEL_TARGET) -> bytes:
    return instruction(id, "custom-call", (1,), block(28, target), block(43, config))


def stating(config: object) -> bytes:
    return base64.b64encode(json.dumps(config).encode())


def module(*instructions: bytes, entry: int = 7) -> bytes:
    return block(1, "m") + block(3, block(1, "main") + b"".join(instructions) + integer(5, 7)) + integer(6, entry)


@pytest.fixture
def counted(tmp_path):
    def counted(*content: bytes) -> KernelFlops:
        file = tmp_path / "hlo_module.pb"
        file.write_bytes(b"".join(content))
        return count(file)

    return counted


def test_files_that_xla_wrote_have_the_macs_of_their_dots_and_kernels():
    context, token = count(DATA / "context_encoding.pb"), count(DATA / "token_generation.pb")
    assert (context.kernel_macs, context.total_macs) == (5000, 5000 + CONTEXT_DOTS)
    assert (token.kernel_macs, token.total_macs) == (1_000_000, 1_000_000 + TOKEN_DOTS)
    assert token.notes == () and token.sources == (str(DATA / "token_generation.pb"),)


def test_a_kernel_without_a_mac_count_is_said_and_not_hidden():
    assert count(DATA / "context_encoding.pb").notes == (
        "1 of 2 kernels state no mac_count and count as 0: the ratio is a lower bound",
    )


def test_a_compiled_models_folder_gives_context_encoding_and_token_generation_together(tmp_path):
    for model in ("context_encoding", "token_generation"):
        for bucket in ("_tp0_bk0", "_tp0_bk1"):  # only the first bucket counts
            folder = tmp_path / f"{model}_model" / bucket
            folder.mkdir(parents=True)
            shutil.copy(DATA / f"{model}.pb", folder / "model.HLO_Module.pb")
            (folder / "neuron.log").write_text("not read")
    flops = count(tmp_path)
    assert (flops.kernel_macs, flops.total_macs) == (1_005_000, 1_005_000 + CONTEXT_DOTS + TOKEN_DOTS)
    assert flops.ratio == pytest.approx(1_005_000 / (1_005_000 + 180_224 + 2_048))
    shutil.copy(DATA / "token_generation.pb", tmp_path / "token_generation_model/_tp0_bk0/second_hlo_module.pb")
    with pytest.raises(UsageError, match="token_generation_model/_tp0_bk0: expected one .*, found 2"):
        count(tmp_path)
    shutil.rmtree(tmp_path / "token_generation_model")
    with pytest.raises(UsageError, match="token_generation_model/_tp0_bk0: expected one .*, found 0"):
        count(tmp_path)


def test_a_folder_of_files_is_summed(tmp_path):
    shutil.copy(DATA / "token_generation.pb", tmp_path / "a.pb")
    shutil.copy(DATA / "token_generation.pb", tmp_path / "graph.hlo_module.0")
    assert count(tmp_path).kernel_macs == 2_000_000
    assert len(count(tmp_path).sources) == 2


def test_what_multiplies_but_is_not_counted_is_named(counted):
    flops = count(DATA / "convolution.pb")
    assert (flops.total_macs, flops.ratio) == (0, None), "0 of 0 is no ratio"
    assert flops.notes == ("not counted on either side: 1 convolution",)
    flops = counted(module(kernel(1, b"", "AwsNeuronRmsNorm"), kernel(2, stating({"mac_count": 3}))))
    assert (flops.ratio, flops.notes) == (1, ("not counted on either side: 1 custom call AwsNeuronRmsNorm",))


@pytest.mark.parametrize("repeated", [packed, one_by_one])
def test_dimensions_may_be_packed_or_not(counted, repeated):
    shapes = {1: (5, 2, 3), 2: (4, 3, 5)}
    operands = [instruction(id, "parameter", shape, repeated=repeated) for id, shape in shapes.items()]
    assert counted(module(*operands, dot(3, 1, 2, ((2,), (1,)), ((0,), (2,)), repeated))).total_macs == 5 * 2 * 3 * 4


def test_several_contracting_and_batch_dimensions_multiply(counted):
    operands = instruction(1, "parameter", (2, 3, 4, 5, 6)), instruction(2, "parameter", (5, 2, 4, 3, 7))
    assert counted(module(*operands, dot(3, 1, 2, ((2, 3), (2, 0)), ((0, 1), (1, 3))))).total_macs == 2 * 3 * 20 * 6 * 7


def test_dots_of_vectors_and_of_nothing(counted):
    vectors = instruction(1, "parameter", (9,)), instruction(2, "parameter", (9,)), dot(3, 1, 2, ((0,), (0,)))
    assert counted(module(*vectors)).total_macs == 9
    nothing = instruction(1, "parameter", (0, 4)), instruction(2, "parameter", (4, 3)), dot(3, 1, 2)
    assert counted(module(*nothing)).total_macs == 0


@pytest.mark.parametrize(
    "config",
    [b"", b"{}", b"\xff\xfe", b"===", stating({}), stating([1]), stating({"mac_count": -1}), stating({"mac_count": 1.5}),
     stating({"mac_count": "many"}), stating({"mac_count": True}), stating({"mac_count": None}), stating("mac_count")],
)  # fmt: skip
def test_any_other_configuration_states_no_count(counted, config):
    flops = counted(module(kernel(1, config), kernel(2, stating({"mac_count": "12"}))))
    assert flops.kernel_macs == 12 and flops.notes[0].startswith("1 of 2 kernels state no mac_count")


@pytest.mark.parametrize("name", ["context_encoding.pb", "token_generation.pb"])
def test_a_file_cut_anywhere_is_refused_or_has_every_mac(counted, name):
    content = (DATA / name).read_bytes()
    whole = count(DATA / name)
    refused = 0
    for size in range(len(content)):
        try:
            found = counted(content[:size])
        except UsageError as error:
            assert "\n" not in str(error) and "HloModuleProto" in str(error)
            refused += 1
        else:  # cut behind the last computation: nothing that counts is missing
            assert replace(found, sources=whole.sources) == whole
    assert refused > len(content) / 2


TWO = instruction(1, "parameter", (2, 3)), instruction(2, "parameter", (3, 4))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "its entry computation is not among its 0 computations"),
        (b'{"a": "JSON"}', "HloModuleProto"),
        (b"\x7fELF" + bytes(64), "HloModuleProto"),
        (b"\x80\x05\x95" + bytes(range(200)), "HloModuleProto"),
        (module(*TWO, entry=8), "entry computation"),
        (module(), "without instructions"),
        (module(instruction(1, "")), "without opcode"),
        (module(instruction(1, "parameter"), instruction(1, "parameter")), "one id"),
        (module(*TWO, dot(3, 1, 9)), "dot 'dot.3': its operands are not in its computation"),
        (module(*TWO, dot(3, 1, 2, ((0,), (0,)))), "do not fit each other"),
        (module(*TWO, dot(3, 1, 2, ((1,), (2,)))), "axes (2,) of an operand with 2 dimensions"),
        (module(*TWO, dot(3, 1, 2, ((1, 1), (0, 0)))), "axes (1, 1)"),
        (module(instruction(1, "parameter", (-1, 3)), TWO[1], dot(3, 1, 2)), "unknown size"),
        (integer(3, 1), "computations (field 3) has wire type 0"),
        (block(1, b"\xff") + module(*TWO), "name is not UTF-8"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x01", "field number 0"),
        (b"\x30" + b"\xff" * 10, "more than 64 bits"),
        (b"\x30" + b"\xff" * 9 + b"\x7f", "more than 64 bits"),
    ],
)
def test_a_foreign_or_broken_file_costs_one_line_that_names_it(counted, tmp_path, content, words):
    with pytest.raises(UsageError) as error:
        counted(content)
    assert str(error.value).startswith(f"{tmp_path}/hlo_module.pb is no HloModuleProto, or not a whole one: ")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_path_without_hlo_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        count(tmp_path / "nowhere.pb")
    with pytest.raises(UsageError, match="no HLO in it"):
        count(tmp_path)


def test_the_reader_passes_over_fields_it_does_not_know_but_not_over_bad_ones():
    content = b"\x09" + bytes(8) + b"\x15" + bytes(4) + block(900, b"later") + integer(5, -2) + packed(6, 1, 300, -1)
    assert read(content, {5: ("five", "int"), 6: ("six", "ints"), 7: ("seven", "text")}) == {
        "five": -2,
        "six": (1, 300, -1),
        "seven": "",
    }
    with pytest.raises(WireError, match="field 1 has 8 bytes, 7 are left"):
        read(b"\x09" + bytes(7), {})


def test_the_provider_is_a_plugin_like_every_other():
    registry = discover()
    assert registry.kernel_flop_providers["hlo"].ratio is count
    row = next(plugin for plugin in registry.plugins if plugin.name == "hlo")
    assert (row.provides, row.source, row.problem) == (("kernel flop provider hlo",), "built in", None)
