"""Find the recorder of the live tab, which gradio loads late and starts without looking whether it has come."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import gradio

ASSETS = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
_EXPORT = re.compile(rb"export\{[^{}]*\bas MediaRecorder\b[^{}]*\}")


@functools.cache
def recorder_address() -> str | None:
    """Return the address of the module that exports `MediaRecorder`, relative to a page.

    The page imports the very same file, so that it sees when gradio has made it ready. Its name holds a digest, so it
    is looked up by what it exports. None if this version of gradio has no such file.
    """
    for path in sorted(ASSETS.glob("module-*.js")):
        if _EXPORT.search(path.read_bytes()):
            return f"assets/{path.name}"
    return None
