"""MP3 and AAC frames: what they declare, held against what is there.

A frame states its own length and nothing else; where the stream begins with a Xing or Info header, that counts frames
and bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from data.bitstreams import corrupt, read_at, truncated

_TAIL_TAGS = (b"TAG", b"APETAGEX", b"ID3", b"3DI", b"LYRICS")  # what may follow the last frame of an MP3

_MPEG_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz, by version
_MPEG_KBITS = {  # by (is version 1, layer as the two bits say it: 3 is I, 2 is II, 1 is III)
    (True, 3): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 3): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True)
class MpegFrame:
    """What the header of one MP3 or AAC frame says."""

    num_bytes: int
    rate: int
    """Hz; 0 for AAC, where only the length is read."""
    xing_at: int
    """Where a Xing header would begin, in bytes from the frame's first."""


def read_mpeg_frame(header: bytes) -> MpegFrame | None:
    """Read the first bytes of an MPEG audio frame (layers I to III) or of an ADTS frame (AAC); None if they are none.

    Source: ISO/IEC 11172-3, section 2.4.1.3; ISO/IEC 13818-7, section 6.2.
    """
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, header[1] >> 1 & 3
    if layer == 0:
        num_bytes = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
        is_adts = header[1] & 0xF0 == 0xF0 and header[2] >> 2 & 15 < 13 and num_bytes > 7
        return MpegFrame(num_bytes, 0, 0) if is_adts else None
    bitrate_code, rate_code, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or bitrate_code in (0, 15) or rate_code == 3:  # 0 is the free format, which states no length
        return None
    rate = _MPEG_RATES[version][rate_code]
    bits_per_s = _MPEG_KBITS[version == 3, layer][bitrate_code] * 1000
    if layer == 3:
        num_bytes = (12 * bits_per_s // rate + padding) * 4
    else:
        num_bytes = (72 if layer == 1 and version != 3 else 144) * bits_per_s // rate + padding
    is_mono = header[3] >> 6 == 3
    side_bytes = (17 if is_mono else 32) if version == 3 else (9 if is_mono else 17)
    return MpegFrame(num_bytes, rate, 4 + side_bytes)


def verify_mpeg(raw: BinaryIO, size: int, start: int, *, thorough: bool) -> bool:
    """Hold an MP3 or ADTS file to its frames, and to the counts in its Xing or Info header if it has one.

    Args:
        raw: the open file.
        size: of the file, in bytes.
        start: position of the first frame.
        thorough: go from frame to frame to the end, instead of looking at the first one.

    Returns:
        Whether a header states the length, and truly. Without one libsndfile guesses it from the first frame, and
        reads no further than it guessed.

    Raises:
        ContainerError: if the file is cut, or holds something between its frames.

    Source: the Xing header as LAME writes it, `VbrTag.c`.
    """
    head = read_at(raw, start, 64)
    frame = read_mpeg_frame(head)
    if frame is None:
        return False
    num_frames = num_bytes = 0
    if head[frame.xing_at : frame.xing_at + 4] in (b"Xing", b"Info") and len(head) >= frame.xing_at + 16:
        flags, *counts = struct.unpack(">III", head[frame.xing_at + 4 : frame.xing_at + 16])
        num_frames = counts.pop(0) if flags & 1 else 0
        num_bytes = counts.pop(0) if flags & 2 else 0
    # One frame of slack: encoders do not agree whether the frame that holds the header is counted.
    if num_bytes > size - start + frame.num_bytes:
        raise truncated(f"{num_bytes} bytes of MP3 declared, {size - start} found")
    is_stated = num_frames > 0 and abs(size - start - num_bytes) <= 2 * frame.num_bytes + 512
    if not thorough:
        return is_stated
    found = _count_frames(read_at(raw, start, size - start))
    if num_frames > found + 1:
        raise truncated(f"{num_frames} frames of MP3 declared, {found} found")
    return 0 < num_frames <= found <= num_frames + 1


def _count_frames(content: bytes) -> int:
    position = num_frames = 0
    while position < len(content):
        frame = read_mpeg_frame(content[position : position + 7])
        if frame is None:
            rest = content[position:]
            if rest.startswith(_TAIL_TAGS) or not rest.strip(b"\x00"):
                break
            if len(rest) < 7 and rest[0] == 0xFF:
                raise truncated("the last frame is cut")
            raise corrupt(f"no frame at byte {position} of the stream, where one is due")
        if position + frame.num_bytes > len(content):
            raise truncated(f"the last frame declares {frame.num_bytes} bytes, {len(content) - position} are there")
        position += frame.num_bytes
        num_frames += 1
    return num_frames
