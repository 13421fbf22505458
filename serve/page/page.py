"""The web page: record or upload, speak live, compare; in English and Chinese, with nothing fetched from elsewhere."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import AsyncIterator
from html import escape
from pathlib import Path
from typing import Any

import gradio
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from starlette.routing import Mount

from serve.engine import Engine, Options
from serve.live import Places
from serve.page import actions
from serve.page.first_script import FirstScript
from serve.page.live import LiveTab
from serve.page.own_files import OwnFiles, keep_to
from serve.page.recorder import recorder_address
from serve.page.results import show_empty
from serve.page.texts import TEXTS, Texts, choose_texts
from serve.page.upload_names import UploadNames
from serve.settings import ServeSettings

FOLDER = Path(__file__).parent
PRIVATE: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
"""Of every event: programs take the API, and the engine limits how much is done at once."""
CACHE_S = (300, 3600)  # how often recordings of the page are looked at, and how old they get
FORM_BYTES = 100_000  # of a form around a file
STREAM_EVERY_S = 0.4


def mount_page(app: FastAPI, engine: Engine, settings: ServeSettings, places: Places, *, folder: Path) -> FastAPI:
    """Mount the page in each language; `/` leads to that of the browser.

    Args:
        app: the application, with all its other routes.
        engine: transcribes.
        settings: limits.
        places: of live conversations.
        folder: private, for recordings while their page may play them; removed with the service.

    Returns:
        The application.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder.resolve())  # gradio has no other way to say where
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

    @app.get("/", include_in_schema=False)
    async def home(request: Request) -> RedirectResponse:
        """Lead to the page in the language of the browser."""
        texts = choose_texts(request.headers.get("accept-language", ""))
        return RedirectResponse(f"{texts.code}/", headers={"vary": "accept-language", "cache-control": "no-store"})

    live = LiveTab(engine, places, settings.stream)
    for texts in TEXTS.values():
        page = build_page(engine, settings, texts, live)
        keep_to(page, folder)
        gradio.mount_gradio_app(
            app,
            page,
            path=f"/{texts.code}",
            theme=build_theme(),
            css_paths=[FOLDER / "page.css"],
            head=f"<script>{_script()}</script>",
            footer_links=[],
            show_error=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            max_file_size=settings.max_upload_bytes - FORM_BYTES,
        )
        (mount,) = [route for route in app.routes if isinstance(route, Mount) and route.path == f"/{texts.code}"]
        mount.app = OwnFiles(UploadNames(FirstScript(mount.app, _first_script(texts))), folder)
    return app


def build_theme() -> gradio.themes.Base:
    """Return gradio's plain theme with fonts that every machine has; others would be fetched."""
    sans = [gradio.themes.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif")]
    mono = [gradio.themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace")]
    return gradio.themes.Base(primary_hue="teal", neutral_hue="slate", radius_size="md", font=sans, font_mono=mono)


def build_page(engine: Engine, settings: ServeSettings, texts: Texts, live: LiveTab) -> gradio.Blocks:
    """Return the page in one language."""
    with gradio.Blocks(title="Mezzavoce", analytics_enabled=False, delete_cache=CACHE_S) as page:
        gradio.HTML(_header(texts))
        with gradio.Tab(texts.tab_transcribe, id="transcribe"):
            transcribe_choices, transcribe_go = _build_transcribe(engine, settings, texts)
        with gradio.Tab(texts.tab_live, id="live"):
            live_choices = _build_live(engine, texts, live)
        with gradio.Tab(texts.tab_compare, id="compare"):
            compare_choices, compare_go = _build_compare(engine, texts)
        gradio.HTML(f'<p class="mv-foot">{escape(texts.footer)} <a href="../docs">/docs</a></p>')
        choices = [*transcribe_choices, *live_choices, *compare_choices]
        # Models are loaded after the page is built; and a button pressed before the browser listens would do nothing.
        page.load(
            lambda: [*(_offer(engine, texts, kind) for kind, _ in choices), *[gradio.Button(interactive=True)] * 2],
            outputs=[*(component for _, component in choices), transcribe_go, compare_go],
            **PRIVATE,
        )
        page.unload(_unload(live))
    return page.queue(default_concurrency_limit=None)


Choices = list[tuple[str, gradio.components.Component]]
"""What is offered, `language`, `profile`, `other_profile` or `words`, and where."""


def _build_transcribe(engine: Engine, settings: ServeSettings, texts: Texts) -> tuple[Choices, gradio.Button]:
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=5, min_width=320, elem_classes="mv-card"):
            audio = _audio(texts, "mv-audio-file")
            language = _dropdown(texts.language, [(texts.automatic, "auto")], "mv-language")
            with gradio.Accordion(texts.more, open=False, elem_classes="mv-more"):
                tasks = [(texts.transcribe, "transcribe"), (texts.translate, "translate")]
                task = gradio.Radio(tasks, value="transcribe", label=texts.task)
                model = _model(engine, texts)
                profile = _dropdown(texts.profile, [("", "")])
                words = gradio.Checkbox(label=texts.word_times, info=texts.word_times_info, elem_id="mv-words")
            with gradio.Row():
                go = _go(texts.go, "mv-go", scale=3, min_width=120)
                stop = gradio.Button(texts.stop, elem_id="mv-stop", scale=1, min_width=80)
            limits = texts.limits.format(mb=f"{settings.max_upload_mb:g}", minutes=f"{settings.max_duration_s / 60:g}")
            gradio.HTML(f'<p class="mv-limits">{escape(limits)}</p>')
        with gradio.Column(scale=7, min_width=320, elem_classes="mv-card"):
            result = gradio.HTML(show_empty(texts.empty), elem_id="mv-result")

    async def run(
        path: str | None, language: str, task: str, model: str, profile: str, words: bool
    ) -> AsyncIterator[str]:
        options = Options(model=model, language=language, task=task, profile=profile, words=words)
        async for shown in actions.transcribe(engine, texts, path, options):
            yield shown

    running = go.click(run, [audio, language, task, model, profile, words], result, **PRIVATE)
    stop.click(lambda: show_empty(texts.stopped), outputs=result, cancels=[running], **PRIVATE)
    choices: Choices = [("language", language), ("profile", profile), ("words", words)]
    _follow(model, choices, engine, texts)
    return choices, go


def _build_live(engine: Engine, texts: Texts, live: LiveTab) -> Choices:
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=5, min_width=320, elem_classes="mv-card"):
            sound = gradio.Audio(
                label=texts.microphone,
                sources=["microphone"],
                streaming=True,
                type="numpy",
                elem_id="mv-live-audio",
                elem_classes="mv-audio",
                buttons=[],
            )
            language = _dropdown(texts.language, [(texts.automatic, "auto")])
            model = _model(engine, texts)
        with gradio.Column(scale=7, min_width=320, elem_classes="mv-card"):
            shown = gradio.HTML(show_empty(texts.empty_live), elem_id="mv-live-result")

    async def hear(chunk: Any, language: str, model: str, request: gradio.Request) -> Any:
        options = Options(model=model, language=language)
        new = await live.hear(str(request.session_hash), chunk, options, texts)
        return gradio.skip() if new is None else new

    async def finish(language: str, model: str, request: gradio.Request) -> Any:
        new = await live.finish(str(request.session_hash), Options(model=model, language=language), texts)
        return gradio.skip() if new is None else new

    sound.stream(hear, [sound, language, model], shown, stream_every=STREAM_EVERY_S, **PRIVATE)
    sound.stop_recording(finish, [language, model], shown, **PRIVATE)
    _follow(model, [("language", language)], engine, texts)
    return [("language", language)]


def _build_compare(engine: Engine, texts: Texts) -> tuple[Choices, gradio.Button]:
    names = engine.models()
    with gradio.Column(elem_classes="mv-card"):
        audio = _audio(texts, "mv-audio-compare")
        language = _dropdown(texts.language, [(texts.automatic, "auto")])
        sides = []
        with gradio.Row():
            for title, name in ((texts.compare_left, names[0]), (texts.compare_right, names[-1])):
                with gradio.Column(min_width=260):
                    model = gradio.Dropdown(names, value=name, label=f"{title} · {texts.model}")
                    sides += [model, _dropdown(f"{title} · {texts.profile}", [("", "")])]
        go = _go(texts.compare_go, "mv-compare-go")
        if len(names) == 1:
            gradio.HTML(f'<p class="mv-note">{escape(texts.compare_hint)}</p>')
        result = gradio.HTML(show_empty(texts.empty_compare), elem_id="mv-compare-result")

    async def run(path: str | None, language: str, *chosen: str) -> AsyncIterator[str]:
        left, right = (
            Options(model=model, language=language, profile=profile)
            for model, profile in zip(chosen[::2], chosen[1::2], strict=True)
        )
        async for shown in actions.compare(engine, texts, path, (left, right)):
            yield shown

    go.click(run, [audio, language, *sides], result, **PRIVATE)
    offered = "other_profile" if len(names) == 1 else "profile"
    choices: Choices = [("language", language), ("profile", sides[1]), (offered, sides[3])]
    for model, kind in ((sides[0], choices[1]), (sides[2], choices[2])):
        _follow(model, [kind], engine, texts)
    return choices, go


def _follow(model: gradio.Dropdown, choices: Choices, engine: Engine, texts: Texts) -> None:
    """Offer what another model knows when it is chosen."""
    if len(engine.models()) > 1:
        model.input(
            lambda name: [_offer(engine, texts, kind, name) for kind, _ in choices],
            model,
            [component for _, component in choices],
            **PRIVATE,
        )


def _offer(engine: Engine, texts: Texts, kind: str, model: str = "") -> Any:
    """Return a dropdown or a checkbox with what a model offers."""
    if kind == "words":
        has_words = engine.has_words(model)
        info = texts.word_times_info if has_words else texts.no_word_times
        return gradio.Checkbox(value=False, interactive=has_words, info=info)
    if kind == "language":
        named = [(texts.language_name(code, name), code) for code, name in engine.languages(model)]
        return gradio.Dropdown([(texts.automatic, "auto"), *named], value="auto")
    names = engine.profiles(model)
    chosen = names[min(1, len(names) - 1)] if kind == "other_profile" else names[0]
    return gradio.Dropdown([(texts.profiles.get(name, name), name) for name in names], value=chosen)


def _audio(texts: Texts, elem_id: str) -> gradio.Audio:
    return gradio.Audio(
        label=texts.audio,
        sources=["upload", "microphone"],
        type="filepath",
        editable=False,
        buttons=[],
        elem_id=elem_id,
        elem_classes="mv-audio",
    )


def _go(label: str, elem_id: str, **layout: Any) -> gradio.Button:
    """Return a button that starts; nobody can press it before the page is ready."""
    return gradio.Button(label, variant="primary", elem_id=elem_id, interactive=False, **layout)


def _dropdown(label: str, choices: list[tuple[str, str]], elem_id: str | None = None) -> gradio.Dropdown:
    return gradio.Dropdown(choices, value=choices[0][1], label=label, elem_id=elem_id, interactive=True)


def _model(engine: Engine, texts: Texts) -> gradio.Dropdown:
    names = engine.models()
    return gradio.Dropdown(names, value=names[0], label=texts.model, visible=len(names) > 1, interactive=True)


def _unload(live: LiveTab) -> Any:
    def leave(request: gradio.Request) -> None:
        live.leave(str(request.session_hash))

    return leave


def _header(texts: Texts) -> str:
    return (
        f'<header class="mv-head"><div><h1>Mezzavoce</h1><p>{escape(texts.tagline)}</p></div>'
        f'<a href="../{texts.other_code}/" lang="{texts.other_code}">{escape(texts.other_name)}</a></header>'
    )


@functools.cache
def _script() -> str:
    recorder, page = ((FOLDER / name).read_text(encoding="utf-8") for name in ("recorder.js", "page.js"))
    return f"const RECORDER = {json.dumps(recorder_address())};\n{recorder}\n{page}"


def _first_script(texts: Texts) -> str:
    """Return what makes gradio speak the language of the page, not that of the browser."""
    return (
        f'Object.defineProperty(navigator, "language", {{get: () => "{texts.locale}"}});'
        f'Object.defineProperty(navigator, "languages", {{get: () => ["{texts.locale}"]}});'
        f'document.documentElement.lang = "{texts.code}";'
    )
