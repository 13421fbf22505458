"""Live text: what is final stays, words wait for two passes, windows are cut where nobody speaks."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from data.audio import SAMPLING_RATE, load_waveform
from infer.artefact import load_artefact
from infer.decoding import Decoded
from infer.subtitles import Segment
from infer.transcriber import Transcriber
from serve.agreement import Agreement, common_prefix, match_prefix, split_units
from serve.stream_settings import StreamSettings
from serve.streaming import Heard, Stream, Update, Window
from serve.voice import FRAME, VoiceActivity
from tests.conftest import PROJECT

HOME = PROJECT / "data" / "demo" / "corpus" / "home"


def loud(frames: np.ndarray) -> np.ndarray:
    """Take what is not silent for speech."""
    return (np.abs(frames.reshape(-1, FRAME)).max(axis=1) > 0.01).astype(np.float32)


class Speaker:
    """Words at known times, as sound and as a model that hears them; a word at the edge of a window is garbled."""

    def __init__(self, words: list[tuple[str, float, float]], duration_s: float, *, has_times: bool = False) -> None:
        self.words, self.has_times = words, has_times
        self.waveform = np.zeros(round(duration_s * SAMPLING_RATE), dtype=np.float32)
        self.windows: list[Window] = []
        for i, (_, start_s, end_s) in enumerate(words):
            part = self.waveform[round(start_s * SAMPLING_RATE) : round(end_s * SAMPLING_RATE)]
            part[:] = np.random.default_rng(i).normal(0, 0.2, len(part))

    def hear(self, window: Window) -> Heard:
        self.windows.append(window)
        first, last = window.start / SAMPLING_RATE, window.end / SAMPLING_RATE
        said = []
        for text, start_s, end_s in self.words:
            if first - 0.01 <= start_s and end_s <= last + 0.01:
                said.append((text, start_s, end_s))
            elif first + 0.01 < end_s and start_s < last - 0.01:
                said.append((f"{text[:2]}~{len(self.windows)}", max(start_s, first), min(end_s, last)))
        segments = tuple(Segment(max(0.0, a - first), b - first, text) for text, a, b in said) if self.has_times else ()
        return Heard(" ".join(text for text, _, _ in said), "en", segments)


def listen(speaker: Speaker, settings: StreamSettings | None = None, *, piece_s: float = 0.1) -> list[Update]:
    stream = Stream(settings, detector=loud)
    size = round(piece_s * SAMPLING_RATE)
    updates = []
    for start in range(0, len(speaker.waveform), size):
        stream.add(speaker.waveform[start : start + size])
        while (window := stream.next_window()) is not None:
            updates.append(stream.take(window, speaker.hear(window)))
    while (window := stream.next_window(is_over=True)) is not None:
        updates.append(stream.take(window, speaker.hear(window)))
    return updates


def utterances(updates: list[Update]) -> list[str]:
    """Return the texts, after checking that deltas join to them and that nothing final is ever taken back."""
    texts, so_far = [], ""
    for update in updates:
        so_far += update.delta
        assert update.text == so_far
        if update.is_end:
            texts.append(so_far)
            so_far = ""
    assert so_far == "", "an utterance did not end"
    return texts


def spoken(count: int, *, gap_s: float = 0.05, length_s: float = 0.35, start_s: float = 0.5) -> list:
    step = length_s + gap_s
    return [(f"word{i}", start_s + i * step, start_s + i * step + length_s) for i in range(count)]


def test_units_join_to_their_text_and_compare_without_case_and_signs():
    for text, language in [
        (" Well,  it is. Is it? ", "en"),
        ("「你好」,GPU 优化。", "zh"),
        ("がぎ 12、ん", "ja"),
        ("", "en"),
    ]:
        assert "".join(split_units(text, language)) == text.strip()
    assert split_units("今日は、雨。", "ja") == ["今", "日", "は、", "雨。"]
    assert common_prefix(["It", " is."], ["it,", " is", " so"]) == 2
    assert common_prefix(["a", " b"], ["a", " c"]) == 1


def test_the_end_of_what_is_final_is_found_with_the_fewest_edits():
    assert match_prefix(["a", " b"], ["A", " b.", " c"]) == (2, 0)
    assert match_prefix(["a", " b", " c"], ["a", " x", " c", " d"]) == (3, 1)
    assert match_prefix(["a", " b", " c"], ["a", " c", " d"]) == (2, 1)
    assert match_prefix([], ["a"]) == (0, 0)
    assert match_prefix(["a", " b"], []) == (0, 2)


def test_words_wait_for_as_many_passes_as_asked_and_any_doubt_begins_the_count_again():
    said = ["a b", "a b c", "a x c d", "a x c d e", "a x c d e f"]
    final = {}
    for num_passes in (1, 2, 3):
        agreement, done = Agreement(), []
        for text in said:
            tail = text.split()[len(done) :]
            done += tail[: agreement.take(tail, num_passes=num_passes, held=1)]
            final.setdefault(num_passes, []).append("".join(done))
    assert final == {
        1: ["a", "ab", "abc", "abcd", "abcde"],
        2: ["", "ab", "abc", "abcd", "abcde"],
        3: ["", "", "a", "a", "axcd"],
    }
    agreement.forget()
    assert agreement.take(["e", "f"], num_passes=3, held=0) == 0


@pytest.mark.parametrize(("agreement", "held_words"), [(1, 1), (2, 3), (3, 1)])
def test_the_trade_between_sure_and_early_is_a_setting(agreement: int, held_words: int):
    speaker = Speaker(spoken(20), 9.5)

    def mean_s(updates: list[Update]) -> float:
        return float(np.mean([u.end_s for u in updates for _ in u.delta.split()]))

    usual_s = mean_s(listen(speaker))
    updates = listen(speaker, StreamSettings(agreement=agreement, held_words=held_words))
    assert utterances(updates) == [" ".join(word for word, _, _ in speaker.words)]
    assert mean_s(updates) < usual_s if agreement == 1 else mean_s(updates) > usual_s


def test_every_word_becomes_final_once_after_two_passes_and_at_the_pause():
    speaker = Speaker([*spoken(8), *spoken(3, start_s=5.5)], 8.0)
    updates = listen(speaker)
    assert utterances(updates) == [
        "word0 word1 word2 word3 word4 word5 word6 word7",
        "word0 word1 word2",
    ]
    first = next(u for u in updates if u.delta)
    assert first.delta == "word0" and not first.is_end
    assert not any("~" in u.delta for u in updates) and any("~" in u.tentative for u in updates)
    ends = [u.end_s for u in updates if u.is_end]
    assert ends == pytest.approx([3.65 + 0.3, 6.65 + 0.3], abs=0.05)


def test_words_are_final_soon_after_they_were_said():
    speaker = Speaker(spoken(20), 9.5)
    settings = StreamSettings(step_s=0.4)
    so_far = 0
    for update in listen(speaker, settings):
        so_far += len(update.delta.split())
        overdue = [w for w, _, end_s in speaker.words if end_s < update.end_s - 2 * 0.4 - 0.11]
        assert so_far >= len(overdue)


@pytest.mark.parametrize("has_times", [False, True])
def test_a_long_speech_is_cut_in_its_pauses_and_no_word_is_lost_or_doubled(has_times: bool):
    rng = random.Random(3)
    words, now = [], 0.4
    for i in range(150):
        words.append((f"word{i}", now, now + 0.3))
        now += 0.3 + (0.25 if rng.random() < 0.2 else 0.04)
    speaker = Speaker(words, now + 1, has_times=has_times)
    (text,) = utterances(listen(speaker, StreamSettings(max_window_s=6.0, longest_window_s=10.0)))
    assert text.split() == [word for word, _, _ in words]
    lengths = [len(window.waveform) / SAMPLING_RATE for window in speaker.windows]
    assert max(lengths) <= 10.0
    assert any(w.is_final and not w.is_end for w in speaker.windows) != has_times


def test_speech_without_any_pause_is_cut_before_the_model_can_hear_no_more():
    speaker = Speaker(spoken(100, gap_s=0.0), 41.5)
    settings = StreamSettings(max_window_s=5.0, longest_window_s=8.0)
    (text,) = utterances(listen(speaker, settings))
    assert max(len(w.waveform) for w in speaker.windows) <= 8 * SAMPLING_RATE
    heard = [word for word in text.split() if "~" not in word]
    assert len(heard) >= 90 and heard == sorted(heard, key=lambda word: int(word[4:]))


def test_a_whole_recording_at_once_gives_the_same_utterances_as_its_pieces():
    speaker = Speaker([*spoken(8), *spoken(3, start_s=5.5), *spoken(4, start_s=12)], 15.0)
    in_pieces = utterances(listen(speaker))
    at_once = utterances(listen(speaker, piece_s=15.0))
    assert in_pieces == at_once and len(at_once) == 3


def test_what_is_final_stays_when_a_later_pass_hears_it_differently():
    heard = iter(["one two", "one two three", "won too three four", "won too three four", "won too three four five"])
    stream = Stream(StreamSettings(first_s=0.3), detector=loud)
    deltas = []
    for text in heard:
        stream.add(np.full(round(0.4 * SAMPLING_RATE), 0.2, dtype=np.float32))
        window = stream.next_window()
        deltas.append(stream.take(window, Heard(text, "en")).delta)
    assert deltas == ["", "one two", " three", "", " four"]  # the last word waits while somebody speaks


def test_words_that_were_final_before_a_cut_are_not_said_again_behind_it():
    stream = Stream(StreamSettings(max_window_s=2.0, longest_window_s=4.0), detector=loud)
    sound, silence = np.full(16_000, 0.2, dtype=np.float32), np.zeros(4_800, dtype=np.float32)
    texts = {False: "a b c d e f", True: "a b c"}  # of the window that grows; of the part before the pause, alone
    text = ""
    for part in (sound, silence, sound[:9_000]):
        stream.add(part)
        for _ in range(2):
            if (window := stream.next_window()) is not None:
                text += stream.take(window, Heard(texts[window.is_final], "en")).delta
                stream._passed = 0  # another pass over the same sound
        assert not window.is_final
    assert text == "a b c d e f"
    stream.add(sound[:5_000])
    window = stream.next_window()
    assert window.is_final and not window.is_end
    assert stream.take(window, Heard("a b c", "en")).delta == ""
    stream.add(np.zeros(16_000, dtype=np.float32))
    window = stream.next_window()
    update = stream.take(window, Heard("d e f g", "en"))
    assert (update.delta, update.text, update.is_end) == (" g", "a b c d e f g", True)


def test_the_language_of_an_utterance_stays_and_two_languages_never_agree():
    stream = Stream(StreamSettings(first_s=0.3), detector=loud)
    asked, deltas = [], []
    for text, language in [("да да", "ru"), ("да да да", "en"), ("yes yes no", "en"), ("yes yes no no", "en")]:
        stream.add(np.full(round(0.4 * SAMPLING_RATE), 0.2, dtype=np.float32))
        window = stream.next_window()
        asked.append(window.language)
        deltas.append(stream.take(window, Heard(text, language)).delta)
    assert deltas == ["", "", "", "yes yes no"] and asked == ["", "", "", ""]
    stream.add(np.full(round(0.4 * SAMPLING_RATE), 0.2, dtype=np.float32))
    assert stream.next_window().language == "en"


def test_silence_and_clicks_are_never_decoded():
    speaker = Speaker([("click", 2.0, 2.03)], 6.0)
    assert listen(speaker) == [] and speaker.windows == []
    stream = Stream(detector=loud)
    stream.add(np.zeros(60 * SAMPLING_RATE, dtype=np.float32))
    assert stream.next_window() is None and stream.next_window(is_over=True) is None
    assert stream.waiting_s < 1


def test_characters_are_the_units_of_chinese():
    stream = Stream(StreamSettings(first_s=0.3), detector=loud)
    deltas = []
    for text in ["今天天", "今天天气", "今天天气很好"]:
        stream.add(np.full(round(0.4 * SAMPLING_RATE), 0.2, dtype=np.float32))
        deltas.append(stream.take(stream.next_window(), Heard(text, "zh")).delta)
    assert deltas == ["", "今天", "天气"]
    stream.add(np.zeros(SAMPLING_RATE, dtype=np.float32))
    last = stream.take(stream.next_window(), Heard("今天天气很好。", "zh"))
    assert last.is_end and last.text == "今天天气很好。"


def test_settings_say_what_is_allowed():
    with pytest.raises(ValueError, match="step_s=0 must be above 0"):
        StreamSettings(step_s=0)
    with pytest.raises(ValueError, match="agreement=0 must be 1 to 5 passes"):
        StreamSettings(agreement=0)
    with pytest.raises(ValueError, match="held_words=9 must be 0 to 5 words"):
        StreamSettings(held_words=9)
    with pytest.raises(ValueError, match="must lie in 1 to 30 s"):
        StreamSettings(longest_window_s=40)


def test_the_real_detector_hears_the_same_in_pieces_of_any_size():
    pytest.importorskip("faster_whisper", reason="the extra `serve` is not installed")
    rows = [json.loads(line) for line in (HOME / "test.jsonl").read_text(encoding="utf-8").splitlines()[:3]]
    silence = np.zeros(SAMPLING_RATE, dtype=np.float32)
    parts = [silence]
    for row in rows:
        parts += [load_waveform(HOME / row["audio"]), silence]
    waveform = np.concatenate(parts)
    whole = VoiceActivity()
    whole.add(waveform)
    in_pieces = VoiceActivity()
    for start in range(0, len(waveform), 1_700):
        in_pieces.add(waveform[start : start + 1_700])
    assert in_pieces.position == whole.position == len(waveform) // FRAME * FRAME
    speech_s = [sum(s.end - s.start for s in v.spans) / SAMPLING_RATE for v in (whole, in_pieces)]
    assert speech_s[0] == pytest.approx(speech_s[1], abs=0.2)
    assert 0.5 < speech_s[0] / sum(len(p) / SAMPLING_RATE for p in parts[1::2]) <= 1.05
    quiet = VoiceActivity()
    quiet.add(np.random.default_rng(0).normal(0, 0.001, 5 * SAMPLING_RATE).astype(np.float32))
    assert quiet.spans == []


@pytest.mark.skipif(not (PROJECT / "data/demo/base/model.safetensors").is_file(), reason="no base model")
def test_the_demo_model_says_live_what_it_says_of_each_clip():
    pytest.importorskip("faster_whisper", reason="the extra `serve` is not installed")
    rows = [json.loads(line) for line in (HOME / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["language"] == "zh"][:4] + [row for row in rows if row["language"] == "ru"][:4]
    waveforms = [load_waveform(HOME / row["audio"]) for row in rows]
    transcriber = Transcriber(load_artefact(PROJECT / "data" / "demo" / "base"))
    offline = transcriber.transcribe(waveforms)
    silence = np.zeros(SAMPLING_RATE, dtype=np.float32)
    sound = np.concatenate([part for waveform in waveforms for part in (waveform, silence)])
    stream = Stream()
    updates = []

    def hear(window: Window) -> Heard:
        (found,) = transcriber.transcribe([window.waveform])
        decoded: Decoded = found.windows[0]
        return Heard(decoded.text, decoded.language)

    for start in range(0, len(sound), 1_600):
        stream.add(sound[start : start + 1_600])
        while (window := stream.next_window()) is not None:
            updates.append(stream.take(window, hear(window)))
    texts = utterances(updates)
    assert len(texts) == 8
    assert sum(a == b.text for a, b in zip(texts, offline, strict=True)) >= 6
    assert any(update.delta and not update.is_end for update in updates)
