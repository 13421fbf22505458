"""What kind of file it is, told by its first bytes, and whether it holds as much as its header declares.

libsndfile and FFmpeg read a cut WAV, W64, AIFF, AU, Ogg or MP3 to the cut and say nothing: the clip is then shorter
than its transcript. Here the declared sizes are held against the bytes that are there. That takes a look at the
headers, not at the samples; only streams of pages or frames up to `WHOLE_PASS_BYTES` are gone through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO

from data.bitstreams import corrupt, read_at, verify_flac, verify_ogg
from data.chunks import (
    W64_RIFF,
    verify_aiff,
    verify_au,
    verify_caf,
    verify_matroska,
    verify_mp4,
    verify_nist,
    verify_w64,
    verify_wav,
)
from data.mpeg import read_mpeg_frame, verify_mpeg

WHOLE_PASS_BYTES = 1 << 20  # two minutes at 64 kbit/s; the pass takes a few milliseconds
SEARCH_BYTES = 1 << 16  # so far behind the beginning the first MPEG frame may lie

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_EBML = b"\x1a\x45\xdf\xa3"
_MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"pnot")


@dataclass(frozen=True)
class Container:
    """What a file is, and who shall decode it."""

    demuxer: str
    """FFmpeg's name of the format. It is told, never left to find out: playlists would reach other files."""
    is_for_libsndfile: bool
    """libsndfile knows the format, and reads all of it."""


_SUFFIXES = {
    "wav": (".wav", ".wave", ".bwf", ".rf64"),
    "flac": (".flac", ".fla"),
    "ogg": (".ogg", ".oga", ".opus", ".spx"),
    "mp3": (".mp3", ".mp2", ".mpga", ".mpeg"),
    "aac": (".aac", ".adts"),
    "mov": (".m4a", ".mp4", ".m4b", ".mov", ".3gp"),
    "matroska": (".webm", ".mka", ".mkv"),
    "aiff": (".aif", ".aiff", ".aifc"),
    "au": (".au", ".snd"),
    "caf": (".caf",),
    "w64": (".w64",),
    "nistsphere": (".sph", ".nist", ".wav", ".wv1", ".wv2"),
    "amr": (".amr",),
    "asf": (".wma", ".asf"),
    "wv": (".wv",),
    "mpegts": (".ts",),
}
_KNOWN_SUFFIXES = {suffix for suffixes in _SUFFIXES.values() for suffix in suffixes}


def is_misnamed(name: str, demuxer: str) -> bool:
    """Tell whether the ending of a file's name promises another format than its content has."""
    suffix = PurePath(name).suffix.lower()
    return suffix in _KNOWN_SUFFIXES and suffix not in _SUFFIXES.get(demuxer, ())


def inspect_container(raw: BinaryIO, size: int, *, thorough: bool = False) -> Container:
    """Tell the kind of a file by its content, and hold its header against what is there.

    Args:
        raw: the open file.
        size: of the file, in bytes.
        thorough: go through all pages and frames of an Ogg, MP3 or AAC stream, however large it is; otherwise that is
            done up to `WHOLE_PASS_BYTES`.

    Raises:
        ContainerError: A03 if the file is cut, A04 if it contradicts itself or is of no known format.
    """
    thorough = thorough or size <= WHOLE_PASS_BYTES
    start = _skip_id3(raw)
    head = read_at(raw, start, 512)
    if head.startswith(b"OggS"):
        return Container("ogg", verify_ogg(raw, size, thorough=thorough))
    if head.startswith(b"fLaC"):
        return Container("flac", verify_flac(raw, size, start) > 0)
    if start == 0:
        for is_kind, verify, demuxer, is_for_libsndfile in _KINDS:
            if is_kind(head):
                is_zero_stream = verify(raw, size)
                return Container(demuxer, is_for_libsndfile and not is_zero_stream)
    start = _find_mpeg_frame(read_at(raw, start, SEARCH_BYTES), start)
    demuxer = "aac" if read_at(raw, start, 2)[1] & 6 == 0 else "mp3"
    is_stated = verify_mpeg(raw, size, start, thorough=thorough)
    return Container(demuxer, is_stated and demuxer == "mp3")


def _skip_id3(raw: BinaryIO) -> int:
    position = 0
    head = read_at(raw, 0, 10)
    while len(head) == 10 and head.startswith(b"ID3") and max(head[6:]) < 0x80:
        has_footer = head[5] & 0x10
        position += 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + (10 if has_footer else 0)
        head = read_at(raw, position, 10)
    return position


def _find_mpeg_frame(content: bytes, offset: int) -> int:
    """Find the first frame that another one follows; a clip of a single frame is too short anyway."""
    position = content.find(b"\xff")
    while position >= 0:
        frame = read_mpeg_frame(content[position : position + 7])
        if frame is not None:
            following = read_mpeg_frame(content[position + frame.num_bytes : position + frame.num_bytes + 7])
            if following is not None and following.rate == frame.rate:
                if content[:position].strip(b"\x00") or (position and not offset):
                    raise corrupt(f"{position} bytes before the first frame")
                return offset + position  # a tag may be padded with zeros
        position = content.find(b"\xff", position + 1)
    raise corrupt("of no known audio format; convert it to FLAC or WAV")


def _verify_nothing(raw: BinaryIO, size: int) -> None:
    """Leave it to the decoder: the format declares no size, or hardly any corpus uses it."""


_KINDS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], bool | None], str, bool], ...] = (
    (lambda head: head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE", verify_wav, "wav", True),
    (lambda head: head.startswith(W64_RIFF), verify_w64, "w64", True),
    (lambda head: head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"), verify_aiff, "aiff", True),
    (lambda head: head[:4] in (b".snd", b"dns."), verify_au, "au", True),
    (lambda head: head.startswith(b"caff"), verify_caf, "caf", True),
    (lambda head: head.startswith(b"NIST_1A"), verify_nist, "nistsphere", True),
    (lambda head: head[4:8] in _MP4_FIRST_BOXES, verify_mp4, "mov", False),
    (lambda head: head.startswith(_EBML), verify_matroska, "matroska", False),
    (lambda head: head.startswith(b"#!AMR"), _verify_nothing, "amr", False),
    (lambda head: head.startswith(_ASF), _verify_nothing, "asf", False),
    (lambda head: head.startswith(b"wvpk"), _verify_nothing, "wv", False),
    (lambda head: head[::188] == b"GGG", _verify_nothing, "mpegts", False),
)
