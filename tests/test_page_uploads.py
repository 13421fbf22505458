"""What a client calls its file reaches neither gradio nor the disk; the bytes of the file arrive as they were sent."""

from __future__ import annotations

import asyncio
import os

import httpx
import pytest

gradio = pytest.importorskip("gradio", reason="the extra `serve` is not installed")
from fastapi import FastAPI  # noqa: E402

from serve.page.upload_names import UploadNames, own_name  # noqa: E402

NAMES = [
    "..%2fname.wav",
    "../../etc/passwd.wav",
    "..\\..\\name.wav",
    "n" * 300 + ".wav",
    'a"; filename="b.wav',
    "a\r\nX-Header: 1\r\n\r\nb.wav",
    "a\nb.wav",
    "a\x00b.wav",
    "面接.WAV",
    "..",
    "a.html",
    "a.svg",
    ".wav",
    " ",
]
CONTENT = b"--x\r\n\r\n--boundary" + bytes(range(256)) * 300 + b"\r\n--bound\r\n-"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def app(folder):
    """Gradio as the page mounts it, behind our names."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        with gradio.Blocks(analytics_enabled=False) as blocks:
            gradio.Audio(type="filepath")
        mounted = gradio.mount_gradio_app(FastAPI(), blocks, path="/en", ssr_mode=False, max_file_size=1_000_000)
    finally:
        del os.environ["GRADIO_TEMP_DIR"]
    return UploadNames(mounted)


def _post(app, body, kind="multipart/form-data; boundary=boundary", piece=None):
    async def pieces():
        for start in range(0, len(body), piece or len(body) or 1):
            yield body[start : start + (piece or len(body))]

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.post("/en/gradio_api/upload", content=pieces(), headers={"content-type": kind})

    return asyncio.run(ask())


def _part(name: str, content: bytes = CONTENT, field: str = "files") -> bytes:
    head = f'--boundary\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
    return head.encode() + b"Content-Type: audio/wav\r\n\r\n" + content + b"\r\n"


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_no_name_of_a_client_reaches_the_disk(app, folder, name):
    answer = _post(app, _part(name) + b"--boundary--\r\n")
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.stem for path in written} <= {"recording"}
    if "\r\n\r\n" in name:  # ends the header within the name: no file of ours to keep
        assert answer.status_code in (200, 400)
        return
    assert answer.status_code == 200, answer.text
    (path,) = answer.json()
    assert path in map(str, written) and written[0].parent.parent == folder
    with open(path, "rb") as file:
        assert file.read() == CONTENT


def test_only_extensions_of_audio_are_kept():
    assert [own_name(name) for name in ("a.WAV", "b.mp3", "c.html", "d", ".wav", "e.wav/", "f.wav.svg")] == [
        *("recording.wav", "recording.mp3", "recording", "recording", "recording", "recording.wav", "recording")
    ]


@pytest.mark.parametrize("piece", [1, 7, 61, 5000])
def test_files_arrive_whole_however_they_are_cut_and_other_fields_do_not(app, folder, piece):
    content = CONTENT[: 300 if piece == 1 else None]
    body = _part("a.flac", content) + _part("evil.sh", b"rm", field="other") + _part("b.ogg", b"second")
    answer = _post(app, body + b"--boundary--\r\n", piece=piece)
    assert answer.status_code == 200, answer.text
    for path, name, expected in zip(answer.json(), ("flac", "ogg"), (content, b"second"), strict=True):
        assert path.endswith(f"/recording.{name}")
        with open(path, "rb") as file:
            assert file.read() == expected
    assert not [path for path in folder.rglob("*") if path.is_file() and path.stem != "recording"]


def test_what_is_no_form_is_refused_or_empty_and_too_large_is_too_large(app):
    for body in (b"no form", b"--boundary\r\nX" * 20, _part("a.wav")[:60], b"--boundary\r\n" + b"A: b\r\n" * 2000):
        answer = _post(app, body)
        assert answer.status_code == 400 or answer.json() == [], body[:20]
    assert _post(app, b"x", kind="multipart/form-data").status_code == 400
    assert _post(app, b"x", kind="text/plain").status_code == 400
    assert _post(app, _part("a.wav", bytes(1_100_000)) + b"--boundary--\r\n").status_code == 413
