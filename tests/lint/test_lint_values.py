"""Values of scale tensors: counted as a library that knows their types counts them, in little memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import tensorfile
from harness.lint import values
from harness.tensorfile import BITS, Tensor


def stored(path: Path, dtype: str, content: bytes) -> Tensor:
    path.write_bytes(content)
    return Tensor(path, "a", dtype, (len(content) * 8 // BITS[dtype],), 0, len(content))


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0"])
@pytest.mark.parametrize("chunk", [8, 24, 1 << 20])
def test_counts_are_those_of_a_library_that_knows_the_types(tmp_path, monkeypatch, dtype, chunk):
    torch = pytest.importorskip("torch")
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    names |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}
    monkeypatch.setattr(tensorfile, "CHUNK", chunk)
    draw = torch.Generator().manual_seed(1)
    content = torch.cat([torch.arange(256), torch.randint(0, 256, (2048,), generator=draw)]).to(torch.uint8)
    content[512:640] = 0
    numbers = content.view(getattr(torch, names[dtype])).to(torch.float64)
    tensor = stored(tmp_path / "a", dtype, bytes(content.tolist()))
    for parts in (1, 4):
        for found, part in zip(values.examine(tensor, parts), numbers.chunk(parts), strict=True):
            assert (found.count, found.zeros) == (part.numel(), int((part == 0).sum()))
            assert (found.negative, found.nan) == (int((part < 0).sum()), int(part.isnan().sum()))
            assert (found.infinite, found.constant) == (int(part.isinf().sum()), None)
    decoded = torch.tensor(values.decode(tensor.read(), dtype), dtype=torch.float64)
    assert torch.equal(decoded.nan_to_num(7.5), numbers.nan_to_num(7.5))


@pytest.mark.parametrize(
    ("dtype", "one"), [("F32", b"\0\0\x80\x3f"), ("BF16", b"\x80\x3f"), ("F8_E4M3", b"\x38"), ("U8", b"\x7f")]
)
def test_one_value_everywhere_is_told_also_across_chunks(tmp_path, monkeypatch, dtype, one):
    monkeypatch.setattr(tensorfile, "CHUNK", 16)
    assert [found.constant for found in values.examine(stored(tmp_path / "a", dtype, one * 64))] == [1.0]
    changed = one * 63 + bytes([one[0] ^ 1]) + one[1:]
    assert [found.constant for found in values.examine(stored(tmp_path / "a", dtype, changed))] == [None]


def test_scales_of_any_size_are_read_in_little_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(64 << 20)  # zeros
    tensor = Tensor(path, "a", "F8_E4M3", (64 << 20,), 0, 64 << 20)
    tracemalloc.start()
    (found,) = values.examine(tensor)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.count, found.zeros) == (64 << 20, 64 << 20) and peak < 16 << 20
