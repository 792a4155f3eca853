"""Safetensors headers read by hand: all that the real package writes, and nothing that it would refuse."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest

from harness import tensorfile
from harness.tensorfile import BITS, open_header


def written(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_it_reads_what_the_real_package_writes(tmp_path):
    torch, save = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch").save_file
    names = "float64 float32 bfloat16 float16 float8_e4m3fn float8_e5m2 int8 uint8 int32 int64 bool".split()
    tensors = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4)}
    save(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = open_header(tmp_path / "a.safetensors")
    assert found.metadata == {"format": "pt"} and set(found.tensors) == set(tensors)
    for name, tensor in tensors.items():
        there = found.tensors[name]
        assert (there.shape, there.elements) == (tuple(tensor.shape), tensor.numel())
        assert BITS[there.dtype] == tensor.element_size() * 8
        assert there.read() == bytes(
            tensor.flatten().view(torch.uint8).tolist() if tensor.dim() else struct.pack("f", 2.5)
        )


def test_a_tensor_longer_than_a_chunk_comes_in_whole_elements(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "CHUNK", 16)
    data = bytes(range(100)) * 2
    path = written(tmp_path / "a", {"a": entry("F64", [25], [0, 200])}, data)
    chunks = list(open_header(path).tensors["a"].chunks())
    assert b"".join(chunks) == data and all(len(chunk) <= 16 and len(chunk) % 8 == 0 for chunk in chunks)


def test_a_file_that_shrinks_after_its_header_was_read_is_an_error_and_no_short_answer(tmp_path):
    path = written(tmp_path / "a", {"a": entry()}, bytes(8))
    tensor = open_header(path).tensors["a"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="ended within a"):
        tensor.read()


def test_four_bit_types_take_half_a_byte(tmp_path):
    path = written(tmp_path / "a", {"a": entry("F4", [4, 4], [0, 8])}, bytes(8))
    assert open_header(path).tensors["a"].elements == 16


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"", b"", "no safetensors file"),
        (b"[]", b"", "no safetensors file"),
        (b"5", b"", "no safetensors file"),
        (b"{", b"", "no safetensors file"),
        (b"\xff\xfe", b"", "no safetensors file"),
        (b"[" * 100_000, b"", "no safetensors file"),
        ({"__metadata__": ["pt"]}, b"", "no safetensors file"),
        ({"__metadata__": None}, b"", "no safetensors file"),
        ({"a": None}, b"", "no safetensors file"),
        ({"a": {"dtype": "F32"}}, b"", "no safetensors file"),
        ({"a": entry("F33")}, bytes(8), "unknown type 'F33'"),
        ({"a": entry(["F32"])}, bytes(8), "no safetensors file"),
        ({"a": entry(shape=[-2])}, bytes(8), "no whole number"),
        ({"a": entry(shape=[2.0])}, bytes(8), "no whole number"),
        ({"a": entry(shape=[True, 2])}, bytes(8), "no whole number"),
        ({"a": entry(shape="2")}, bytes(8), "no whole number"),
        ({"a": entry(offsets=[0, 8, 9])}, bytes(8), "no safetensors file"),
        ({"a": entry(offsets=[8, 0])}, bytes(8), "does not fill its place"),
        ({"a": entry(shape=[3])}, bytes(8), "does not fill its place"),
        ({"a": entry(), "b": entry()}, bytes(8), "b does not begin where it should"),
        ({"a": entry(offsets=[8, 16])}, bytes(16), "a does not begin where it should"),
        ({"a": entry()}, bytes(7), "cut short"),
        ({"a": entry()}, bytes(9), "its header describes"),
    ],
)
def test_what_is_no_sound_file_is_refused_in_words(tmp_path, header, data, words):
    with pytest.raises(ValueError, match=words) as caught:
        open_header(written(tmp_path / "a", header, data))
    assert str(tmp_path / "a") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 10), struct.pack("<Q", 1 << 63) + b"{}"])
def test_a_length_that_does_not_fit_the_file_is_refused_before_it_is_read(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="cut short or no safetensors file"):
        open_header(tmp_path / "a")


def test_a_missing_file_is_an_oserror(tmp_path):
    with pytest.raises(OSError):
        open_header(tmp_path / "nowhere")


def test_whatever_byte_of_a_header_is_changed_it_is_read_or_refused_and_never_crashes(tmp_path):
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("U8", [2, 4], [8, 16])}).encode()
    draw, outcomes = random.Random(5), {True: 0, False: 0}
    for _ in range(2000):
        text = bytearray(header)
        for _ in range(draw.randint(1, 3)):
            text[draw.randrange(len(text))] = draw.randrange(256)
        path = written(tmp_path / "a", bytes(text), bytes(16))
        try:
            found = open_header(path)
        except ValueError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
            assert sum(tensor.size for tensor in found.tensors.values()) == 16
    assert all(outcomes.values())
