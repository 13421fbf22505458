"""Names of our own for what browsers send: gradio would keep a file under the name that the client gave it."""

from __future__ import annotations

import tempfile
from pathlib import PurePosixPath
from typing import IO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve.page.first_script import App, Message, Receive, Scope, Send

FIELD = b"files"  # as gradio calls it; what stands in other fields is left out
NAME = "recording"
EXTENSIONS = (
    *(".aac", ".aif", ".aiff", ".amr", ".caf", ".flac", ".m4a", ".mka"),
    *(".mp3", ".mp4", ".oga", ".ogg", ".opus", ".wav", ".webm", ".wma"),
)
"""That are kept, because a browser is told by them what it plays; the audio itself is told by its content."""


HELD_BYTES = 1 << 20  # of a form in memory; what is more lies in a file without a name
CHUNK_BYTES = 1 << 16


class UploadNames:
    """Rename every file that is posted to an ASGI application, and pass on only forms that came to their end.

    Gradio writes files while they come, and would leave those of a client that goes away.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        kind, options = parse_options_header(_header(scope, b"content-type"))
        if scope["type"] != "http" or kind != b"multipart/form-data" or not options.get(b"boundary"):
            await self._app(scope, receive, send)
            return
        with tempfile.SpooledTemporaryFile(HELD_BYTES) as form:
            if not await _rewrite(receive, form, options[b"boundary"]):
                return  # nobody is left to be answered
            form.seek(0)
            is_passed = False

            async def renamed() -> Message:
                nonlocal is_passed
                if is_passed:
                    return await receive()
                chunk = form.read(CHUNK_BYTES)
                is_passed = len(chunk) < CHUNK_BYTES
                return {"type": "http.request", "body": chunk, "more_body": not is_passed}

            headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
            await self._app({**scope, "headers": headers}, renamed, send)


async def _rewrite(receive: Receive, target: IO[bytes], boundary: bytes) -> bool:
    """Write a form anew; return whether it came to its end."""
    form = _Form(boundary)
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return False
        is_last = not message.get("more_body", False)
        target.write(form.rewrite(message.get("body", b""), is_last=is_last))
        if is_last:
            return True


class _Form:
    """A form as it is written anew: the same files, without anything else that the client said of them."""

    def __init__(self, boundary: bytes) -> None:
        self._boundary = boundary
        self._out = bytearray()
        self._is_kept = False
        self._is_broken = False
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._take,
                "on_part_end": self._end,
                "on_end": lambda: self._out.extend(b"--%b--\r\n" % boundary),
            },
        )

    def rewrite(self, body: bytes, *, is_last: bool) -> bytes:
        """Return the next piece of the form; of one that is no form, nothing that gradio could read as one."""
        if not self._is_broken:
            try:
                self._parser.write(body)
                if is_last:
                    self._parser.finalize()
            except MultipartParseError:
                self._is_broken = True
                self._out = bytearray(b"no form")
        found, self._out = bytes(self._out), bytearray()
        return found

    def _begin(self) -> None:
        self._is_kept, self._disposition = False, b""

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._is_kept = options.get(b"name") == FIELD and b"filename" in options
        if self._is_kept:
            name = own_name(options[b"filename"].decode("utf-8", "replace"))
            self._out += b"--%b\r\n" % self._boundary
            self._out += b'Content-Disposition: form-data; name="%b"; filename="%b"\r\n\r\n' % (FIELD, name.encode())

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._is_kept:
            self._out += data[start:end]

    def _end(self) -> None:
        if self._is_kept:
            self._out += b"\r\n"


def own_name(given: str) -> str:
    """Return the name that a file gets: always the same one, with the extension if that is a known one of audio."""
    extension = PurePosixPath(given).suffix.lower()
    return NAME + (extension if extension in EXTENSIONS else "")


def _header(scope: Scope, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in scope.get("headers", ()) if name.lower() == wanted), "")
