"""report.html is one file that asks the network for nothing, shows texts and runs none, and works on a phone."""

from __future__ import annotations

import base64
import functools
import html.parser
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data.sources import Source, read_source
from infer.score.contest import Entry, find_forgetting, hold_duels
from infer.score.evaluation import Prediction, score_predictions
from infer.score.page.charts import lay_out_bars
from infer.score.page.clips import embed_clips, to_data_uri
from infer.score.page.differences import find_difference
from infer.score.page.page import PageSettings, write_page
from infer.score.page.summary import answer_all
from tests.conftest import tone

HOSTILE = '</p><script>alert(1)</script><img src="http://example.org/x.png" onerror="alert(2)"> {{ 7*7 }} \u202e'
SECTIONS = ["answers", "languages", "changes", "retention", "confusion", "conditions", "signs", "worst"]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def entry(name: str, rows, *, is_good: bool) -> Entry:
    predictions = []
    for i, row in enumerate(rows):
        heard = row.text if is_good and i % 2 else row.text[:-2] + "xyz"
        test_set = "new" if i % 3 else "old"
        detected = row.language if i else "de"
        predictions.append(
            Prediction(row.id, row.language, detected, row.text, heard, 1.0 + i, test_set=test_set, is_cut=i == 1)
        )
    parts = {part: [p for p in predictions if p.test_set == part] for part in ("new", "old")}
    artefact = {"path": f"runs/{name}/export", "sha256": "ab" * 32, "stored": "float16", "compute": "float32"}
    return Entry(
        name,
        {**artefact, "device": "cpu", "windows_s": [1.0, 30.0]},
        score_predictions(predictions, processing_s=2.0),
        {part: score_predictions(found, processing_s=1.0) for part, found in parts.items()},
        tuple(predictions),
    )


@pytest.fixture
def page(corpus: Path, tmp_path: Path) -> Path:
    rows = list(read_source(Source(str(corpus))))
    entries = [entry("base", rows, is_good=False), entry("<b>tuned</b>", rows, is_good=True)]
    hostile = entries[1].predictions[0]
    predictions = (Prediction(hostile.id, "en", "en", "one two three", HOSTILE, 1.0, test_set="old"),)
    predictions += entries[1].predictions[1:]
    score = score_predictions(predictions, processing_s=2.0)
    entries[1] = Entry("<b>tuned</b>", entries[1].artefact, score, entries[1].sets, predictions)
    forgetting = find_forgetting(entries, targets={"new"}, max_forgetting=0.005)
    return write_page(
        tmp_path,
        entries,
        hold_duels(entries),
        forgetting,
        rows={row.id: row for row in rows},
        settings=PageSettings(max_clips=3, max_mib=1.0),
    )


class Tags(html.parser.HTMLParser):
    """Elements, attributes and visible text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parse(page: Path) -> Tags:
    parser = Tags()
    parser.feed(page.read_text(encoding="utf-8"))
    assert parser.open == []
    return parser


def test_the_page_is_whole_and_runs_nothing_that_comes_from_outside(page: Path):
    parser = parse(page)
    assert {value for name, value in parser.attributes if name == "id"} >= set(SECTIONS)
    assert not {"script", "img", "iframe", "link", "object"} & set(parser.tags)
    assert not [name for name, _ in parser.attributes if name.startswith("on")]
    addresses = [value for name, value in parser.attributes if name in ("src", "href", "action", "srcset")]
    assert addresses and all(value.startswith("data:audio/mpeg;base64,") for value in addresses)
    text = "".join(parser.text)
    assert "<b>tuned</b>" in text and "alert" in text and "\u202e" not in text
    assert any(value and "default-src 'none'" in value for name, value in parser.attributes if name == "content")


def test_clips_are_capped_in_number_and_bytes_and_sound_like_themselves(page: Path, corpus: Path):
    assert parse(page).tags.count("audio") == 3
    rows = list(read_source(Source(str(corpus))))
    players = embed_clips([*rows[:3], None], max_clips=10, max_bytes=7000)
    assert [bool(p.source) for p in players] == [True, True, False, False] or players[0].source
    assert sum(len(p.source or "") for p in players) <= 7000
    assert any("no room" in p.remark for p in players)
    waveform = tone(1.5)
    kind, _, data = to_data_uri(waveform).partition(",")
    assert kind == "data:audio/mpeg;base64"
    heard, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
    assert rate == 16_000 and abs(len(heard) / rate - 1.5) < 0.1
    spectra = [np.abs(np.fft.rfft(x[4000:20000])) for x in (waveform, heard)]
    assert np.argmax(spectra[0]) == pytest.approx(np.argmax(spectra[1]), abs=8)
    assert len(data) < 16_000  # of 1.5 s


def test_differences_join_to_both_texts_and_mark_letters():
    found = find_difference("the cat sat on the mat", "the cut sat the mat old", unit="word")
    assert " ".join(p.text for p in found.said) == "the cat sat on the mat"
    assert " ".join(p.text for p in found.heard) == "the cut sat the mat old"
    assert [(p.kind, p.text) for p in found.said if p.kind != "equal"] == [("replace", "cat"), ("delete", "on")]
    assert [(p.kind, p.text) for p in found.heard if p.kind != "equal"] == [("replace", "cut"), ("insert", "old")]
    (cat,) = [p for p in found.said if p.text == "cat"]
    assert cat.parts == ((False, "c"), (True, "a"), (False, "t"))
    letters = find_difference("你好世界", "你号世", unit="character")
    assert [(p.kind, p.text) for p in letters.said] == [
        ("equal", "你"),
        ("replace", "好"),
        ("equal", "世"),
        ("delete", "界"),
    ]
    assert letters.joint == ""
    assert find_difference("", "uh", unit="word").said == ()


def test_bars_are_to_one_scale_and_their_intervals_hold_them(corpus: Path):
    rows = list(read_source(Source(str(corpus))))
    scored = entry("a", rows, is_good=True)
    bars = [bar for group in lay_out_bars([(0, "a", scored.score.languages)]) for bar in group.bars]
    assert len(bars) == 5
    for bar in bars:
        assert 0 <= bar.width <= 100 and bar.whisker_left + bar.whisker_width <= 100.001
    widest = max(bars, key=lambda bar: bar.rate)
    assert all(bar.width == pytest.approx(widest.width * bar.rate / widest.rate) for bar in bars)


def test_answers_come_from_the_figures(corpus: Path):
    rows = list(read_source(Source(str(corpus))))
    before, after = entry("base", rows, is_good=False), entry("tuned", rows, is_good=True)
    duels = hold_duels([before, after])
    precision = {
        "verdict": {"level": "unsafe", "sentence": "FP16 is not safe: +3 points."},
        "utterances": 10,
        "device": {"name": "a card"},
        "rows": [{"name": "fp32", "title": "FP32", "latency_p50_s": 0.2, "latency_p95_s": 0.3}],
    }
    better, worse, safe, fast = answer_all([before, after], duels, [], precision=precision)
    assert better.headline.startswith(("Yes", "Not shown")) and "→" in better.headline
    assert worse.headline == "Nobody that shows"
    assert (safe.level, safe.headline) == ("bad", "No")
    assert "27.5 × real time" in fast.headline and "200 ms" in fast.detail
    alone = answer_all([after], [], [], precision=None)
    assert "artefact=[BEFORE,AFTER]" in alone[0].detail and "compare_precision.py" in alone[2].detail


def test_precision_is_shown_only_where_it_was_measured_on_the_same_weights(corpus: Path, tmp_path: Path):
    rows = list(read_source(Source(str(corpus))))
    scored = entry("tuned", rows, is_good=True)
    row = {"name": "fp32", "title": "FP32", "absent": "no reason", "is_failure": False}
    measured = {**row, "weights_bytes": 2**20, "peak_bytes": 2**21, "floor_s": None, "rtfx": 7.0, "headline": 0.25}
    measured |= {"latency_p50_s": 0.2, "latency_p95_s": 0.3, "intervals": {"headline": [0.1, 0.3]}, "versus": None}
    del measured["absent"]
    record = {
        "artefact": {"sha256": scored.artefact["sha256"]},
        "device": {"kind": "cpu", "name": "this CPU"},
        "verdict": {"level": "safe", "sentence": "FP16 is safe."},
        "utterances": 10,
        "rows": [{**measured, "language_accuracy": 1.0}, {**row, "title": "TF32"}],
        "legend": ["what it means"],
    }
    write = functools.partial(write_page, tmp_path, [scored], [], [], rows={}, settings=PageSettings(max_clips=0))
    (tmp_path / "precision.json").write_text(json.dumps(record))
    with_it = write().read_text(encoding="utf-8")
    assert 'id="precision"' in with_it and "FP16 is safe." in with_it and "<td>25.00</td>" in with_it
    record["artefact"]["sha256"] = "of other weights"
    (tmp_path / "precision.json").write_text(json.dumps(record))
    without = write().read_text(encoding="utf-8")
    assert 'id="precision"' not in without and "Not measured" in without and "<audio" not in without


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine; apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_real_browser(page: Path, width: int):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; pip install -e .[dev]")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": 844})
        tab = context.new_page()
        asked, said = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.goto(page.as_uri())
        tab.wait_for_function("[...document.querySelectorAll('audio')].every(a => a.readyState > 0)", timeout=20_000)
        lengths = tab.evaluate("[...document.querySelectorAll('audio')].map(a => a.duration)")
        assert len(lengths) == 3 and all(0.2 < length < 3 for length in lengths)
        assert {url.split(":")[0] for url in asked} <= {"file", "data"}
        assert asked.count(page.as_uri()) == 1
        assert said == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        for section in SECTIONS:
            box = tab.locator(f"#{section}").bounding_box()
            assert box is not None and box["height"] > 40 and box["width"] <= width, section
        assert tab.locator("#worst mark").count() > 0
        browser.close()
