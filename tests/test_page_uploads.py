"""The page hears what was uploaded to it and no other file; what a client calls its file is never used.

All through the page itself, with an engine that only notes what it is given.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import uuid
from urllib.parse import urlsplit

import httpx
import pytest

pytest.importorskip("gradio", reason="the extra `serve` is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
from fastapi import FastAPI  # noqa: E402

from serve.errors import ServiceError  # noqa: E402
from serve.live import Places  # noqa: E402
from serve.page.own_files import is_within  # noqa: E402
from serve.page.page import mount_page  # noqa: E402
from serve.page.upload_names import own_name  # noqa: E402
from serve.settings import ServeSettings  # noqa: E402

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


class Ears:
    """An engine that notes which files it is given."""

    def __init__(self):
        self.heard = []

    def models(self):
        return ["demo"]

    def has_timestamps(self, model):
        return False

    async def transcribe(self, path, options, *, on_progress=None):
        self.heard.append(path)
        raise ServiceError("heard", status=400, code="heard")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("uploads") / "page"


@pytest.fixture(scope="module")
def ears():
    return Ears()


@pytest.fixture(scope="module")
def app(folder, ears):
    with pytest.MonkeyPatch.context() as environment:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):  # the page sets them
            environment.setenv(name, "")
        settings = ServeSettings(max_upload_mb=1.1)
        yield mount_page(FastAPI(), ears, settings, Places(1), folder=folder)


@pytest.fixture(scope="module")
def url(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/en"
    server.should_exit = True
    thread.join(10)


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


def test_a_client_that_goes_away_leaves_nothing(url, folder):
    before = set(folder.rglob("*"))
    server = urlsplit(url)
    body = _part("a.wav", bytes(300_000))
    head = f"POST /en/gradio_api/upload HTTP/1.1\r\nHost: {server.netloc}\r\nContent-Length: {2 * len(body)}\r\n"
    with socket.create_connection((server.hostname, server.port)) as client:
        client.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=boundary\r\n\r\n" + body)
        time.sleep(0.3)
    time.sleep(0.3)
    assert set(folder.rglob("*")) == before


def _press(url, file):
    """Press the button as a program would that calls any file its upload, and return what the page says."""
    with httpx.Client(base_url=url, timeout=10) as client:
        config = client.get("config").json()
        audio = {part["id"] for part in config["components"] if part["type"] == "audio"}
        function = next(each for each in config["dependencies"] if set(each["inputs"][:1]) & audio)
        session = uuid.uuid4().hex
        data = [{"meta": {"_type": "gradio.FileData"}, **file}, "auto", "transcribe", "demo", "", False]
        body = {"data": data, "fn_index": function["id"], "session_hash": session}
        assert client.post("gradio_api/queue/join", json=body).status_code == 200
        with client.stream("GET", f"gradio_api/queue/data?session_hash={session}") as events:
            return "".join(line for line in events.iter_lines() if "process_completed" in line)


def test_an_upload_is_heard_and_played(app, url, ears):
    (path,) = _post(app, _part("a.wav", b"RIFF" + bytes(100)) + b"--boundary--\r\n").json()
    assert '"success":true' in _press(url, {"path": path})
    assert list(map(str, ears.heard)) == [path]
    assert httpx.get(f"{url}/gradio_api/file={path}").content == b"RIFF" + bytes(100)


@pytest.mark.parametrize("more", [{}, {"is_stream": True}, {"url": "http://127.0.0.1:9/a.wav"}], ids=str)
def test_no_other_file_is_heard_and_no_address_is_fetched(app, url, ears, folder, tmp_path, monkeypatch, more):
    fetched = []
    for name in ("async_ssrf_protected_download", "ssrf_protected_download"):
        monkeypatch.setattr(f"gradio.processing_utils.{name}", lambda *given: fetched.append(given))
    secret = tmp_path / "secret.wav"
    secret.write_bytes(b"a secret")
    (path,) = _post(app, _part("a.wav", b"b") + b"--boundary--\r\n").json()
    (folder / "link.wav").unlink(missing_ok=True)
    (folder / "link.wav").symlink_to(secret)
    others = [str(secret), f"{folder}/../{secret.name}", f"{path}/../../../../{secret.relative_to('/')}"]
    others += [
        f"{folder}/link.wav",
        "README.md",
        "http://192.0.2.1/a.wav",
        "https://example.org/a.wav",
        "file:///etc/passwd",
    ]
    before = len(ears.heard)
    for other in others:
        assert '"success":false' in _press(url, {"path": other, **more}), other
        assert httpx.get(f"{url}/gradio_api/file={other}").status_code == 404
    assert httpx.get(f"{url}/gradio_api/proxy=https://example.org/a").status_code == 404
    assert len(ears.heard) == before and not fetched
    assert not [
        found
        for found in folder.rglob("*")
        if found.is_file() and b"secret" in found.read_bytes() and not found.is_symlink()
    ]


def test_paths_within_a_folder(tmp_path):
    assert is_within(f"{tmp_path}/a/b", tmp_path)
    for path in (
        "/",
        str(tmp_path.parent),
        f"{tmp_path}/../b",
        f"{tmp_path}b/c",
        "a",
        "",
        f"{tmp_path}/\0",
        "http://a/b",
    ):
        assert not is_within(path, tmp_path)
