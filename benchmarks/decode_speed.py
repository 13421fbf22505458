"""How fast an artefact is scored: seconds of audio a second, ours against the stock pipeline of transformers.

    python -m benchmarks.decode_speed [--repetitions 5] [--clips 34]

Both get the same FP16-stored artefact of Whisper tiny's shape (random weights, vocabulary 51,865), the same clips as
waveforms in memory, batches of 8, and say the same number of tokens, about as many as the reference has. Clocks follow
the Open ASR Leaderboard: warm-up, then features, search and text inside the clock, sum of audio over sum of time. The
systems take turns, so that what else the machine does falls on all of them.

`given`: the language is given to both. `auto`: both detect it; the stock pipeline runs its encoder once more for that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import WhisperConfig, pipeline

from benchmarks.environment import PROJECT, write_result
from data.audio import SAMPLING_RATE, Waveform, load_waveform
from data.windows import Windows, full_windows
from infer.artefact import Artefact, load_artefact, write_artefact
from infer.beam import beam_search
from infer.decoding import Decoder, DecodeSettings
from infer.encoder import WindowedWhisper, encode, encode_windows
from infer.half import cast_to_half
from infer.transcriber import Transcriber
from train.model import build_generation_config
from train.vocabulary import learn_tokenizer

SPEECH = PROJECT.parent / "shared" / "speech"
SETS = ("ljspeech_en", "fsdd_en")
WINDOWS = Windows((5.0, 10.0, 15.0, 20.0, 25.0, 30.0))  # of the recipes for pretrained models
CHARACTERS_PER_TOKEN = 4.2  # of English in Whisper's vocabulary
VOCABULARY_SIZE = 51_865
BATCH_SIZE = 8
TEXTS = ("the quick brown fox jumps over the lazy dog", "Printing, in the only sense", "0123456789")


@dataclass(frozen=True)
class Set:
    """Clips of one kind."""

    name: str
    waveforms: list[Waveform]
    num_tokens: int
    """That every system says for each clip."""

    @property
    def audio_s(self) -> float:
        """Seconds of all clips."""
        return sum(len(waveform) for waveform in self.waveforms) / SAMPLING_RATE


def build_artefact(folder: Path) -> Path:
    """Write an artefact of Whisper tiny's shape that hears differences and never ends by itself."""
    tokenizer = learn_tokenizer(TEXTS, unit="character", vocabulary_size=1000)
    end_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    start_id = tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
    config = WhisperConfig(
        vocab_size=VOCABULARY_SIZE,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        bos_token_id=end_id,
        eos_token_id=end_id,
        pad_token_id=end_id,
        decoder_start_token_id=start_id,
    )
    torch.manual_seed(0)
    model = WindowedWhisper(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "encoder.embed_positions" not in name and parameter.ndim > 1:
                parameter.normal_(0, 0.07)
        # Only text is ever likeliest: all other logits are 0, and among some hundred texts one is above.
        model.model.decoder.embed_tokens.weight[end_id:] = 0.0
    generation = build_generation_config(config, tokenizer)
    generation.suppress_tokens = list(range(3, 91))  # as many as the published models have
    generation.begin_suppress_tokens = [1, end_id]
    return write_artefact(
        folder,
        cast_to_half(model.state_dict()),
        config=config,
        generation_config=generation,
        tokenizer=tokenizer,
        windows=WINDOWS,
        record={},
    )


def load_set(name: str, num_clips: int) -> Set:
    """Load clips that lie evenly in a test set."""
    rows = [json.loads(line) for line in (SPEECH / name / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = rows[:: max(1, len(rows) // num_clips)][:num_clips]
    num_tokens = round(statistics.fmean(len(row["text"]) for row in chosen) / CHARACTERS_PER_TOKEN) + 1
    return Set(name, [load_waveform(SPEECH / name / row["audio"]) for row in chosen], num_tokens)


def stock(path: Path, clips: Set, language: str | None) -> Callable[[], list[str]]:
    """Return a call of the stock pipeline."""
    recogniser = pipeline(
        "automatic-speech-recognition", model=str(path), device="cpu", dtype=torch.float32, batch_size=BATCH_SIZE
    )
    options: dict[str, Any] = {"max_new_tokens": clips.num_tokens, "num_beams": 1, "task": "transcribe"}
    options |= {"language": language} if language else {}

    def run() -> list[str]:
        # The pipeline takes entries out of what it is given.
        inputs = [{"raw": waveform, "sampling_rate": SAMPLING_RATE} for waveform in clips.waveforms]
        return [found["text"].strip() for found in recogniser(inputs, generate_kwargs=dict(options))]

    return run


def ours(artefact: Artefact, clips: Set, language: str | None) -> Callable[[], list[str]]:
    """Return a call of our transcriber."""
    settings = DecodeSettings(
        language=language or "auto", max_new_tokens=clips.num_tokens, detect_language=language is None
    )
    transcriber = Transcriber(artefact, settings, batch_size=BATCH_SIZE)
    return lambda: [transcript.text for transcript in transcriber.transcribe(clips.waveforms)]


def compare(path: Path, clips: Set, language: str | None, repetitions: int) -> dict[str, Any]:
    """Let the systems take turns and return speeds and ratios."""
    artefact = load_artefact(path)
    systems = {
        "stock": stock(path, clips, language),
        "full": ours(replace(artefact, windows=full_windows()), clips, language),
        "bucketed": ours(artefact, clips, language),
    }
    first = Set(clips.name, clips.waveforms[:BATCH_SIZE], clips.num_tokens)
    stock(path, first, language)(), ours(artefact, first, language)()  # warm-up
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    texts: dict[str, list[str]] = {}
    for turn in range(repetitions):
        for name in list(systems)[:: 1 if turn % 2 == 0 else -1]:
            begin = time.perf_counter()
            texts[name] = systems[name]()
            seconds[name].append(time.perf_counter() - begin)
    same = sum(a == b for a, b in zip(texts["stock"], texts["full"], strict=True)) / len(texts["full"])
    return {
        "clips": len(clips.waveforms),
        "mean_clip_s": round(clips.audio_s / len(clips.waveforms), 2),
        "tokens": clips.num_tokens,
        "unlike_texts": len(set(texts["full"])),
        "rtfx": {name: round(clips.audio_s / statistics.median(times), 2) for name, times in seconds.items()},
        "full_over_stock": _spread(seconds["stock"], seconds["full"]),
        "bucketed_over_stock": _spread(seconds["stock"], seconds["bucketed"]),
        "identical_text_full": same,
    }


def _spread(slower: list[float], faster: list[float]) -> dict[str, float]:
    ratios = sorted(a / b for a, b in zip(slower, faster, strict=True))
    return {"median": round(statistics.median(ratios), 2), "min": round(ratios[0], 2), "max": round(ratios[-1], 2)}


@torch.inference_mode()
def compare_parts(path: Path, repetitions: int) -> dict[str, Any]:
    """Return what the parts bring, each against what it replaces: the search alone, and the encoder alone."""
    artefact = load_artefact(path)
    decoder = Decoder(artefact.model, artefact.tokenizer)
    encoder = artefact.model.model.encoder
    prefix = torch.tensor([decoder.label_builder.prefix_ids("en", "transcribe")] * BATCH_SIZE)
    found: dict[str, Any] = {}
    for window_s in (10, 30):
        features = torch.randn(BATCH_SIZE, 80, 100 * window_s)
        hidden = encode(encoder, features)
        settings = DecodeSettings(language="en", max_new_tokens=25, detect_language=False)
        generate = {"num_beams": 1, "limit": 25, "end_id": decoder.label_builder.end_id, "timestamps": False}
        generate["no_timestamps_id"] = decoder.label_builder.no_timestamps_id
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "search_over_generate": (
                lambda h=hidden, g=generate: beam_search(artefact.model, h, prefix, **g),
                lambda h=hidden, s=settings: decoder._say(
                    [h], decoder._start([h], s, ["en"] * 8, None), s, range(8), 0.0, []
                ),
            ),
            "encoder_in_parts_over_whole": (
                lambda f=features: encode(encoder, f),
                lambda f=features: encode_windows(encoder, f),
            ),
        }
        for name, (before, after) in pairs.items():
            times: list[list[float]] = [[], []]
            for _ in range(repetitions + 1):
                for kept, run in zip(times, (before, after), strict=True):
                    begin = time.perf_counter()
                    run()
                    kept.append(time.perf_counter() - begin)
            found[f"{name}_{window_s}s"] = _spread(times[0][1:], times[1][1:])
    return found


def main() -> None:
    """Measure, and write `results/decode_speed.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--clips", type=int, default=34, help="of each set")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    figures: dict[str, Any] = {"batch_size": BATCH_SIZE, "repetitions": arguments.repetitions, "sets": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = build_artefact(Path(folder) / "tiny")
        figures["parts"] = compare_parts(path, arguments.repetitions)
        print(json.dumps(figures["parts"]), flush=True)
        for name in SETS:
            clips = load_set(name, arguments.clips)
            for mode, language in (("given", "en"), ("auto", None)):
                found = compare(path, clips, language, arguments.repetitions)
                figures["sets"].setdefault(name, {})[mode] = found
                print(name, mode, json.dumps(found), flush=True)
    write_result("decode_speed", figures)


if __name__ == "__main__":
    main()
