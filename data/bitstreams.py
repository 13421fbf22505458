"""Ogg pages and FLAC frames: what they declare, held against what is there.

A page of Ogg carries a number, a checksum and the end-of-stream mark; a frame of FLAC the number of its first sample.
That is enough to see a cut without decoding.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

from data.reasons import Reason

MAX_PAGE_BYTES = 65_307  # of Ogg: 27 of header, 255 of lacing values, 255 * 255 of packets
_REVERSED_BITS = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


class ContainerError(ValueError):
    """A file that is cut, or whose header says what is not so: `reason` and what was declared and found."""

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason.message} ({detail}) [{reason.code}]")


def read_at(raw: BinaryIO, position: int, num_bytes: int) -> bytes:
    """Return up to `num_bytes` bytes from `position`, fewer at the end of the file."""
    raw.seek(position)
    return raw.read(num_bytes)


def truncated(detail: str) -> ContainerError:
    """Build the error of a file that ends too early."""
    return ContainerError(Reason.AUDIO_TRUNCATED, detail)


def corrupt(detail: str) -> ContainerError:
    """Build the error of a file that contradicts itself."""
    return ContainerError(Reason.AUDIO_CORRUPT, detail)


def verify_ogg(raw: BinaryIO, size: int, *, thorough: bool) -> bool:
    """Hold an Ogg file to its pages: none cut, the last one marked as the end of its stream.

    Args:
        raw: the open file.
        size: of the file, in bytes.
        thorough: look at every page, its number and its checksum, instead of the first and the last one.

    Returns:
        Whether the file is one stream alone. libsndfile reads no further than the first stream of a chain.

    Raises:
        ContainerError: if the file is cut, or pages are missing or damaged.

    Source: RFC 3533, section 6.
    """
    if thorough:
        return _verify_ogg_pages(read_at(raw, 0, size))
    first = read_at(raw, 0, 27)
    tail = read_at(raw, max(0, size - MAX_PAGE_BYTES), MAX_PAGE_BYTES)
    position = tail.rfind(b"OggS")
    while position >= 0:
        length = _ogg_page_length(tail, position)
        page = tail[position : position + length]
        is_page = tail[position + 4 : position + 5] == b"\x00"
        if is_page and (len(page) < length or length == 0):
            raise truncated("the last page is cut")
        if is_page and ogg_checksum(page) == page[22:26]:
            if not page[5] & 4:
                raise truncated("the last page is not marked as the end of the stream")
            return page[14:18] == first[14:18]
        position = tail.rfind(b"OggS", 0, position)
    raise corrupt("no whole page in the last 64 KiB")


def _ogg_page_length(content: bytes, position: int) -> int:
    """Return the length that a page declares, in bytes; 0 if its header is cut."""
    if position + 27 > len(content):
        return 0
    body = position + 27 + content[position + 26]
    return body + sum(content[position + 27 : body]) - position if body <= len(content) else 0


def ogg_checksum(page: bytes) -> bytes:
    """Compute the checksum of a whole Ogg page, 4 bytes as they stand in its header at byte 22."""
    # Ogg counts the bits of its CRC-32 from the other end than zlib; with the bits of each byte turned round, zlib
    # computes it, at a gigabyte a second. The initial value 0 is zlib's 0xFFFFFFFF.
    turned = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED_BITS)
    checksum = zlib.crc32(turned, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return checksum.to_bytes(4, "big").translate(_REVERSED_BITS)


def _verify_ogg_pages(content: bytes) -> bool:
    position, num_begun = 0, 0
    next_number: dict[bytes, int] = {}
    is_open: dict[bytes, bool] = {}
    last_time: dict[bytes, int] = {}
    while position < len(content):
        if content[position : position + 5] != b"OggS\x00":
            if b"OggS\x00".startswith(content[position : position + 5]):
                raise truncated("the last page is cut")
            if content.find(b"OggS\x00", position) >= 0 or any(is_open.values()):
                raise corrupt(f"no page at byte {position}, where one is due")
            break  # a tag or padding behind the last page
        length = _ogg_page_length(content, position)
        page = content[position : position + length]
        if length == 0 or len(page) < length:
            raise truncated(f"the page at byte {position} is cut")
        if ogg_checksum(page) != page[22:26]:
            raise corrupt(f"the page at byte {position} does not match its checksum")
        flags, time, serial, number = struct.unpack("<Bq4sI", page[5:22])
        if flags & 2:
            num_begun += 1
            last_time[serial] = 0
        elif serial not in next_number:
            raise corrupt(f"the page at byte {position} belongs to no stream that was begun")
        elif number != next_number[serial]:
            raise corrupt(f"page {number} at byte {position} where page {next_number[serial]} is due")
        elif 0 <= time < last_time[serial]:  # libsndfile would return memory that it never wrote
            raise corrupt(f"the page at byte {position} ends at sample {time}, one before it at {last_time[serial]}")
        last_time[serial] = max(time, last_time[serial])
        next_number[serial] = number + 1
        is_open[serial] = not flags & 4
        position += length
    if any(is_open.values()):
        raise truncated("the last page is not marked as the end of the stream")
    return num_begun == 1


def verify_flac(raw: BinaryIO, size: int, start: int) -> int:
    """Hold the sample count in a FLAC header against the last frame.

    Args:
        raw: the open file.
        size: of the file, in bytes.
        start: position of the marker `fLaC`, behind a tag perhaps.

    Returns:
        Samples per channel; 0 where the header does not say, as in a file that was written into a pipe.

    Raises:
        ContainerError: if the last frame ends before or behind the declared number of samples.

    Source: RFC 9639, sections 8.2 and 9.1.
    """
    head = read_at(raw, start + 4, 38)
    if len(head) < 38 or head[0] & 0x7F or head[1:4] != b"\x00\x00\x22":
        raise corrupt("no STREAMINFO at the head of the FLAC stream")
    min_block, max_block = struct.unpack(">HH", head[4:8])
    fields = int.from_bytes(head[14:22], "big")
    num_channels, bits, total = (fields >> 41 & 7) + 1, (fields >> 36 & 31) + 1, fields & (1 << 36) - 1
    if total == 0:
        return 0
    # A frame is hardly longer than its samples as they are; where the last one lies further away, behind a long tag,
    # the second look takes the whole file.
    window = max_block * num_channels * (bits + 7) // 8 + 8192
    found = 0
    for num_bytes in (window, size) if window < size else (size,):
        tail = read_at(raw, max(start, size - num_bytes), num_bytes)
        ends = _flac_frame_ends(tail, min_block if min_block == max_block else 0, num_channels)
        if total in ends:
            return total
        found = max(ends, default=0)
    if found > total:
        raise corrupt(f"{total} samples declared, the last frame ends at {found}")
    raise truncated(f"{total} samples declared, the last frame ends at {found}")


def _flac_frame_ends(content: bytes, fixed_block: int, num_channels: int) -> set[int]:
    """Return where each frame ends whose header is whole, in samples from the beginning of the stream."""
    ends = set()
    position = content.find(b"\xff")
    while position >= 0:
        end = _flac_frame_end(content[position : position + 16], fixed_block, num_channels)
        if end:
            ends.add(end)
        position = content.find(b"\xff", position + 1)
    return ends


def _flac_frame_end(header: bytes, fixed_block: int, num_channels: int) -> int:
    if len(header) < 6 or header[1] & 0xFE != 0xF8 or header[3] & 1:
        return 0
    block_code, channel_code, lead = header[2] >> 4, header[3] >> 4, header[4]
    if block_code == 0 or (2 if channel_code > 7 else channel_code + 1) != num_channels:
        return 0
    num_more = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1  # continuation bytes, as in UTF-8
    if not (lead < 0x80 or 1 <= num_more <= 6):
        return 0
    number = lead & (0x7F if lead < 0x80 else (1 << 6 - num_more) - 1)
    for byte in header[5 : 5 + num_more]:
        number = number << 6 | byte & 0x3F
    position = 5 + num_more
    if block_code in (6, 7):
        block = int.from_bytes(header[position : position + block_code - 5], "big") + 1
        position += block_code - 5
    else:
        block = 192 if block_code == 1 else 576 << block_code - 2 if block_code < 6 else 256 << block_code - 8
    position += {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if len(header) <= position or _crc8(header[:position]) != header[position]:
        return 0
    return (number if header[1] & 1 else number * fixed_block) + block


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc
