"""The page hears and plays what was uploaded to it: no other file of the machine, and nothing from an address.

A component of gradio takes a path from the browser. Where gradio is mounted into an application, it does not look whose
file that is, and what begins with `http` it fetches from anywhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio

from serve.page.first_script import App, Receive, Scope, Send

_FETCHING = re.compile(r"/(file|proxy)=(.*)", flags=re.S)


class OwnFiles:
    """Refuse what asks an ASGI application of gradio for a file outside a folder, or to fetch an address."""

    def __init__(self, app: App, folder: Path) -> None:
        self._app = app
        self._folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404, or pass on."""
        asked = _FETCHING.search(scope["path"]) if scope["type"] == "http" else None
        if asked is None or (asked[1] == "file" and is_within(asked[2], self._folder)):
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def keep_to(blocks: gradio.Blocks, folder: Path) -> None:
    """Make a page and its audio components refuse other files than those in a folder, before they copy or read them.

    Args:
        blocks: the page; all its components are there.
        folder: where gradio puts uploads.
    """
    blocks.has_launched = True  # so that gradio itself looks, too
    for block in blocks.blocks.values():
        if isinstance(block, gradio.Audio):
            _guard(block, folder)


def is_within(path: str, folder: Path) -> bool:
    """Whether a path, of a file or of nothing, is absolute and lies in a folder, wherever its links lead."""
    return path.startswith("/") and "\0" not in path and Path(path).resolve().is_relative_to(folder.resolve())


def _guard(audio: gradio.Audio, folder: Path) -> None:
    move, preprocess = audio.async_move_resource_to_block_cache, audio.preprocess

    def verify(path: object) -> None:
        if not is_within(str(path), folder):
            raise gradio.Error("this is no file that was uploaded here", print_exception=False)

    async def move_own(path: Any) -> Any:
        if path is not None:
            verify(path)
        return await move(path)

    def preprocess_own(payload: Any) -> Any:
        if payload is not None:
            verify(payload.path)
        return preprocess(payload)

    # Attributes of the component, not a class of ours: gradio writes a stub file beside each new class of component.
    audio.async_move_resource_to_block_cache = move_own
    audio.preprocess = preprocess_own
