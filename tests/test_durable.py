"""Files are the library's own bytes with usual rights, flushed and read back; what reads back otherwise is an error."""

import hashlib
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import train.durable as module
from train.durable import BLOCK, free_bytes, num_bytes, write_file, write_json, write_tensors

TENSORS = {
    "b.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "a.half": torch.tensor([1.5, -2.0, float("inf")], dtype=torch.float16),
    "a.bf16": torch.randn(7, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "step": torch.tensor(3.0),
    "codes": torch.arange(255, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "wide": torch.tensor([-1, 2**60]),
    "nothing": torch.zeros(0, 4),
    "é 漢": torch.ones(2, dtype=torch.float64),
}


def test_the_file_is_the_library_s_own_byte_for_byte(tmp_path):
    written = write_tensors(tmp_path / "ours", TENSORS)
    save_file(TENSORS, str(tmp_path / "theirs"))
    content = (tmp_path / "ours").read_bytes()
    assert content == (tmp_path / "theirs").read_bytes()
    assert (written.size, written.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_what_the_library_refuses_comes_back_too(tmp_path):
    """Views, and one table shared by several parameters, as an 8-bit optimiser has it."""
    table = torch.linspace(-1, 1, 256)
    tensors = {"0.table": table, "1.table": table, "turned": torch.arange(6.0).reshape(2, 3).T}
    with pytest.raises(RuntimeError, match="share memory"):
        save_file(tensors, str(tmp_path / "theirs"))
    write_tensors(tmp_path / "ours", tensors)
    loaded = load_file(tmp_path / "ours")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_large_and_small_parts_are_joined_in_order(tmp_path):
    parts = [b"a" * 10, b"b" * (2 * BLOCK + 5), b"c", b"d" * BLOCK, b"e" * 3]
    written = write_file(tmp_path / "x", parts)
    assert (tmp_path / "x").read_bytes() == b"".join(parts)
    assert written.size == 3 * BLOCK + 19


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_rights_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "x.json", {"a": 1})
    finally:
        os.umask(before)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == mode


def test_everything_is_flushed_before_the_file_is_closed(tmp_path, monkeypatch):
    calls = []
    for name in ("_write", "_sync", "_hash"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, real=real: calls.append(name) or real(*a))
    write_file(tmp_path / "x", [b"1234"])
    assert calls == ["_write", "_sync", "_hash"]


def test_a_disk_that_writes_something_else_is_found(tmp_path, monkeypatch):
    real = module._write
    monkeypatch.setattr(module, "_write", lambda fd, block: real(fd, memoryview(bytes(block)[:-1] + b"!")))
    with pytest.raises(OSError, match="reads back otherwise"):
        write_file(tmp_path / "x", [b"1234"])


def test_a_file_that_is_there_is_never_written_over(tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "x", [b"1234"])
    assert (tmp_path / "x").read_text() == "mine"


def test_half_a_write_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_write", lambda fd, block: os.write(fd, block[:3]))
    write_file(tmp_path / "x", [b"1234567890"])
    assert (tmp_path / "x").read_bytes() == b"1234567890"


def test_a_number_that_is_not_finite_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    write_json(tmp_path / "y.json", {"é": [1, None]})
    assert json.loads((tmp_path / "y.json").read_text(encoding="utf-8")) == {"é": [1, None]}


def test_sizes():
    assert num_bytes(TENSORS.values()) == 48 + 6 + 14 + 4 + 255 + 2 + 16 + 0 + 16
    assert free_bytes(module.Path("/")) > 0
