"""Files that are on the disk when a function returns, with the hash of what was meant to be in them.

Everything that touches the disk goes through five short functions, so that a test can make any one of them fail.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 20  # bytes of one write
SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


@dataclass(frozen=True)
class Written:
    """A file as it was meant."""

    size: int
    """Bytes."""
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Write a safetensors file.

    Not by `safetensors.torch.save_file`, which leaves mode 0600, flushes nothing, hashes nothing, and refuses the
    tables that an 8-bit optimiser shares between its parameters.

    Raises:
        OSError: if it cannot be written, or reads back otherwise.
    """
    return write_file(path, _safetensors(tensors))


def write_json(path: Path, content: Mapping[str, Any]) -> Written:
    """Write JSON; a number that is not finite is an error."""
    return write_file(path, [json.dumps(content, ensure_ascii=False, allow_nan=False).encode()])


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> Written:
    """Write a new file, flush it to the disk, and read it back.

    Raises:
        OSError: if there is one of that name, it cannot be written, or what comes back differs from what was meant.
    """
    digest = hashlib.sha256()
    size = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # the umask takes away what it must
    try:
        for block in _blocks(parts):
            digest.update(block)
            size += len(block)
            rest = memoryview(block)
            while rest:
                rest = rest[_write(descriptor, rest) :]
        _sync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # else it would be read back from memory
    finally:
        os.close(descriptor)
    written = Written(size, digest.hexdigest())
    if _hash(path) != written.sha256:
        raise OSError(errno.EIO, "what was written reads back otherwise", str(path))
    return written


def sync_folder(path: Path) -> None:
    """Flush the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a folder another name."""
    source.rename(target)


def free_bytes(path: Path) -> int:
    """Return what this user may still write to the disk of a folder."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the size of tensors in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    # Widest elements first, then by name: the order of the library, so that its files and ours are the same bytes.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {}
    start = 0
    for name, tensor in ordered:
        end = start + num_bytes([tensor])
        header[name] = {
            "dtype": SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers lie on multiples of eight bytes
    yield struct.pack("<Q", len(text)) + text
    for _, tensor in ordered:
        if tensor.numel():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            yield memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _blocks(parts: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Join what is small and cut what is large: hundreds of small tensors cost one write."""
    pending = bytearray()
    for part in parts:
        if len(part) < BLOCK:
            pending += part
            if len(pending) < BLOCK:
                continue
            part, pending = bytes(pending), bytearray()
        elif pending:
            yield bytes(pending)
            pending = bytearray()
        for start in range(0, len(part), BLOCK):
            yield part[start : start + BLOCK]
    if pending:
        yield bytes(pending)


def _write(descriptor: int, block: memoryview) -> int:
    return os.write(descriptor, block)


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
