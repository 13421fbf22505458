"""How near times of words are to those at which they were spoken, and what they cost.

    python -m benchmarks.word_times [--artefact runs/demo/export] [--repetitions 5]

Speech: sentences of the demo's tests, spoken anew by espeak-ng's library, which tells at which sample each word begins.
Only sentences that the model reads without an error count, and only starts of words are compared: in connected speech
one ends where the next begins. The first word of a clip is left out, since no word before it ends there.

Cost: the same clips with and without times of words, the two taking turns; once in the demo's artefact, and once in one
of Whisper tiny's shape over real speech, where each clip has as many tokens as its text would have.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from benchmarks.decode_speed import SPEECH, build_artefact, load_set
from benchmarks.environment import PROJECT, write_result
from data.audio import SAMPLING_RATE, Waveform, load_waveform
from data.demo.synthesis import VARIANTS
from infer.artefact import Artefact, load_artefact
from infer.decoding import DecodeSettings
from infer.transcriber import Transcriber

CORPUS = PROJECT / "data" / "demo" / "corpus"
VOICES = {"en": "en-us", "ru": "ru"}  # those whose text is what espeak-ng is given
NUM_SENTENCES = 40
LEVEL = 0.06  # RMS, within the levels of the corpus
NOISE = 0.0007  # RMS; the corpus has a floor like this
SILENCE_S = 0.1  # at both ends
BATCH_SIZE = 8
NEAR_S = (0.05, 0.1, 0.2)


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
SYNCHRONOUS, WORD_EVENT, UTF8 = 2, 1, 1


class Speaker:
    """espeak-ng as a library."""

    def __init__(self) -> None:
        """Load it.

        Raises:
            OSError: if it is not installed.
        """
        self._library = ctypes.CDLL("libespeak-ng.so.1")
        self.sampling_rate = int(self._library.espeak_Initialize(SYNCHRONOUS, 0, None, 0))
        self._callback = _Callback(self._take)  # must live as long as the library may call it
        self._library.espeak_SetSynthCallback(self._callback)
        self._parts: list[np.ndarray[Any, Any]] = []
        self._starts_s: list[float] = []

    def say(self, text: str, voice: str) -> tuple[Waveform, list[float]]:
        """Return speech at 16 kHz and the seconds at which its words begin."""
        self._parts, self._starts_s = [], []
        self._library.espeak_SetVoiceByName(voice.encode())
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 0, 0, UTF8, None, None)
        self._library.espeak_Synchronize()
        spoken = np.concatenate(self._parts).astype(np.float32) / 32768
        spoken = spoken[: np.flatnonzero(np.abs(spoken) > 1e-3)[-1] + 1]  # it ends with a pause
        resampled = soxr.resample(
            spoken * (LEVEL / float(np.sqrt(np.mean(spoken**2)))), self.sampling_rate, SAMPLING_RATE
        )
        silence = round(SILENCE_S * SAMPLING_RATE)
        padded = np.pad(resampled, (silence, silence))
        noise = np.random.default_rng(len(data)).normal(0, NOISE, len(padded))
        waveform = np.clip(padded + noise, -1, 1).astype(np.float32)
        return waveform, [start_s + SILENCE_S for start_s in self._starts_s]

    def _take(self, samples: Any, num_samples: int, events: Any) -> int:
        if samples and num_samples:
            self._parts.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        i = 0
        while events[i].type:
            if events[i].type == WORD_EVENT:
                self._starts_s.append(events[i].audio_position / 1000)
            i += 1
        return 0


def measure_errors(artefact: Artefact) -> dict[str, Any]:
    """Return how far starts of words are from the true ones, for each language."""
    speaker = Speaker()
    found: dict[str, Any] = {}
    for language, voice in VOICES.items():
        texts = _sentences(language)
        spoken = [speaker.say(text, f"{voice}+{VARIANTS[i % len(VARIANTS)]}") for i, text in enumerate(texts)]
        transcriber = Transcriber(artefact, DecodeSettings(word_times=True, language=language), batch_size=BATCH_SIZE)
        transcripts = transcriber.transcribe([waveform for waveform, _ in spoken])
        errors: list[float] = []
        num_read = 0
        for text, (_, starts_s), transcript in zip(texts, spoken, transcripts, strict=True):
            words = [word for segment in transcript.segments for word in segment.words]
            if transcript.text != text or len(words) != len(starts_s):
                continue  # misread, or two words that espeak-ng speaks as one
            num_read += 1
            errors += [word.start_s - start_s for word, start_s in zip(words[1:], starts_s[1:], strict=True)]
        sizes = np.abs(errors)
        found[language] = {
            "sentences": len(texts),
            "read_without_error": num_read,
            "starts": len(errors),
            "mean_error_s": round(float(sizes.mean()), 4),
            "median_error_s": round(float(np.median(sizes)), 4),
            "mean_shift_s": round(float(np.mean(errors)), 4),
            "share_within": {f"{near_s:g} s": round(float((sizes <= near_s).mean()), 4) for near_s in NEAR_S},
        }
    return found


def _sentences(language: str) -> list[str]:
    lines = (CORPUS / "home" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows if row["language"] == language][:NUM_SENTENCES]


def measure_cost(
    artefact: Artefact, waveforms: list[Waveform], settings: DecodeSettings, repetitions: int
) -> dict[str, Any]:
    """Return seconds with and without times of words, and their ratio, of runs that take turns."""
    ways = {
        has_words: Transcriber(artefact, replace(settings, word_times=has_words), batch_size=BATCH_SIZE)
        for has_words in (False, True)
    }
    texts = {has_words: [found.text for found in way.transcribe(waveforms)] for has_words, way in ways.items()}
    assert texts[False] == texts[True]
    spent: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(repetitions):
        for has_words, way in ways.items():
            begin = time.perf_counter()
            way.transcribe(waveforms)
            spent[has_words].append(time.perf_counter() - begin)
    ratios = [timed / plain for plain, timed in zip(spent[False], spent[True], strict=True)]
    return {
        "clips": len(waveforms),
        "audio_s": round(sum(map(len, waveforms)) / SAMPLING_RATE, 1),
        "plain_s": round(statistics.median(spent[False]), 3),
        "word_times_s": round(statistics.median(spent[True]), 3),
        "time_ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Measure and write `results/word_times.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artefact", type=Path, default=PROJECT / "runs" / "demo" / "export")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    demo = load_artefact(options.artefact)
    rows = [json.loads(line) for line in (CORPUS / "clinic" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    clips = [load_waveform(CORPUS / "clinic" / row["audio"]) for row in rows]
    cost = {"demo": measure_cost(demo, clips, DecodeSettings(), options.repetitions)}
    if SPEECH.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            tiny = load_artefact(build_artefact(Path(folder) / "tiny"))
            spoken = load_set("ljspeech_en", 24)
            fixed = DecodeSettings(language="en", max_new_tokens=spoken.num_tokens, detect_language=False)
            cost["tiny_shape"] = measure_cost(tiny, spoken.waveforms, fixed, options.repetitions)
    figures = {"artefact": demo.describe(), "errors": measure_errors(demo), "cost": cost, "batch_size": BATCH_SIZE}
    figures["artefact"]["path"] = Path(figures["artefact"]["path"]).name
    print(json.dumps({"errors": figures["errors"], "cost": cost}, indent=2, ensure_ascii=False))
    write_result("word_times", figures)


if __name__ == "__main__":
    main()
