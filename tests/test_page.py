"""The page in a real browser: a new user transcribes, hears, downloads, speaks and compares; nothing is fetched."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio", reason="the extra `serve` is not installed")

from data.audio import load_waveform
from infer.subtitles import Segment, Word
from infer.transcript import Transcript
from serve.errors import ServiceError
from serve.page import results
from serve.page.recorder import recorder_address
from serve.page.texts import CHINESE, ENGLISH, choose_texts
from tests.conftest import PROJECT

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
HOME = PROJECT / "data" / "demo" / "corpus" / "home"
BASE = PROJECT / "data" / "demo" / "base"
HOSTILE = '</p><script>alert(1)</script><img src=x onerror="alert(2)">'
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or not (BASE / "model.safetensors").is_file(),
    reason="there is no chromium on this machine, or no base model; apt-get install chromium",
)


def heard(text: str = "one two", language: str = "en", *, with_words=False, **changes) -> Transcript:
    words = tuple(Word(i / 2, i / 2 + 0.4, word, 0.9) for i, word in enumerate(text.split()))
    segments = (Segment(0.0, 1.25, text, words=words if with_words else ()),)
    return Transcript(text, language, language, 0.93, 61.25, segments, is_cut=False, **changes)


def test_all_that_was_said_is_escaped_in_every_view():
    views = [
        results.show_transcript(
            heard(HOSTILE), ENGLISH, language_name="English", elapsed_s=1, audio_path="/a b'\".wav"
        ),
        results.show_transcript(heard(HOSTILE, with_words=True), ENGLISH, language_name=HOSTILE, elapsed_s=1),
        results.show_live([HOSTILE], HOSTILE, HOSTILE, ENGLISH),
        results.show_comparison(ENGLISH, [("a", "b", heard(HOSTILE)), (HOSTILE, HOSTILE, heard("one"))]),
        results.show_error(ENGLISH, HOSTILE, HOSTILE + "."),
        results.show_progress(ENGLISH, 1, 3, HOSTILE),
    ]
    for view in views:
        assert "<script" not in view and "<img" not in view
        assert "alert(1)" in unescape(view)
    assert "gradio_api/file=/a%20b%27%22.wav" in views[0]


def test_a_transcript_says_how_long_and_how_sure_and_marks_what_differs():
    view = results.show_transcript(heard(), CHINESE, language_name="英语", elapsed_s=2.0)
    assert "英语" in view and "93%" in view and "1:01.2" in view and "31 倍实时速度" in view
    assert results.speed(1.0, 0.8, ENGLISH) == "1.2 × real time"
    assert 'data-start="0.000" data-end="1.250"' in view and view.count('download="transcript.') == 4
    view = results.show_comparison(ENGLISH, [("a", "", heard("one two three")), ("b", "", heard("one too three"))])
    assert "They differ in 1 words." in view and "<mark>" in view
    assert "Both say the same." in results.show_comparison(ENGLISH, [("a", "", heard()), ("b", "", heard())])


def test_each_word_of_a_segment_is_heard_by_itself_and_its_text_stays_whole():
    view = results.show_transcript(heard("one two.", with_words=True), ENGLISH, language_name="", elapsed_s=1)
    first, second = re.findall(r'<span class="mv-word" role="button" tabindex="(.*?)" (.*?)>(.*?)</span>', view)
    assert first == ("0", 'data-start="0.000" data-end="0.400"', "one")
    assert second == ("-1", 'data-start="0.500" data-end="0.900"', "two.")
    assert "one</span> <span" in view
    (row,) = re.findall(r"<li><div.*?</li>", view)
    assert row.count("<button") == 1 and 'class="mv-segment" data-start="0.000" data-end="1.250"' in row
    transcript = heard("再 见", "zh", with_words=True)
    joined = replace(transcript, segments=(replace(transcript.segments[0], text="再见！"),))
    view = results.show_transcript(joined, CHINESE, language_name="", elapsed_s=1)
    assert "再见！" in re.sub(r"<[^>]*>", "", view) and view.count('"mv-word"') == 2
    other = replace(transcript, segments=(replace(transcript.segments[0], text="你好"),))
    view = results.show_transcript(other, CHINESE, language_name="", elapsed_s=1, audio_path="/a")
    assert "你好" in view and "mv-word" not in view and CHINESE.segments_hint in view


def test_the_page_follows_the_browser_and_both_languages_say_everything():
    assert choose_texts("zh-CN,zh;q=0.9,en;q=0.8") is CHINESE
    assert choose_texts("de-DE,en;q=0.5,zh;q=0.4") is ENGLISH
    assert choose_texts("fr") is ENGLISH and choose_texts(";;q=x") is ENGLISH
    for name, text in vars(ENGLISH).items():
        other = getattr(CHINESE, name)
        assert bool(text) == bool(other) or name == "languages", name
        if isinstance(text, str):
            fields = {part for part in ("{done}", "{total}", "{count}", "{unit}", "{mb}", "{minutes}") if part in text}
            assert all(part in other for part in fields), name
    assert set(ENGLISH.errors) <= set(CHINESE.errors)
    assert ENGLISH.error(ServiceError("in its own words", status=400, code="rare")) == "in its own words"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The service itself, as a user starts it."""
    folder = tmp_path_factory.mktemp("serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "scripts/serve.py", f"artefact=[{BASE}]", f"serve.port={port}", f"serve.dir={folder}"]
    command += ["serve.workers=1", "profiles=[greedy,beam5]", "serve.max_duration_s=40"]
    log = (folder / "output.txt").open("w+")
    process = subprocess.Popen(
        command,
        cwd=PROJECT,
        stdout=log,
        stderr=log,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MEZZAVOCE_API_KEY": ""},
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(1800):  # seconds on a quiet machine
        assert process.poll() is None, (folder / "output.txt").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=1):
                break
        except OSError:
            time.sleep(0.1)
    yield url
    process.terminate()
    assert process.wait(20) is not None
    assert not [path for path in (folder / "uploads").rglob("*") if path.is_file()], "recordings were left"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]")
    speech = tmp_path_factory.mktemp("microphone") / "speech.wav"
    rows = [json.loads(line) for line in (HOME / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    silence = np.zeros(16_000, dtype=np.float32)
    clips = [load_waveform(HOME / row["audio"]) for row in rows if row["language"] == "ru"][:2]
    soundfile.write(speech, np.concatenate([silence, *(part for clip in clips for part in (clip, silence))]), 16_000)
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    arguments += [f"--use-file-for-fake-audio-capture={speech}"]
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


@pytest.fixture
def open_page(browser, address):
    """Open the page, and afterwards see that it asked nobody else and ran into no error."""
    contexts, asked, said = [], [], []

    def open_at(path: str = "/", *, width: int = 1280, locale: str = "en-US"):
        context = browser.new_context(viewport={"width": width, "height": 900}, locale=locale)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("websocket", lambda opened: asked.append(opened.url))
        tab.goto(address + path)
        tab.wait_for_selector("#mv-go:enabled")  # as a user waits
        return tab

    yield open_at
    for context in contexts:
        context.close()
    own = (address, address.replace("http", "ws"), f"blob:{address}", "data:")
    assert asked and [url for url in asked if not url.startswith(own)] == []
    assert said == []


WATCH = """new MutationObserver(() => document.querySelectorAll(".mv-word.is-playing").forEach(
    (word) => window.lit.add(word.textContent)
)).observe(document.querySelector(".mv-segments"), {subtree: true, attributes: true})"""
"""Keeps the words that were lit in `window.lit`."""


def row_of(language: str, number: int = 0) -> dict:
    rows = [json.loads(line) for line in (HOME / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["language"] == language][number]


@needs_browser
def test_a_new_user_transcribes_hears_and_downloads(open_page):
    tab = open_page()
    assert tab.url.endswith("/en/") and tab.locator("footer").is_hidden()
    row = row_of("ru")
    tab.set_input_files("#mv-audio-file input[type=file]", HOME / row["audio"])
    tab.wait_for_selector("#mv-audio-file audio", state="attached")
    tab.get_by_text(ENGLISH.more).click()
    tab.get_by_label(ENGLISH.word_times).check()
    tab.click("#mv-go")
    tab.wait_for_selector("#mv-result .mv-text:not(.mv-tentative)", timeout=60_000)
    text = tab.inner_text("#mv-result .mv-result .mv-text")
    assert text.split()[:2] == row["text"].split()[:2]
    assert "Russian" in tab.inner_text("#mv-result .mv-facts") and "detected" in tab.inner_text("#mv-result .mv-facts")
    for name in ("txt", "srt", "vtt", "json"):
        with tab.expect_download() as download:
            tab.click(f"#mv-result a[download='transcript.{name}']")
        assert text in Path(download.value.path()).read_text(encoding="utf-8")
    (segment,) = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["segments"]
    assert [word["text"] for word in segment["words"]] == tab.locator(".mv-word").all_inner_texts() == text.split()
    tab.wait_for_function("document.querySelector('.mv-player').readyState > 0")
    tab.evaluate(WATCH)
    for act, spans in (
        (lambda: tab.click(".mv-word >> nth=1"), segment["words"][1:2]),
        (lambda: tab.keyboard.press("ArrowRight") or tab.keyboard.press("Enter"), segment["words"][2:3]),
        (lambda: tab.click(".mv-when"), segment["words"]),
    ):
        tab.evaluate("window.lit = new Set()")
        act()
        tab.wait_for_function("window.lit.size && document.querySelector('.mv-player').paused", timeout=10_000)
        assert {span["text"] for span in spans} <= set(tab.evaluate("[...window.lit]"))
        assert tab.evaluate("document.querySelector('.mv-player').currentTime") >= spans[-1]["end_s"] - 0.01
        assert tab.locator(".is-playing").count() == 0


@needs_browser
def test_what_went_wrong_is_said_in_the_language_of_the_page_on_a_phone(open_page, tmp_path):
    tab = open_page(width=390, locale="zh-CN")
    assert tab.url.endswith("/zh/")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.click("#mv-go")
    tab.wait_for_selector("#mv-result .mv-error")
    assert CHINESE.no_audio in tab.inner_text("#mv-result")
    broken = tmp_path / "..%2fname.wav"
    broken.write_bytes(b"RIFF this is no sound at all" * 50)
    with tab.expect_response(lambda response: response.request.method == "POST") as uploaded:
        tab.set_input_files("#mv-audio-file input[type=file]", broken)
    assert [Path(path).name for path in uploaded.value.json()] == ["recording.wav"]
    tab.wait_for_timeout(700)
    tab.click("#mv-go")
    tab.wait_for_function(
        f"document.querySelector('#mv-result').innerText.includes('{CHINESE.errors['audio_invalid']}')"
    )
    assert tab.get_by_text("English").is_visible()
    tab.get_by_text("English").click()
    tab.wait_for_url("**/en/")


@needs_browser
def test_speech_is_written_down_while_one_speaks(open_page):
    """Also by somebody who presses the button before the recorder has come."""
    tab = open_page()
    address = recorder_address()
    assert address is not None, "this version of gradio keeps its recorder elsewhere"
    tab.route(f"**/{address}", lambda route: (time.sleep(1), route.continue_()))
    tab.reload()
    tab.wait_for_selector("#mv-go:enabled")
    tab.get_by_role("tab", name=ENGLISH.tab_live).click()
    tab.click("#mv-live-audio button.record-button")
    said = "[...document.querySelectorAll('#mv-live-result .mv-text')].map(text => text.firstChild.textContent)"
    tab.wait_for_function(f"{said}.some(text => text.length > 5)", timeout=60_000)  # final, and not in grey
    assert any(not text.isascii() for text in tab.evaluate(said))


@needs_browser
def test_two_ways_to_decode_are_compared(open_page):
    tab = open_page()
    tab.get_by_role("tab", name=ENGLISH.tab_compare).click()
    tab.set_input_files("#mv-audio-compare input[type=file]", HOME / row_of("zh")["audio"])
    tab.wait_for_selector("#mv-audio-compare audio", state="attached")
    tab.click("#mv-compare-go")
    tab.wait_for_selector("#mv-compare-result .mv-verdict", timeout=60_000)
    said = tab.inner_text("#mv-compare-result")
    assert "Fast (greedy)" in said and "Thorough (5 beams)" in said
    assert said.count("float32") >= 2
