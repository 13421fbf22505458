"""Audio whose header declares how large it is: WAV, RF64, W64, AIFF, AU, CAF, SPHERE, MP4 and Matroska.

Each function holds the declared sizes against the bytes that are there, and the counts of a header against each other.
It raises A03 if the file is cut and A04 if it contradicts itself; none looks at samples.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from data.bitstreams import corrupt, read_at, truncated

UNKNOWN = -1  # of a size: up to the end of the file

W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # of every GUID behind its four letters
_PLAIN_WAV_TAGS = (1, 3, 6, 7)  # integer, float, A-law, mu-law: a frame has as many bytes as the header says
_EXTENSIBLE_WAV_TAG = 0xFFFE
_AIFF_SAMPLE_BYTES = {b"ulaw": 1, b"ULAW": 1, b"alaw": 1, b"ALAW": 1, b"fl32": 4, b"FL32": 4, b"fl64": 8, b"FL64": 8}
_AIFF_INTEGERS = (b"NONE", b"twos", b"sowt", b"in24", b"in32")
_SEGMENT = b"\x18\x53\x80\x67"  # of Matroska


@dataclass(frozen=True)
class _Chunk:
    id: bytes
    body: int
    """Position of the payload."""
    size: int
    """Bytes of the payload as declared; UNKNOWN up to the end of the file."""


_HeaderReader = Callable[[BinaryIO, int], "tuple[_Chunk, int] | None"]


def _walk(raw: BinaryIO, position: int, end: int, read_header: _HeaderReader) -> Iterator[_Chunk]:
    """Yield chunk after chunk; the position behind each comes from `read_header`, which returns None past the last."""
    while position < end:
        header = read_header(raw, position)
        if header is None:
            return
        chunk, following = header
        yield chunk
        if following <= position:
            return
        position = following


def _iff_header(raw: BinaryIO, position: int, order: str) -> tuple[_Chunk, int] | None:
    head = read_at(raw, position, 8)
    if len(head) < 8:
        return None
    id, size = struct.unpack(f"{order}4sI", head)
    return _Chunk(id, position + 8, size), position + 8 + size + size % 2


def _verify_data(chunk: _Chunk, size: int, name: str) -> None:
    if chunk.body + chunk.size > size:
        available = max(0, size - chunk.body)
        raise truncated(f"{name} declares {chunk.size} bytes, {available} are there")


def _is_printable(id: bytes) -> bool:
    return all(0x20 <= byte < 0x7F for byte in id)


def verify_wav(raw: BinaryIO, size: int) -> bool:
    """Verify a RIFF, RIFX, RF64 or BW64 file; return whether its size is 0 only because it was not known.

    libsndfile reads no sample of such a file. Source: EBU Tech 3306; Microsoft's `WAVEFORMATEX`.
    """
    head = read_at(raw, 0, 12)
    order = ">" if head[:4] == b"RIFX" else "<"
    (riff_size,) = struct.unpack(f"{order}I", head[4:8])
    has_format = False
    long_size = UNKNOWN
    for chunk in _walk(raw, 12, size, lambda raw, position: _iff_header(raw, position, order)):
        if chunk.id == b"ds64":
            (long_size,) = struct.unpack("<8xQ", read_at(raw, chunk.body, 16).ljust(16, b"\0"))
        elif chunk.id == b"fmt ":
            _verify_wav_format(read_at(raw, chunk.body, min(40, chunk.size)), order)
            has_format = True
        elif chunk.id == b"data":
            if not has_format:
                raise corrupt("the data chunk stands before the format chunk")
            if chunk.size == 0xFFFFFFFF and head[:4] in (b"RF64", b"BW64"):
                chunk = _Chunk(chunk.id, chunk.body, long_size)
            # Written into a pipe, the size is what could not be known: 0, the largest one, or (SoX, eSpeak, arecord)
            # a round one close to 2 GiB. A file of no samples says 0 twice over, here and by the size of the whole.
            is_stream = chunk.size in (UNKNOWN, 0xFFFFFFFF) or 0x7FFFF000 <= chunk.size <= 0x80000000
            is_zero_stream = chunk.size == 0 and riff_size + 8 < size
            if not is_stream and not is_zero_stream:
                _verify_data(chunk, size, "the data chunk")
                _verify_behind(raw, chunk, size)
            return is_zero_stream
    raise truncated("the file ends before its data chunk")


def _verify_behind(raw: BinaryIO, data: _Chunk, size: int) -> None:
    """Verify that what follows the data is another chunk, a tag or padding, and not more data."""
    end = data.body + data.size
    for position in {end, end + data.size % 2}:  # some writers leave out the padding byte
        id = read_at(raw, position, 4)
        if len(id) < 4 or _is_printable(id) or id.startswith((b"ID3", b"TAG")) or id == bytes(4):
            return
    raise corrupt(f"{data.size} bytes of data declared, {size - data.body} found")


def _verify_wav_format(content: bytes, order: str) -> None:
    if len(content) < 16:
        raise corrupt(f"a format chunk of {len(content)} bytes, 16 is the least")
    tag, num_channels, rate, byte_rate, frame_bytes, bits = struct.unpack(f"{order}HHIIHH", content[:16])
    if tag == _EXTENSIBLE_WAV_TAG and len(content) >= 26:
        (tag,) = struct.unpack(f"{order}H", content[24:26])
    if num_channels == 0:
        raise corrupt("0 channels declared")
    if tag not in _PLAIN_WAV_TAGS:
        return
    if frame_bytes != num_channels * ((bits + 7) // 8):
        raise corrupt(f"{num_channels} channels of {bits} bits declared, and frames of {frame_bytes} bytes")
    if byte_rate not in (0, rate * frame_bytes):
        raise corrupt(f"{rate} Hz and frames of {frame_bytes} bytes declared, and {byte_rate} bytes a second")


def _w64_header(raw: BinaryIO, position: int) -> tuple[_Chunk, int] | None:
    head = read_at(raw, position, 24)
    if len(head) < 24:
        return None
    id, size = struct.unpack("<16sQ", head)  # the size counts the header, and chunks begin at multiples of 8
    return _Chunk(id, position + 24, max(0, size - 24)), position + max(24, size + -size % 8)


def verify_w64(raw: BinaryIO, size: int) -> None:
    """Verify a Sony Wave64 file. Source: the format's specification by Sonic Foundry."""
    has_data = False
    for chunk in _walk(raw, 40, size, _w64_header):
        if not chunk.id.endswith(_W64_TAIL[2:]):
            raise corrupt(f"no chunk at byte {chunk.body - 24}, where one is due")
        if chunk.id == b"data" + _W64_TAIL:
            _verify_data(chunk, size, "the data chunk")
            has_data = True
        elif chunk.id == b"fmt " + _W64_TAIL:
            _verify_wav_format(read_at(raw, chunk.body, min(40, chunk.size)), "<")
    if not has_data:
        raise truncated("the file ends before its data chunk")


def verify_aiff(raw: BinaryIO, size: int) -> None:
    """Verify an AIFF or AIFF-C file. Source: Apple's Audio Interchange File Format 1.3 and AIFF-C drafts."""
    num_frames = frame_bytes = 0
    held = UNKNOWN
    for chunk in _walk(raw, 12, size, lambda raw, position: _iff_header(raw, position, ">")):
        if chunk.id == b"COMM":
            content = read_at(raw, chunk.body, 22)
            if len(content) < 18:
                raise truncated("the file ends in its format chunk")
            num_channels, num_frames, bits = struct.unpack(">HIH", content[:8])
            codec = content[18:22] if read_at(raw, 8, 4) == b"AIFC" else b"NONE"
            sample_bytes = _AIFF_SAMPLE_BYTES.get(codec, (bits + 7) // 8 if codec in _AIFF_INTEGERS else 0)
            if num_channels == 0:
                raise corrupt("0 channels declared")
            frame_bytes = num_channels * sample_bytes
        elif not _is_printable(chunk.id):
            raise corrupt(f"no chunk at byte {chunk.body - 8}, where one is due")
        elif chunk.id == b"SSND":
            _verify_data(chunk, size, "the sound chunk")
            held = chunk.size - 8
            if chunk.size == 0:  # written into a pipe
                return
    if held == UNKNOWN:
        raise truncated("the file ends before its sound chunk")
    if frame_bytes and not 0 <= held - num_frames * frame_bytes < max(frame_bytes, 8):
        raise corrupt(f"{num_frames} frames of {frame_bytes} bytes declared, the sound chunk holds {held} bytes")


def verify_au(raw: BinaryIO, size: int) -> None:
    """Verify a Sun or NeXT file, in either byte order."""
    head = read_at(raw, 0, 24)
    if len(head) < 24:
        raise truncated("the file ends in its header")
    body, num_bytes, _, _, num_channels = struct.unpack("<IIIII" if head[:4] == b"dns." else ">IIIII", head[4:])
    if num_channels == 0 or body < 24:
        raise corrupt(f"{num_channels} channels and a header of {body} bytes declared")
    if num_bytes != 0xFFFFFFFF:
        _verify_data(_Chunk(b"", body, num_bytes), size, "the header")
        if body + num_bytes < size and any(read_at(raw, body + num_bytes, 64)):
            raise corrupt(f"{num_bytes} bytes of sound declared, {size - body} found")


def _caf_header(raw: BinaryIO, position: int) -> tuple[_Chunk, int] | None:
    head = read_at(raw, position, 12)
    if len(head) < 12:
        return None
    id, size = struct.unpack(">4sq", head)
    return _Chunk(id, position + 12, size), position + 12 + size


def verify_caf(raw: BinaryIO, size: int) -> None:
    """Verify a Core Audio Format file. Source: Apple's specification 1.0."""
    has_data = False
    for chunk in _walk(raw, 8, size, _caf_header):
        if chunk.size < 0 and not (chunk.id == b"data" and chunk.size == UNKNOWN):
            raise corrupt(f"a chunk of {chunk.size} bytes declared")
        if not _is_printable(chunk.id):
            raise corrupt(f"no chunk at byte {chunk.body - 12}, where one is due")
        if chunk.id == b"desc":
            _verify_caf_format(read_at(raw, chunk.body, 32))
        has_data = has_data or chunk.id == b"data"
        _verify_data(chunk, size, f"the chunk {chunk.id.decode('ascii')!r}")
        if chunk.size == UNKNOWN:
            return
    if not has_data:
        raise truncated("the file ends before its data chunk")


def _verify_caf_format(content: bytes) -> None:
    if len(content) < 32:
        raise truncated("the file ends in its format chunk")
    codec, _, packet_bytes, packet_frames, num_channels, bits = struct.unpack(">8x4s5I", content)
    if codec == b"lpcm" and packet_bytes != packet_frames * num_channels * ((bits + 7) // 8):
        raise corrupt(f"{num_channels} channels of {bits} bits declared, and packets of {packet_bytes} bytes")


def verify_nist(raw: BinaryIO, size: int) -> None:
    """Verify a NIST SPHERE file, as the corpora of the LDC use them."""
    head = read_at(raw, 0, 1024)
    fields = dict(line.split()[::2] for line in head.splitlines() if len(line.split()) == 3)
    try:
        num_bytes = int(fields[b"sample_count"]) * int(fields[b"sample_n_bytes"]) * int(fields[b"channel_count"])
        body = int(head[8:16])
    except (KeyError, ValueError) as e:
        raise corrupt("a SPHERE header without sample_count, sample_n_bytes or channel_count") from e
    if b"sample_coding" not in fields or fields[b"sample_coding"] in (b"pcm", b"ulaw", b"alaw"):
        _verify_data(_Chunk(b"", body, num_bytes), size, "the header")


def _mp4_header(raw: BinaryIO, position: int) -> tuple[_Chunk, int] | None:
    head = read_at(raw, position, 16)
    if len(head) < 8:
        raise truncated("the last box is cut")
    size, id = struct.unpack(">I4s", head[:8])
    header_bytes = 8
    if size == 1 and len(head) == 16:
        (size,) = struct.unpack(">Q", head[8:])
        header_bytes = 16
    if size == 0:  # up to the end of the file
        return _Chunk(id, position + 8, UNKNOWN), position
    if size < header_bytes:
        raise corrupt(f"a box of {size} bytes declared at byte {position}")
    return _Chunk(id, position + header_bytes, size - header_bytes), position + size


def verify_mp4(raw: BinaryIO, size: int) -> None:
    """Verify an MP4, M4A or QuickTime file. Source: ISO/IEC 14496-12, section 4.2."""
    found = set()
    for box in _walk(raw, 0, size, _mp4_header):
        if box.id == bytes(4) and box.size == UNKNOWN:  # zeros behind the last box
            break
        if not all(byte >= 0x20 for byte in box.id):
            raise corrupt(f"no box at byte {box.body - 8}, where one is due")
        _verify_data(box, size, f"the box {box.id.decode('latin-1')!r}")
        found.add(box.id)
    if b"moov" not in found or not found & {b"mdat", b"moof"}:
        raise truncated(f"no {'samples' if b'moov' in found else 'index (moov)'} in the file")


def _ebml_header(raw: BinaryIO, position: int) -> tuple[_Chunk, int] | None:
    head = read_at(raw, position, 12)
    id_bytes = 9 - head[0].bit_length()
    if id_bytes > 4:
        raise corrupt(f"no element at byte {position}, where one is due")
    if len(head) <= id_bytes:
        raise truncated("the last element is cut")
    size_bytes = 9 - head[id_bytes].bit_length()
    if size_bytes > 8:
        raise corrupt(f"an element without a size at byte {position}")
    body = position + id_bytes + size_bytes
    if len(head) < id_bytes + size_bytes:
        raise truncated("the last element is cut")
    id, mask = head[:id_bytes], (1 << 7 * size_bytes) - 1
    num_bytes = int.from_bytes(head[id_bytes : id_bytes + size_bytes], "big") & mask
    if num_bytes == mask or id == _SEGMENT:  # no length: its children stand where its end would be
        return _Chunk(id, body, UNKNOWN if num_bytes == mask else num_bytes), body
    return _Chunk(id, body, num_bytes), body + num_bytes


def verify_matroska(raw: BinaryIO, size: int) -> None:
    """Verify a Matroska or WebM file. Source: RFC 8794 and RFC 9559."""
    end = size
    for element in _walk(raw, 0, size, _ebml_header):
        if element.body > end:
            raise corrupt(f"elements go on behind the declared end at byte {end}")
        _verify_data(element, size, f"the element {element.id.hex()}")
        if element.id == _SEGMENT and element.size != UNKNOWN:
            end = element.body + element.size
