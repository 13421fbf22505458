"""No valid file is refused, whoever wrote it; no cut file and no header that contradicts its content is accepted."""

from __future__ import annotations

import io
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from conftest import tone

from benchmarks.damage import ENCODERS
from data import containers
from data.audio import SAMPLING_RATE, AudioError, load_waveform
from data.bitstreams import ogg_checksum
from data.probe import probe_duration_s, verify_container
from data.reasons import Reason

RATE = 16_000


def _encode(format: str, subtype: str, *, num_samples: int = 2 * RATE, num_channels: int = 1) -> bytes:
    samples = np.tile(tone(num_samples / RATE)[:, None], (1, num_channels))
    target = io.BytesIO()
    soundfile.write(target, samples, RATE, format=format, subtype=subtype)
    return target.getvalue()


class _Pipe(io.RawIOBase):
    """A target that cannot seek, so that the header never learns the length."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, block) -> int:
        self.content += bytes(block)
        return len(block)


def _encode_av(
    format: str,
    codec: str,
    *,
    is_pipe: bool = False,
    samples: np.ndarray | None = None,
    quality: int = 0,
    **options: str,
) -> bytes:
    rate = 48_000 if codec == "libopus" else RATE
    samples = tone(2.0) if samples is None else samples
    target = _Pipe() if is_pipe else io.BytesIO()
    with av.open(target, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        if quality:  # a variable bitrate
            stream.codec_context.flags |= 2
            stream.codec_context.global_quality = quality * 118
        size = None if codec.startswith("pcm") else 576 if codec == "libmp3lame" else None
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate, frame_size=size)
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        frames = [*resampler.resample(frame), *resampler.resample(None), None]
        for packet in [packet for frame in frames for packet in stream.encode(frame)]:
            container.mux(packet)
    return target.content if isinstance(target, _Pipe) else target.getvalue()


def _seconds(content: bytes | Path) -> float:
    found_s = len(load_waveform(content, max_duration_s=None)) / SAMPLING_RATE
    assert probe_duration_s(content) == pytest.approx(found_s, abs=1e-3)
    verify_container(content, thorough=True)
    return found_s


def _code(content: bytes) -> str:
    with pytest.raises(AudioError) as e:
        load_waveform(content, name="clip")
    assert str(e.value).count("clip") >= 1
    with pytest.raises(AudioError):
        probe_duration_s(content)
    return e.value.reason.code


def _pages(content: bytes) -> list[bytes]:
    starts = [i for i in range(len(content)) if content.startswith(b"OggS\x00", i)]
    return [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]


def _sealed(page: bytes, **fields: bytes) -> bytes:
    """Change fields of an Ogg page and compute its checksum anew."""
    changed = bytearray(page)
    for name, value in fields.items():
        place = {"flags": 5, "granule": 6, "serial": 14, "number": 18}[name]
        changed[place : place + len(value)] = value
    changed[22:26] = ogg_checksum(bytes(changed))
    return bytes(changed)


SUBTYPES = [
    *[("WAV", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM")],
    *[("WAV", s) for s in ("MS_ADPCM", "GSM610", "G721_32")],
    *[("WAVEX", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ULAW")],
    *[("RF64", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT", "ALAW")],
    *[("W64", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "DOUBLE", "ULAW", "MS_ADPCM")],
    *[("AIFF", s) for s in ("PCM_S8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM")],
    *[("AU", s) for s in ("PCM_S8", "PCM_16", "PCM_24", "FLOAT", "ULAW", "G721_32")],
    *[("CAF", s) for s in ("PCM_S8", "PCM_16", "PCM_24", "FLOAT", "ALAW", "ALAC_16")],
    *[("NIST", s) for s in ("PCM_S8", "PCM_16", "PCM_24", "ULAW")],
    *[("FLAC", s) for s in ("PCM_S8", "PCM_16", "PCM_24")],
    *[("OGG", s) for s in ("VORBIS", "OPUS")],
    ("MP3", "MPEG_LAYER_III"),
]


@pytest.mark.parametrize(("format", "subtype"), SUBTYPES)
def test_what_libsndfile_writes_is_read(format: str, subtype: str) -> None:
    """Odd and even numbers of bytes, one frame of a codec and many."""
    is_mono_only = subtype in ("GSM610", "G721_32", "IMA_ADPCM")
    for num_channels in (1,) if is_mono_only else (1, 2):
        for num_samples in (1601, 16_000, 31_999):
            content = _encode(format, subtype, num_samples=num_samples, num_channels=num_channels)
            slack_s = 0.04 if subtype in ("GSM610", "IMA_ADPCM", "MS_ADPCM", "G721_32") else 0  # filled last blocks
            slack_s = 1 / RATE if format == "AIFF" and slack_s == 0 else slack_s  # pads an odd byte as a sample
            assert _seconds(content) == pytest.approx(num_samples / RATE, abs=slack_s + 1e-9), (
                num_channels,
                num_samples,
            )


AV_FORMATS = [
    *[("wav", c) for c in ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_mulaw", "adpcm_ima_wav", "adpcm_ms")],
    *[("w64", "pcm_s16le"), ("aiff", "pcm_s16be"), ("au", "pcm_s16be"), ("au", "pcm_mulaw")],
    *[("caf", c) for c in ("pcm_s16be", "pcm_s16le", "alac")],
    *[("flac", "flac"), ("ogg", "libopus"), ("mp3", "libmp3lame"), ("adts", "aac"), ("mpegts", "aac")],
    *[("mp4", c) for c in ("aac", "alac", "libopus")],
    *[("ipod", "aac"), ("mov", "pcm_s16le"), ("webm", "libopus"), ("matroska", "libopus"), ("matroska", "pcm_s16le")],
]


@pytest.mark.parametrize("is_pipe", [False, True])
@pytest.mark.parametrize(("format", "codec"), AV_FORMATS)
def test_what_ffmpeg_writes_is_read(format: str, codec: str, is_pipe: bool) -> None:
    """Into a pipe, too: then the header holds no length, or a placeholder for one."""
    if is_pipe and format == "w64":
        pytest.skip("no decoder reads what FFmpeg writes for it, its own neither")
    if is_pipe and format in ("caf", "ipod", "mov", "mp4") and codec == "alac" and format == "caf":
        pytest.skip("FFmpeg writes no packet table there")
    fragments = {"movflags": "frag_keyframe+empty_moov"} if is_pipe and format in ("mp4", "ipod", "mov") else {}
    found_s = _seconds(_encode_av(format, codec, is_pipe=is_pipe, **fragments))
    assert found_s == pytest.approx(2.0, abs=0.13)  # encoders pad, and not every container says by how much


@pytest.mark.skipif(shutil.which("opusenc") is None, reason="opusenc is not installed")
@pytest.mark.parametrize(
    "options",
    [[], ["--bitrate", "12"], ["--framesize", "60"], ["--max-delay", "100"], ["--comment", "TITLE=" + "x" * 70_000]],
)
def test_what_opusenc_writes_is_read(options: list[str]) -> None:
    """The long comment fills a page and goes on in the next."""
    wav = _encode("WAV", "PCM_16")
    command = ["opusenc", "--quiet", *options, "-", "-"]
    content = subprocess.run(command, input=wav, capture_output=True, check=True).stdout
    assert _seconds(content) == pytest.approx(2.0, abs=1e-3)


def _with_sizes(wav: bytes, riff_size: int, data_size: int) -> bytes:
    at = wav.index(b"data")
    return wav[:4] + struct.pack("<I", riff_size) + wav[8 : at + 4] + struct.pack("<I", data_size) + wav[at + 8 :]


ID3 = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)
ID3V1 = b"TAG" + bytes(125)
LIST = b"LIST" + struct.pack("<I", 11) + b"INFOabcdefg\x00"


def _additions() -> dict[str, Callable[[], bytes]]:
    wav, flac, mp3 = _encode("WAV", "PCM_16"), _encode("FLAC", "PCM_16"), _encode("MP3", "MPEG_LAYER_III")
    opus = _encode("OGG", "OPUS")
    odd = _encode("WAV", "PCM_U8", num_samples=2 * RATE - 1)
    return {
        "wav, size 0": lambda: _with_sizes(wav, 0, 0),
        "wav, largest size": lambda: _with_sizes(wav, 0xFFFFFFFF, 0xFFFFFFFF),
        "wav, SoX's size": lambda: _with_sizes(wav, 0x7FFFF024, 0x7FFFF000),
        "wav, only the whole is unknown": lambda: _with_sizes(wav, 0, 2 * 2 * RATE),
        "wav, list behind": lambda: wav + LIST,
        "wav, list behind odd data": lambda: odd + LIST,
        "wav, odd data without padding": lambda: (odd[:-1] if len(odd) % 2 == 0 else odd) + LIST,
        "wav, list before": lambda: wav[:12] + LIST + wav[12:],
        "wav, tags behind": lambda: wav + ID3V1,
        "wav, ID3v2 behind": lambda: wav + ID3,
        "wav, zeros behind": lambda: wav + bytes(333),
        "flac, tag before": lambda: ID3 + flac,
        "flac, two tags before, one behind": lambda: ID3 + ID3 + flac + ID3V1,
        "flac, long padding behind": lambda: flac + bytes(300_000),
        "mp3, tags": lambda: ID3 + ID3 + mp3 + b"APETAGEX" + bytes(200) + ID3V1,
        "mp3, padded tag": lambda: ID3 + bytes(500) + mp3,
        "opus, tag behind": lambda: opus + ID3V1,
        "aiff, chunk behind": lambda: _encode("AIFF", "PCM_16") + b"ANNO\x00\x00\x00\x04text",
        "caf, chunk behind": lambda: _encode("CAF", "PCM_16") + b"info" + struct.pack(">q", 4) + bytes(4),
        "au, unknown size": lambda: (lambda au: au[:8] + b"\xff" * 4 + au[12:])(_encode("AU", "PCM_16")),
        "mp4, free box behind": lambda: _encode_av("mp4", "aac") + struct.pack(">I", 8) + b"free",
    }


@pytest.mark.parametrize("name", list(_additions()))
def test_what_stands_around_the_samples_is_no_fault(name: str) -> None:
    assert _seconds(_additions()[name]()) == pytest.approx(2.0, abs=0.13)


def test_every_link_of_a_chained_ogg_is_read() -> None:
    """libsndfile alone stops behind the first."""
    for subtype in ("OPUS", "VORBIS"):
        content = _encode("OGG", subtype)
        chain = content + b"".join(_sealed(page, serial=b"next") for page in _pages(content))
        assert len(soundfile.read(io.BytesIO(chain))[0]) == 2 * RATE
        assert _seconds(chain) == pytest.approx(4.0, abs=0.05)
        assert _seconds(content + content) == pytest.approx(4.0, abs=0.05)


def test_an_mp3_without_a_count_of_frames_is_decoded_to_find_its_length() -> None:
    """libsndfile guesses from the first frame: once too long, once too short, and then reads no further."""
    noise = np.random.default_rng(0).normal(0, 0.2, 5 * RATE).astype(np.float32)
    silence = np.zeros(5 * RATE, np.float32)
    for parts in ([silence, noise], [noise, silence]):
        content = _encode_av("mp3", "libmp3lame", samples=np.concatenate(parts), quality=2, write_xing="0")
        assert abs(soundfile.info(io.BytesIO(content)).duration - 10) > 1
        assert _seconds(content) == pytest.approx(10.0, abs=0.15)


def test_joined_mp3s_are_read_to_the_end() -> None:
    mp3 = _encode("MP3", "MPEG_LAYER_III")
    assert _seconds(mp3 + mp3) == pytest.approx(4.0, abs=0.2)


def test_content_decides_not_the_ending(tmp_path: Path) -> None:
    for format, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")):
        for ending in ("raw", "gsm", "vox", "au", "m3u8", "wav", "txt", "mp4"):
            path = tmp_path / f"clip.{ending}"
            path.write_bytes(_encode(format, subtype))
            assert _seconds(path) == pytest.approx(2.0, abs=1e-3), (format, ending)
    noise = tmp_path / "clip.gsm"  # libsndfile would take it for headerless samples
    noise.write_bytes(np.random.default_rng(0).bytes(33_000))
    with pytest.raises(AudioError, match="A04"):
        load_waveform(noise)


@pytest.mark.parametrize("format", list(ENCODERS))
def test_a_cut_is_found_wherever_it_is(format: str) -> None:
    """At 40 places from the header to the last byte; the decoders alone read most of these files, to the cut."""
    content = ENCODERS[format](np.tile(tone(1.5)[:, None], (1, 2)), RATE)
    load_waveform(content)
    places = sorted({1, 4, 12, 40, 60, len(content) - 1, *(len(content) * i // 34 for i in range(1, 34))})
    for place in places:
        with pytest.raises(AudioError) as e:
            load_waveform(content[:place])
        assert e.value.reason in (Reason.AUDIO_TRUNCATED, Reason.AUDIO_CORRUPT), place


@pytest.mark.parametrize("format", ["ogg vorbis", "ogg opus", "flac", "wav", "au", "mp3"])
def test_a_cut_is_found_in_large_files_without_a_whole_pass(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "WHOLE_PASS_BYTES", 0)
    content = ENCODERS[format](tone(3.0)[:, None], RATE)
    assert len(load_waveform(content)) == 3 * RATE
    for share in (0.3, 0.6, 0.9):
        assert _code(content[: int(share * len(content))]) in ("A03", "A04")


def test_a_page_that_is_missing_is_found_in_a_large_ogg_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = _pages(ENCODERS["ogg opus"](tone(5.0)[:, None], RATE))
    assert len(pages) > 5
    content = b"".join(pages[:3] + pages[4:])
    monkeypatch.setattr(containers, "WHOLE_PASS_BYTES", 0)
    verify_container(content)
    with pytest.raises(AudioError, match=r"page 4 at byte \d+ where page 3 is due"):
        verify_container(content, thorough=True)


def _changed(content: bytes, place: int, value: bytes) -> bytes:
    return content[:place] + value + content[place + len(value) :]


def _lies() -> dict[str, tuple[Callable[[], bytes], str]]:
    wav, aiff, au, caf = (_encode(format, "PCM_16") for format in ("WAV", "AIFF", "AU", "CAF"))
    rf64, w64, flac = (_encode(format, "PCM_16") for format in ("RF64", "W64", "FLAC"))
    mp3, opus = _encode("MP3", "MPEG_LAYER_III"), _encode("OGG", "OPUS")
    xing = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    pages = _pages(opus)
    return {
        "wav claims 4 GB": (lambda: _with_sizes(wav, 0xFFFFFF24, 0xFFFFFF00), "A03"),
        "wav claims a sample more": (lambda: _with_sizes(wav, len(wav) - 6, 4 * RATE + 2), "A03"),
        "wav hides half": (lambda: _with_sizes(wav, len(wav) - 8, 2 * RATE + 2), "A04"),
        "wav, rate halved": (lambda: _changed(wav, 24, struct.pack("<I", 8000)), "A04"),
        "wav, no channels": (lambda: _changed(wav, 22, bytes(2)), "A04"),
        "wav, two channels": (lambda: _changed(wav, 22, b"\x02\x00"), "A04"),
        "rf64 claims 2**62 bytes": (lambda: _changed(rf64, 28, struct.pack("<Q", 2**62)), "A03"),
        "rf64 hides half": (lambda: _changed(rf64, 28, struct.pack("<Q", 2 * RATE)), "A04"),
        "w64 claims 2**62 bytes": (lambda: _changed(w64, w64.index(b"data") + 16, struct.pack("<Q", 2**62)), "A03"),
        "w64 hides half": (lambda: _changed(w64, w64.index(b"data") + 16, struct.pack("<Q", 24 + 2 * RATE)), "A04"),
        "aiff, frames doubled": (lambda: _changed(aiff, aiff.index(b"COMM") + 10, struct.pack(">I", 4 * RATE)), "A04"),
        "aiff, samples of 8 bits": (lambda: _changed(aiff, aiff.index(b"COMM") + 14, b"\x00\x08"), "A04"),
        "aiff, sound doubled": (lambda: _changed(aiff, aiff.index(b"SSND") + 4, struct.pack(">I", 8 * RATE)), "A03"),
        "au claims more": (lambda: _changed(au, 8, struct.pack(">I", 8 * RATE)), "A03"),
        "au hides half": (lambda: _changed(au, 8, struct.pack(">I", 2 * RATE)), "A04"),
        "caf claims 2**62 bytes": (lambda: _changed(caf, caf.index(b"data") + 4, struct.pack(">q", 2**62)), "A03"),
        "caf, samples of 8 bits": (lambda: _changed(caf, 51, b"\x08"), "A04"),
        "flac claims a sample more": (lambda: _changed(flac, 22, struct.pack(">I", 2 * RATE + 1)), "A03"),
        "flac hides half": (lambda: _changed(flac, 22, struct.pack(">I", RATE)), "A04"),
        "mp3 claims more frames": (lambda: _changed(mp3, xing + 8, struct.pack(">I", 500)), "A03"),
        "mp3 claims more bytes": (lambda: _changed(mp3, xing + 12, struct.pack(">I", 2 * len(mp3))), "A03"),
        "mp3, hole": (lambda: mp3[: len(mp3) // 2] + mp3[len(mp3) // 2 + 100 :], "A04"),
        "mp3, half a frame before": (lambda: mp3[-50:] + mp3, "A04"),
        "ogg, page missing": (lambda: b"".join(pages[:2] + pages[3:]), "A04"),
        "ogg, pages swapped": (lambda: b"".join([*pages[:2], pages[3], pages[2], *pages[4:]]), "A04"),
        "ogg, no end mark": (lambda: b"".join([*pages[:-1], _sealed(pages[-1], flags=b"\x00")]), "A03"),
        "ogg, a page of the year 6000": (
            lambda: b"".join([*pages[:2], _sealed(pages[2], granule=struct.pack("<q", 2**62)), *pages[3:]]),
            "A04",
        ),
        "ogg, one bit": (lambda: _changed(opus, len(opus) // 2, bytes([opus[len(opus) // 2] ^ 1])), "A04"),
        "ogg, zeros between pages": (lambda: b"".join([*pages[:3], bytes(50), *pages[3:]]), "A04"),
    }


@pytest.mark.parametrize("name", list(_lies()))
def test_a_header_that_contradicts_its_content_is_refused(name: str) -> None:
    make, code = _lies()[name]
    assert _code(make()) == code


def test_a_webm_or_m4a_that_declares_more_than_it_holds_is_refused() -> None:
    webm = _encode_av("webm", "libopus")
    at = webm.index(b"\x44\x89\x88") + 3  # Duration, a float of 8 bytes, in milliseconds
    longer = _changed(webm, at, struct.pack(">d", 60_000.0))
    with pytest.raises(AudioError, match=r"60\.00 s declared, 2\.0. s found"):
        load_waveform(longer, max_duration_s=None)
    m4a = _encode_av("mp4", "aac")
    assert _code(_changed(m4a, m4a.index(b"mdat") - 4, struct.pack(">I", 2**31))) == "A03"
    assert _code(m4a[: m4a.index(b"moov") - 4]) == "A03"


PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation '
    'bandwidth="1" id="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "pls": "[playlist]\nFile1={}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\na=control:{}\n",
    "tagged": "ID3\x04\x00\x00\x00\x00\x00\x0a" + "\x00" * 10 + "ffconcat version 1.0\nfile '{}'\n",
}


@pytest.mark.parametrize("kind", list(PLAYLISTS))
def test_a_playlist_reaches_no_other_file_and_no_network(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg on its own plays the file that a concat script names."""
    monkeypatch.chdir(tmp_path)
    Path("other.wav").write_bytes(_encode("WAV", "PCM_16"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/other.wav"
        for target in ("other.wav", str(tmp_path / "other.wav"), (tmp_path / "other.wav").as_uri(), url):
            content = PLAYLISTS[kind].format(target).encode()
            if kind == "concat" and target == "other.wav":
                with av.open(io.BytesIO(content)) as container:
                    assert container.format.name == "concat"
            path = tmp_path / f"clip.{kind}"
            path.write_bytes(content)
            for source in (content, path):
                with pytest.raises(AudioError, match="A04"):
                    load_waveform(source)
        with pytest.raises(TimeoutError):
            server.accept()


def test_all_of_the_real_speech_is_whole(speech: Path) -> None:
    files = sorted(speech.rglob("*.opus"))
    assert len(files) > 6000
    for path in files:
        verify_container(path, thorough=True)


def test_codes_are_those_of_the_catalogue() -> None:
    with pytest.raises(AudioError) as e:
        verify_container(b"no audio at all, whatever the ending says")
    assert e.value.reason is Reason.AUDIO_CORRUPT
    assert "convert it" in str(e.value)
