"""Figures agree with plain counting, suggested edges are the best there are, the page shows texts and runs none."""

from __future__ import annotations

import html.parser
import itertools
import json
import re

import numpy as np
import pytest

from data.preflight.charts import draw_histogram, nice_ticks
from data.preflight.columns import Split
from data.preflight.figures import describe_windows, padded_s, suggest_edges
from data.preflight.overview import draw_overview
from data.preflight.page import Heading, format_hours, format_share, write_page
from data.preflight.report import ReportOptions, build_report, write_report
from data.preflight.scan import scan_corpus
from data.rows import JoinedRows
from data.sources import Source, read_source
from data.windows import Windows

HOSTILE = '</q><script>alert(1)</script><img src=x onerror="alert(2)"> {{ 7*7 }} &amp; \u202e'
HEADING = Heading("<b>title</b>", "2026-01-01", "train.py 'a<b'", "")


class Tags(html.parser.HTMLParser):
    """Elements and attributes of a page."""

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


def parse(page):
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    return parser


def report_of(path, tmp_path, **options):
    split = Split("train", JoinedRows([read_source(Source(str(path)))]), is_windowed=True)
    scan = scan_corpus([split], cache_path=tmp_path / "scan.jsonl")
    return build_report(scan, ReportOptions(edges_s=(0.5, 1, 2, 3, 30), **options))


def test_a_share_that_is_there_is_never_nothing():
    shares = (0.0, 1e-5, 4e-4, 6e-4, 0.5, 0.9999)
    assert [format_share(share) for share in shares] == [
        "0.0 %", "under 0.1 %", "under 0.1 %", "0.1 %", "50.0 %", "100 %"
    ]  # fmt: skip


def test_padding_agrees_with_the_rule_of_training():
    durations_s = np.round(np.random.default_rng(0).uniform(0.1, 30, 500), 3)
    edges_s = (1.6, 2.0, 5.0, 12.5, 30.0)
    expected = sum(Windows(edges_s).num_frames(float(d)) / 100 for d in [*durations_s, 2.0, 30.0, 1.6])
    assert padded_s(np.array([*durations_s, 2.0, 30.0, 1.6]), edges_s) == pytest.approx(expected)


def test_suggested_edges_are_the_best_of_all():
    durations_s = np.array([0.35, 0.36, 0.52, 0.9, 0.91, 0.92, 1.4, 2.0, 2.0, 2.1])
    grid = np.arange(1, 23) / 10
    best = min(padded_s(durations_s, [*edges, 30.0]) for edges in itertools.combinations(grid, 3))
    edges_s = suggest_edges(durations_s, num_edges=4)
    assert padded_s(durations_s, edges_s) == pytest.approx(best)
    assert len(edges_s) == 4 and edges_s[-1] == 30.0
    Windows(tuple(edges_s))
    assert suggest_edges(np.array([29.9, 30.0]), num_edges=3)[-1] == 30.0


def test_the_saving_of_windows_is_counted_from_the_clips():
    found = describe_windows(np.array([0.9, 1.0, 1.1, 30.0]), [1, 2, 30], full_share=0.1)
    assert (found["full_hours"] * 3600, found["bucketed_hours"] * 3600) == pytest.approx((120, 34))
    assert found["factor"] == pytest.approx(120 / 34)
    assert found["factor_with_full_share"] == pytest.approx(120 / (12 + 0.9 * 34))
    recording = describe_windows(np.array([75.0]), [10, 20, 30], full_share=0)
    assert (recording["full_hours"] * 3600, recording["bucketed_hours"] * 3600) == pytest.approx((90, 80))


def test_histograms_hold_every_clip_and_hours_add_up(corpus, tmp_path, tokenizer):
    report = report_of(corpus, tmp_path)
    durations = [round(0.3 + 0.2 * i, 2) for i in range(10)]
    found = report.record["quantities"]["duration_s"]
    assert sum(found["counts"]["train"]) == 10
    assert (found["min"], found["max"], found["mean"]) == pytest.approx((0.3, 2.1, np.mean(durations)), abs=1e-3)
    assert report.record["totals"]["hours"] * 3600 == pytest.approx(sum(durations), abs=0.01)
    assert sum(part["train"]["hours"] for part in report.record["languages"].values()) * 3600 == pytest.approx(
        sum(durations), abs=0.01
    )
    assert report.record["quantities"]["label_tokens"] is None  # no tokenizer was given


def test_the_page_shows_a_hostile_text_and_runs_none_of_it(write_clip, write_manifest, tmp_path):
    write_clip("<i>.wav", 0.2)
    path = write_manifest(
        [
            {"audio": "<i>.wav", "text": HOSTILE, "language": "en", "speaker": "<u>"},
            {"audio": "<i>.wav", "id": "2", "text": "مرحبا بالعالم كيف حالك اليوم", "language": "en"},
            {"audio": "<i>.wav", "id": "<script>", "text": "x", "language": "<b>"},
        ],
        "<s>.jsonl",
    )
    report = report_of(path, tmp_path)
    page = write_page(tmp_path, report, HEADING).read_text(encoding="utf-8")
    parsed = parse(page)
    assert not {"script", "img", "u", "s", "link", "iframe"} & set(parsed.tags)
    assert "{{ 7*7 }}" in page and "49" not in re.findall(r"<q[^>]*>(.*?)</q>", page)[0]
    assert "alert(1)" in "".join(parsed.text) and "[U+202E]" in page and "\u202e" not in page
    assert ("dir", "auto") in parsed.attributes and ("lang", "en") in parsed.attributes
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert "<b>title</b>" not in page and "&lt;b&gt;title" in page


def test_the_page_needs_nothing_from_outside(corpus, tmp_path):
    page = write_page(tmp_path, report_of(corpus, tmp_path), HEADING).read_text(encoding="utf-8")
    parsed = parse(page)
    targets = [value for name, value in parsed.attributes if name in ("src", "href")]
    assert set(targets) == {"report.json", "findings.jsonl", "quarantine.jsonl", "overview.png"}
    assert "http" not in page.replace("http-equiv", "") and "@import" not in page and "url(" not in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page and 'name="viewport"' in page


def test_an_empty_corpus_has_a_page_and_a_picture_as_well(write_clip, write_manifest, tmp_path):
    write_clip()
    report = report_of(write_manifest([{"audio": "clip.wav", "text": "", "language": "en"}]), tmp_path)
    page = write_page(tmp_path, report, HEADING).read_text(encoding="utf-8")
    assert "Not ready" in page and "no transcripts" in page
    assert draw_overview(report.record, tmp_path / "x.png", title="$empty_").read_bytes().startswith(b"\x89PNG")


def test_every_row_of_every_finding_is_listed(corpus, tmp_path):
    lines = corpus.read_text(encoding="utf-8").splitlines()
    corpus.write_text("\n".join([*lines, lines[0].replace('"c0"', '"copy"'), "{}"]), encoding="utf-8")
    report = report_of(corpus, tmp_path, max_bad_share=0.5)
    write_report(tmp_path / "report", report)
    listed = [json.loads(line) for line in (tmp_path / "report/findings.jsonl").read_text().splitlines()]
    assert [row["line"] for row in listed if row["finding"] == "copies_train"] == [11]
    assert len(listed) == sum(finding.count for finding in report.findings if finding.places)
    bad = [json.loads(line) for line in (tmp_path / "report/quarantine.jsonl").read_text().splitlines()]
    assert [(row["code"], row["line"], row["split"]) for row in bad] == [("M01", 12, "train")]
    assert json.loads((tmp_path / "report/report.json").read_text()) == json.loads(json.dumps(report.record))


def test_a_report_that_cannot_be_written_says_what_to_type(corpus, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=r"report\.dir="):
        write_report(tmp_path / "file/report", report_of(corpus, tmp_path))


def test_bars_stand_on_each_other_and_have_the_height_of_their_counts():
    svg = draw_histogram([0, 1, 2], {"train": [4, 2], "test": [0, 2]}, label="x")
    heights = [
        float(h) for c, h in re.findall(r'<rect class="(?:train|test)"[^>]*height="([\d.]+)"()', svg) for h in [c]
    ]
    assert heights == pytest.approx([142.0, 71.0, 71.0])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-60, 0), (0.13, 2.7), (8, 11), (1e-4, 3e-4)])
def test_ticks_are_round_and_inside(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    assert any(np.isclose(steps[0], factor * 10.0**power) for factor in (1, 2, 5) for power in range(-6, 3))


@pytest.mark.parametrize(("hours", "text"), [(0.005, "18 s"), (0.5, "30.0 min"), (1.26, "1.3 h"), (1234.4, "1,234 h")])
def test_hours_are_given_as_people_say_them(hours, text):
    assert format_hours(hours) == text
